"""Messages between a driver and its workers, and the frames in which they travel.

A frame is the kind, attempt key and lengths of a message, a pickled header, and raw bytes. Over a network
each frame ends with an authentication tag, which is verified before anything of the frame is used.
Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import hmac
import struct
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

# Increase it with each change of what driver and workers send each other. Never change where the version is
# found itself: in the greetings of `handshake`, in the mailbox and in the keys of replies of
# `storage_channel`.
PROTOCOL_VERSION = 1
MISMATCH_EXIT_CODE = 76  # of a worker process whose protocol is not that of its driver (EX_PROTOCOL)
FRAME_PREFIX = ">cBqqqQQ"  # as struct writes what precedes header and data, whose lengths come last
FRAME_PREFIX_BYTES = struct.calcsize(FRAME_PREFIX)
MAX_HEADER_BYTES = 1 << 30  # more than any header has: what claims more is not a message
MAX_DATA_BYTES = 1 << 40  # the same of data
# Flags of a frame: its data name a file; another frame of its message follows; an earlier one precedes it.
FILE_FLAG, MORE_FRAMES_FLAG, CONTINUATION_FLAG = 1, 2, 4
MAC_BYTES = 32
MAX_INLINE_BYTES = 1 << 17  # of data: larger ones are a file or an object of their own, where there are some
MAX_CHUNK_BYTES = 1 << 17  # Most bytes of a longer message that are framed at once: only these are copied.


class MessageKind(bytes, Enum):
    """The kinds of messages. Their values are the bytes that travel."""

    # From the driver.
    MODULES = b"s"  # sources of modules that functions need
    JOB = b"m"  # all that the tasks of a map have in common: a `JobHeader`, f and the structure of its blocks
    TASK = b"c"  # a task to do
    CANCEL = b"x"  # the map is over: nobody waits for its tasks
    SEGMENT = b"d"  # the part of a block that a worker has asked for
    NO_SEGMENT = b"f"  # the part of a block that a worker has asked for cannot be read
    # From a worker.
    HELLO = b"p"  # the first message: the process id and a `WorkerIdentity`
    FETCH = b"n"  # asks for the part of a block
    CANCELLED = b"l"  # the worker has left a task that nobody waits for
    UNUSABLE = b"u"  # the worker is not fit for the tasks of the map, has not begun, and ends itself
    TASK_REPLY = b"e"  # the result or the error of a task
    FINAL_REPLY = b"z"  # the same, from a worker that then ends itself


_KIND_BY_BYTE: dict[bytes, MessageKind] = {kind.value: kind for kind in MessageKind}
REPLY_KINDS = {MessageKind.TASK_REPLY, MessageKind.FINAL_REPLY}
TASK_END_KINDS = {MessageKind.CANCELLED, MessageKind.UNUSABLE, *REPLY_KINDS}
EXIT_KINDS = {MessageKind.UNUSABLE, MessageKind.FINAL_REPLY}  # after these a worker ends itself


class FrameError(ConnectionError):
    """Raised for bytes that are not a message, or do not come from a peer that has the key."""


class ProtocolMismatchError(Exception):
    """Raised where a driver and a worker use different versions of the protocol.

    Not a `ConnectionError`: to connect again does not help.

    peer_version : the version at the other end.
    worker_id : the worker that has connected; -1 if this end is the worker.
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
    """Raise ProtocolMismatchError if the driver of this worker uses another version of the protocol."""
    if peer_version != PROTOCOL_VERSION:
        raise ProtocolMismatchError(peer_version)


def exit_if_protocol_differs(driver_version: int) -> None:
    """End this process with MISMATCH_EXIT_CODE if its driver uses another version of the protocol."""
    try:
        check_protocol_version(driver_version)
    except ProtocolMismatchError as error:
        print(error, file=sys.stderr)
        sys.exit(MISMATCH_EXIT_CODE)


