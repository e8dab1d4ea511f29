"""Messages between a driver and its workers, and the frames that encode them.

    frame:  kind | flags | job, task, attempt | header size | data size | header | data | (tag)

The header is a pickled record and the data are raw bytes. Over a network, each frame ends with an
authentication tag, which is verified before the frame is used. Long messages are split into several frames.
This module also runs on workers, so it imports only the standard library.
"""

from __future__ import annotations

import hmac
import struct
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

# The version of the protocol between driver and workers. Increment it whenever their messages change. Its
# position in the greetings of `handshake` and in the objects of `storage_channel` must never change, so that
# both ends can always compare their versions.
PROTOCOL_VERSION = 1
# Exit code (EX_PROTOCOL) of a worker whose protocol version differs from its driver's.
MISMATCH_EXIT_CODE = 76
# `struct` format of a frame's prefix: kind, flags, job, task, attempt, header size and data size.
FRAME_PREFIX = ">cBqqqQQ"
FRAME_PREFIX_BYTES = struct.calcsize(FRAME_PREFIX)
MAX_HEADER_BYTES = 1 << 30  # Frames that announce a larger header are rejected as corrupt.
MAX_DATA_BYTES = 1 << 40  # Frames that announce more data are rejected as corrupt.

# Flags of a frame. FILE: the data are the name of a file with the actual data. MORE_FRAMES: this is not the
# last frame of its message. CONTINUATION: this is not the first frame of its message.
FILE_FLAG, MORE_FRAMES_FLAG, CONTINUATION_FLAG = 1, 2, 4
MAC_BYTES = 32  # size of an authentication tag (HMAC-SHA256)

# If driver and worker share a folder or a storage, data of more than this many bytes are written to a file or
# object there, and the message contains only a reference.
MAX_INLINE_BYTES = 1 << 17
# Longer messages are sent as several frames with this many bytes of data. Encoding a frame copies its bytes,
# so only a small part of a long message is copied at a time.
MAX_CHUNK_BYTES = 1 << 17


class MessageKind(bytes, Enum):
    """The kinds of messages between a driver and a worker.

    The value of a kind is the byte that represents it in a frame.
    """

    # These messages are sent by the driver.
    MODULES = b"s"  # source code of modules that the user's functions need
    JOB = b"m"  # the start of a job: the function, and everything else that its tasks have in common
    TASK = b"c"  # a task to run
    CANCEL = b"x"  # the end of a job, which cancels its remaining tasks
    SEGMENT = b"d"  # the bytes that a worker has requested by FETCH
    NO_SEGMENT = b"f"  # the answer to FETCH if the bytes cannot be read

    # These messages are sent by a worker.
    HELLO = b"p"  # the first message, with the process id and a `WorkerIdentity`
    FETCH = b"n"  # a request for a part of a data block that only the driver can read
    CANCELLED = b"l"  # the answer to TASK if the task was cancelled
    UNUSABLE = b"u"  # the worker cannot run any task of the job, and exits
    TASK_REPLY = b"e"  # the result or the error of a task
    FINAL_REPLY = b"z"  # the result or the error of a task, after which the worker exits


_KIND_BY_BYTE: dict[bytes, MessageKind] = {kind.value: kind for kind in MessageKind}
REPLY_KINDS = {MessageKind.TASK_REPLY, MessageKind.FINAL_REPLY}
TASK_END_KINDS = {MessageKind.CANCELLED, MessageKind.UNUSABLE, *REPLY_KINDS}
EXIT_KINDS = {MessageKind.UNUSABLE, MessageKind.FINAL_REPLY}  # A worker exits after sending one of these.


class FrameError(ConnectionError):
    """Raised if received bytes are not a valid message, or if the sender does not have the secret key."""


