"""Messages between a driver and its workers, and the frames that encode them.

    frame:  kind | flags | job, task, attempt | header size | data size | header | data | (tag)

The header is a pickled record and the data are raw bytes. Over a network, each frame ends with an
authentication tag, which is verified before the frame is used. Long messages are split into several frames.
Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import hmac
import struct
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

# Increase the version with each change of what driver and workers send each other. Never change the position
# of the version itself in the greetings of `handshake`, and in the mailbox and reply keys of
# `storage_channel`.
PROTOCOL_VERSION = 1
MISMATCH_EXIT_CODE = 76  # exit code of a worker whose driver has another version (EX_PROTOCOL)
FRAME_PREFIX = ">cBqqqQQ"  # `struct` format of everything before the header; its last two fields are sizes
FRAME_PREFIX_BYTES = struct.calcsize(FRAME_PREFIX)
MAX_HEADER_BYTES = 1 << 30  # larger sizes are taken for corruption
MAX_DATA_BYTES = 1 << 40  # larger sizes are taken for corruption
# Flags of a frame: the data name a file; a further frame of the message follows; the frame is not the first.
FILE_FLAG, MORE_FRAMES_FLAG, CONTINUATION_FLAG = 1, 2, 4
MAC_BYTES = 32  # size of an authentication tag, HMAC-SHA256
MAX_INLINE_BYTES = 1 << 17  # larger data are sent as a file or object if both ends share one
MAX_CHUNK_BYTES = 1 << 17  # longer messages are split into chunks of this size: only these are copied


class MessageKind(bytes, Enum):
    """The kinds of messages. Each value is the byte that encodes the kind in a frame."""

    # From the driver.
    MODULES = b"s"  # sources of modules that functions need
    JOB = b"m"  # what the tasks of a job have in common: a `JobHeader`, f, and the structure of blocks
    TASK = b"c"  # an attempt of a task, to be run
    CANCEL = b"x"  # the job has ended: its tasks are cancelled
    SEGMENT = b"d"  # the segment of a block that a worker has requested
    NO_SEGMENT = b"f"  # the requested segment cannot be read
    # From a worker.
    HELLO = b"p"  # the first message: the process id and a `WorkerIdentity`
    FETCH = b"n"  # a request for a segment of a block
    CANCELLED = b"l"  # the worker has skipped or left a cancelled task
    UNUSABLE = b"u"  # the worker cannot run the tasks of the job, has started none, and exits
    TASK_REPLY = b"e"  # the result or the error of a task
    FINAL_REPLY = b"z"  # the result or the error of a task, after which the worker exits


_KIND_BY_BYTE: dict[bytes, MessageKind] = {kind.value: kind for kind in MessageKind}
REPLY_KINDS = {MessageKind.TASK_REPLY, MessageKind.FINAL_REPLY}
TASK_END_KINDS = {MessageKind.CANCELLED, MessageKind.UNUSABLE, *REPLY_KINDS}
EXIT_KINDS = {MessageKind.UNUSABLE, MessageKind.FINAL_REPLY}  # A worker exits after sending one.


class FrameError(ConnectionError):
    """Raised for bytes that are not a valid message, or come from a peer without the key."""


class ProtocolMismatchError(Exception):
    """Raised if a driver and a worker use different versions of the protocol.

    Not a `ConnectionError`, because connecting again does not help.

    Parameters
    ----------
    peer_version : int
        The version that the peer uses.
    worker_id : int
        The id of the worker that has connected; -1 if this process is the worker.
    """

    def __init__(self, peer_version: int, worker_id: int = -1) -> None:
        self.peer_version, self.worker_id = peer_version, worker_id
        text = f"its driver has version {peer_version} of polarmap's protocol, this worker {PROTOCOL_VERSION}"
        if worker_id >= 0:
            versions = f"version {peer_version} of the protocol, this driver {PROTOCOL_VERSION}"
            text = f"a worker of another version of polarmap has connected: it has {versions}"
        advice = "Install the same version of polarmap on both, then restart the worker or rebuild its image"
        super().__init__(f"{text}. {advice}.")


def check_protocol_version(peer_version: int) -> None:
    """Raise ProtocolMismatchError on a worker whose driver uses another version of the protocol."""
    if peer_version != PROTOCOL_VERSION:
        raise ProtocolMismatchError(peer_version)


def exit_if_protocol_differs(driver_version: int) -> None:
    """Exit this process with MISMATCH_EXIT_CODE if its driver uses another version of the protocol."""
    try:
        check_protocol_version(driver_version)
    except ProtocolMismatchError as error:
        print(error, file=sys.stderr)
        sys.exit(MISMATCH_EXIT_CODE)


class Message(NamedTuple):
    """A message from a driver to a worker, or from a worker to its driver.

    Attributes
    ----------
    kind : MessageKind
        Determines what header and data contain.
    attempt_key : tuple of int
        The job, task and attempt that the message refers to; -1 for none.
    header : bytes
        A pickled record in most kinds.
    data : bytes
        The payload.
    is_file : bool
        Whether `data` is the name of a file that holds the payload.
    """

    kind: MessageKind
    attempt_key: tuple[int, int, int] = (-1, -1, -1)
    header: bytes | bytearray = b""
    data: bytes | bytearray | memoryview = b""
    is_file: bool = False


class MessageAuthenticator:
    """Computes the authentication tags of messages in one direction, which also cover their sequence."""

    def __init__(self, key: bytes) -> None:
        self._key, self._n_tagged = key, 0

    def compute_tag(self, buffers: Iterable[bytes | bytearray | memoryview]) -> bytes:
        """Return the tag of the next message, which consists of the concatenated `buffers`."""
        numbered_buffers = self._n_tagged.to_bytes(8, "big"), *buffers
        self._n_tagged += 1
        # For long messages, hmac.digest is no faster, needs a copy, and rejects 2 GiB.
        if sum(map(len, numbered_buffers)) < MAX_INLINE_BYTES:
            return hmac.digest(self._key, b"".join(numbered_buffers), "sha256")
        mac = hmac.new(self._key, digestmod="sha256")
        for buffer in numbered_buffers:
            mac.update(buffer)
        return mac.digest()


class ChannelAuthenticators(NamedTuple):
    """The authenticators of the messages that one end of a connection sends and receives."""

    outgoing: MessageAuthenticator
    incoming: MessageAuthenticator


def encode_frame(
    message: Message, authenticator: MessageAuthenticator | None = None, flags: int = 0
) -> bytes:
    """Return a message as one frame, which ends with a tag if there is an `authenticator`."""
    kind, attempt_key, header, data, is_file = message
    prefix = struct.pack(FRAME_PREFIX, kind, flags | is_file, *attempt_key, len(header), len(data))
    buffers = prefix, header, data
    return b"".join(buffers if authenticator is None else (*buffers, authenticator.compute_tag(buffers)))


def split_message(message: Message) -> Iterator[Message]:
    """Yield the header and the data of a message in chunks, each as a message, without copying the data."""
    header, data = memoryview(message.header), memoryview(message.data)
    for start in range(0, len(header), MAX_CHUNK_BYTES):
        yield message._replace(header=bytes(header[start : start + MAX_CHUNK_BYTES]), data=b"")
    for start in range(0, len(data), MAX_CHUNK_BYTES):
        yield message._replace(header=b"", data=data[start : start + MAX_CHUNK_BYTES])


class FrameDecoder:
    """A decoder of the messages in a stream of bytes.

    A long message arrives in several frames. If another message begins before its last frame, the sender has
    cancelled it, and the incomplete message is discarded.

    Parameters
    ----------
    authenticator : MessageAuthenticator or None
        Verifies the tags of frames; None if the frames have no tags.

    Examples
    --------
    >>> frames = FrameDecoder()
    >>> sent = encode_frame(Message(MessageKind.TASK_REPLY, (1, 2, 0), b"header", b"data"))
    >>> list(frames.feed(sent[:9])), [message.attempt_key for message in frames.feed(sent[9:])]
    ([], [(1, 2, 0)])
    """

    def __init__(self, authenticator: MessageAuthenticator | None = None) -> None:
        self._buffer, self._authenticator = bytearray(), authenticator
        self._partial_message: Message | None = None  # a message whose last frame has not arrived

    def feed(self, received_bytes: bytes) -> Iterator[Message]:
        """Yield the messages that these bytes complete; raise FrameError for invalid bytes."""
        self._buffer += received_bytes
        tag_bytes = 0 if self._authenticator is None else MAC_BYTES
        while len(self._buffer) >= FRAME_PREFIX_BYTES:
            prefix = struct.unpack_from(FRAME_PREFIX, self._buffer)
            kind_byte, flags, job_id, task, attempt, header_size, data_size = prefix
            kind = _KIND_BY_BYTE.get(kind_byte)
            if kind is None or header_size > MAX_HEADER_BYTES or data_size > MAX_DATA_BYTES:
                raise FrameError(f"invalid message {kind_byte!r}, {header_size}+{data_size} bytes")
            start, end = FRAME_PREFIX_BYTES + header_size, FRAME_PREFIX_BYTES + header_size + data_size
            if len(self._buffer) < end + tag_bytes:
                return
            if self._authenticator is not None:
                # Release the views explicitly: a profiler that inspects stack frames may still refer to them.
                with (
                    memoryview(self._buffer) as view,
                    view[:end] as tagged_bytes,
                    view[end : end + MAC_BYTES] as tag,
                ):
                    if not hmac.compare_digest(self._authenticator.compute_tag((tagged_bytes,)), tag):
                        raise FrameError("a message was changed on its way")
            header, data = self._buffer[FRAME_PREFIX_BYTES:start], self._buffer[start:end]
            message = Message(kind, (job_id, task, attempt), header, data, bool(flags & FILE_FLAG))
            del self._buffer[: end + tag_bytes]
            if flags & CONTINUATION_FLAG:
                message = self._append_frame(message)
            self._partial_message = message if flags & MORE_FRAMES_FLAG else None
            if self._partial_message is None:
                yield message

    def _append_frame(self, next_frame: Message) -> Message:
        """Append a frame to the incomplete message and return that; raise FrameError if they do not match."""
        partial_message = self._partial_message
        if partial_message is None or partial_message[:2] != next_frame[:2]:
            raise FrameError(f"a frame continues a message {next_frame.kind.name} that was not begun")
        assert isinstance(partial_message.header, bytearray) and isinstance(partial_message.data, bytearray)
        partial_message.header.extend(next_frame.header)
        partial_message.data.extend(next_frame.data)
        header_size, data_size = len(partial_message.header), len(partial_message.data)
        if header_size > MAX_HEADER_BYTES or data_size > MAX_DATA_BYTES:
            raise FrameError(f"invalid message {next_frame.kind.name}, {header_size}+{data_size} bytes")
        return partial_message