class Message(NamedTuple):
    """A message from a driver to a worker, or from a worker to its driver.

    attempt_key : the map, task and attempt that it is about.
    is_file : whether `data` names a file that holds the data.
    """

    kind: MessageKind
    attempt_key: tuple[int, int, int] = (-1, -1, -1)
    header: bytes | bytearray = b""
    data: bytes | bytearray | memoryview = b""
    is_file: bool = False


class MessageAuthenticator:
    """Tags of the messages that travel in one direction: of each and its place in the sequence."""

    def __init__(self, key: bytes) -> None:
        self._key, self._n_tagged = key, 0

    def compute_tag(self, buffers: Iterable[bytes | bytearray | memoryview]) -> bytes:
        """The tag of the next message, whose bytes are these in a row."""
        numbered_buffers = self._n_tagged.to_bytes(8, "big"), *buffers
        self._n_tagged += 1
        # else it is as slow, copies all, and refuses 2 GiB
        if sum(map(len, numbered_buffers)) < MAX_INLINE_BYTES:
            return hmac.digest(self._key, b"".join(numbered_buffers), "sha256")
        mac = hmac.new(self._key, digestmod="sha256")
        for buffer in numbered_buffers:
            mac.update(buffer)
        return mac.digest()


class ChannelAuthenticators(NamedTuple):
    """The seal of what one end of a connection sends, and that of what it hears."""

    outgoing: MessageAuthenticator
    incoming: MessageAuthenticator


def encode_frame(
    message: Message, authenticator: MessageAuthenticator | None = None, flags: int = 0
) -> bytes:
    """A message as it travels; `authenticator`: with a tag at its end."""
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
    """The messages in a stream of bytes, as they become complete.

    A long message comes in several frames. If another message begins before the last of them, the sender has
    cancelled it, and what has come of it is discarded.

    authenticator : of their tags; None if they have none.

    >>> frames = FrameDecoder()
    >>> sent = encode_frame(Message(MessageKind.TASK_REPLY, (1, 2, 0), b"header", b"data"))
    >>> list(frames.feed(sent[:9])), [message.attempt_key for message in frames.feed(sent[9:])]
    ([], [(1, 2, 0)])
    """

    def __init__(self, authenticator: MessageAuthenticator | None = None) -> None:
        self._buffer, self._authenticator = bytearray(), authenticator
        self._partial_message: Message | None = None  # a message of which more frames follow

    def feed(self, received_bytes: bytes) -> Iterator[Message]:
        """Those that are complete with these bytes; FrameError if they are none."""
        self._buffer += received_bytes
        tag_bytes = 0 if self._authenticator is None else MAC_BYTES
        while len(self._buffer) >= FRAME_PREFIX_BYTES:
            prefix = struct.unpack_from(FRAME_PREFIX, self._buffer)
            kind_byte, flags, job_id, task, attempt, header_size, data_size = prefix
            kind = _KIND_BY_BYTE.get(kind_byte)
            if kind is None or header_size > MAX_HEADER_BYTES or data_size > MAX_DATA_BYTES:
                raise FrameError(f"a message {kind_byte!r} of {header_size} and {data_size} bytes")
            start, end = FRAME_PREFIX_BYTES + header_size, FRAME_PREFIX_BYTES + header_size + data_size
            if len(self._buffer) < end + tag_bytes:
                return
            if self._authenticator is not None:
                # Released here, whoever still holds them, as profilers do that look into frames of threads.
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
        """Return the message that was begun with this frame at its end; FrameError if it is of another."""
        partial_message = self._partial_message
        if partial_message is None or partial_message[:2] != next_frame[:2]:
            raise FrameError(f"a frame continues a message {next_frame.kind.name} that was not begun")
        assert isinstance(partial_message.header, bytearray) and isinstance(partial_message.data, bytearray)
        partial_message.header.extend(next_frame.header)
        partial_message.data.extend(next_frame.data)
        header_size, data_size = len(partial_message.header), len(partial_message.data)
        if header_size > MAX_HEADER_BYTES or data_size > MAX_DATA_BYTES:
            raise FrameError(f"a message {next_frame.kind.name} of {header_size} and {data_size} bytes")
        return partial_message