class ProtocolMismatchError(Exception):
    """Raised if driver and worker use different versions of polarmap's protocol.

    This is not a `ConnectionError`, because reconnecting does not help.

    Parameters
    ----------
    peer_version : int
        The version that the peer uses.
    worker_id : int
        On the driver, the id of the connecting worker. On the worker, -1.
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
    """Raise ProtocolMismatchError if the peer uses another version of the protocol."""
    if peer_version != PROTOCOL_VERSION:
        raise ProtocolMismatchError(peer_version)


def exit_if_protocol_differs(driver_version: int) -> None:
    """Exit this worker process if its driver uses a different protocol version.

    The exit code is MISMATCH_EXIT_CODE.
    """
    try:
        check_protocol_version(driver_version)
    except ProtocolMismatchError as error:
        print(error, file=sys.stderr)
        sys.exit(MISMATCH_EXIT_CODE)


class Message(NamedTuple):
    """A message between a driver and a worker.

    Attributes
    ----------
    kind : MessageKind
        The kind of the message, which determines the meaning of its header and data.
    attempt_key : tuple of int
        The id of the job, the index of the task, and the number of the attempt (one run of the task) that the
        message refers to. Numbers that do not apply are -1.
    header : bytes
        A short description of the data. For most kinds of messages, it is a pickled tuple.
    data : bytes
        The actual content, such as the bytes of a result.
    is_file : bool
        Whether `data` is only the name of a file, which contains the actual data.
    """

    kind: MessageKind
    attempt_key: tuple[int, int, int] = (-1, -1, -1)
    header: bytes | bytearray = b""
    data: bytes | bytearray | memoryview = b""
    is_file: bool = False


class MessageAuthenticator:
    """Computes authentication tags (HMAC-SHA256) for messages in one direction of a connection.

    Each tag depends on the message's position in the stream, so messages cannot be dropped, repeated or
    reordered.
    """

    def __init__(self, key: bytes) -> None:
        self._key, self._n_tagged = key, 0

    def compute_tag(self, buffers: Iterable[bytes | bytearray | memoryview]) -> bytes:
        """Return the tag of the next message, which consists of the concatenated `buffers`."""
        numbered_buffers = self._n_tagged.to_bytes(8, "big"), *buffers
        self._n_tagged += 1
        # hmac.digest is faster for short messages, but needs a copy of all bytes and is limited to 2 GiB.
        if sum(map(len, numbered_buffers)) < MAX_INLINE_BYTES:
            return hmac.digest(self._key, b"".join(numbered_buffers), "sha256")
        mac = hmac.new(self._key, digestmod="sha256")
        for buffer in numbered_buffers:
            mac.update(buffer)
        return mac.digest()


class ChannelAuthenticators(NamedTuple):
    """The two authenticators that one end of a connection uses.

    `outgoing` computes the tags of sent messages, and `incoming` computes the expected tags of received ones.
    """

    outgoing: MessageAuthenticator
    incoming: MessageAuthenticator


def encode_frame(
    message: Message, authenticator: MessageAuthenticator | None = None, flags: int = 0
) -> bytes:
    """Encode a message as a single frame, which is the sequence of bytes to send.

    If an `authenticator` is given, the frame ends with an authentication tag.
    """
    kind, attempt_key, header, data, is_file = message
    prefix = struct.pack(FRAME_PREFIX, kind, flags | is_file, *attempt_key, len(header), len(data))
    buffers = prefix, header, data
    return b"".join(buffers if authenticator is None else (*buffers, authenticator.compute_tag(buffers)))


def split_message(message: Message) -> Iterator[Message]:
    """Split a long message, and yield short messages with consecutive chunks of its header and data.

    The data are not copied.
    """
    header, data = memoryview(message.header), memoryview(message.data)
    for start in range(0, len(header), MAX_CHUNK_BYTES):
        yield message._replace(header=bytes(header[start : start + MAX_CHUNK_BYTES]), data=b"")
    for start in range(0, len(data), MAX_CHUNK_BYTES):
        yield message._replace(header=b"", data=data[start : start + MAX_CHUNK_BYTES])


class FrameDecoder:
    """Decodes messages from a byte stream that arrives in arbitrary pieces.

    A long message consists of several frames. The sender can abort it by starting another message. The frames
    received so far are then discarded.

    Parameters
    ----------
    authenticator : MessageAuthenticator or None
        Used to verify the authentication tag of each frame. None if frames have no tags.

    Examples
    --------
    >>> frames = FrameDecoder()
    >>> sent = encode_frame(Message(MessageKind.TASK_REPLY, (1, 2, 0), b"header", b"data"))
    >>> list(frames.feed(sent[:9])), [message.attempt_key for message in frames.feed(sent[9:])]
    ([], [(1, 2, 0)])
    """

    def __init__(self, authenticator: MessageAuthenticator | None = None) -> None:
        self._buffer, self._authenticator = bytearray(), authenticator
        self._partial_message: Message | None = None  # a message of which only the first frames have arrived

    def feed(self, received_bytes: bytes) -> Iterator[Message]:
        """Add received bytes, and yield every message that they complete.

        Raises FrameError if the bytes are invalid.
        """
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
                # A bytearray cannot be shortened while views of it exist. Release them explicitly, because a
                # profiler may hold references to local variables.
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
        """Append a frame to the message whose first frames have already arrived, and return this message.

        Raises FrameError if the frame belongs to another message.
        """
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
