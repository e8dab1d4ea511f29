"""Messages between a driver and its workers, and the frames in which they travel.

A frame is the kind, attempt key and lengths of a message, a pickled header, and raw bytes. Over a network
each frame ends with an authentication tag, which is verified before anything of the frame is used.
Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FRAME_PREFIX = ">cBqqqQQ"  # as struct writes what precedes header and data, whose lengths come last
FRAME_PREFIX_BYTES = struct.calcsize(FRAME_PREFIX)
MAX_HEADER_BYTES = 1 << 30  # more than any header has: what claims more is not a message
MAX_DATA_BYTES = 1 << 40  # the same of data
# Flags of a frame: its data name a file; another frame of its message follows; an earlier one precedes it.
FILE_FLAG, MORE_FRAMES_FLAG, CONTINUATION_FLAG = 1, 2, 4
MAC_BYTES = 32
MAX_INLINE_BYTES = 1 << 17  # of data: larger ones are a file or an object of their own, where there are some
MAX_CHUNK_BYTES = 1 << 17  # Most bytes of a longer message that are framed at once: only these are copied.

# Of a driver: modules that functions need; what the tasks of a map have in common; a task; that a map is
# over, so that nobody waits for its tasks; a part of a block that was asked for; that it cannot be read.
MODULES, JOB, TASK, CANCEL, SEGMENT, NO_SEGMENT = b"s", b"m", b"c", b"x", b"d", b"f"
# Of a worker: its process; a part of a block that it needs; that it has left a task that nobody waits for;
# that it is not fit for one; the end of a task; the same, of a worker that is not fit for another.
HELLO, FETCH, CANCELLED, UNUSABLE, TASK_REPLY, FINAL_REPLY = b"p", b"n", b"l", b"u", b"e", b"z"
DRIVER_KINDS = {MODULES, JOB, TASK, CANCEL, SEGMENT, NO_SEGMENT}
MESSAGE_KINDS = DRIVER_KINDS | {HELLO, FETCH, CANCELLED, UNUSABLE, TASK_REPLY, FINAL_REPLY}
TASK_END_KINDS = {CANCELLED, UNUSABLE, TASK_REPLY, FINAL_REPLY}  # each ends a call
EXIT_KINDS = {UNUSABLE, FINAL_REPLY}  # after these a worker ends itself


class FrameError(ConnectionError):
    """Bytes that are no message, or not of one who has the key."""


class Message(NamedTuple):
    """What either side says.

    attempt_key : number of the map, task and attempt that it is about.
    is_file : whether `data` names a file that holds the data.
    """

    kind: bytes
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
    >>> sent = encode_frame(Message(TASK_REPLY, (1, 2, 0), b"header", b"data"))
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
            kind, flags, job_id, task, attempt, header_size, data_size = prefix
            if kind not in MESSAGE_KINDS or header_size > MAX_HEADER_BYTES or data_size > MAX_DATA_BYTES:
                raise FrameError(f"a message {kind!r} of {header_size} and {data_size} bytes")
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
            raise FrameError(f"a frame continues a message {next_frame.kind!r} that was not begun")
        assert isinstance(partial_message.header, bytearray) and isinstance(partial_message.data, bytearray)
        partial_message.header.extend(next_frame.header)
        partial_message.data.extend(next_frame.data)
        header_size, data_size = len(partial_message.header), len(partial_message.data)
        if header_size > MAX_HEADER_BYTES or data_size > MAX_DATA_BYTES:
            raise FrameError(f"a message {next_frame.kind!r} of {header_size} and {data_size} bytes")
        return partial_message
