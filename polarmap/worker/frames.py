"""Messages between a driver and its workers: kind, order and lengths, a pickled header, raw bytes.

Nothing is unpickled here. Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

PREFIX = ">c?qqqQQ"  # as struct writes what precedes header and data, whose lengths come last
PREFIX_BYTES = struct.calcsize(PREFIX)
HEADER_BYTES = 1 << 30  # more than any header has: what claims more is not a message
DATA_BYTES = 1 << 40  # the same of data
TAG_BYTES = 32

# Of a driver: what to do. Of a worker: its process; a part of a block that it needs; that it has left a task
# that nobody waits for; that it is not fit for one; the end of a task.
ORDER, PROCESS, NEED, LEFT, UNFIT, END = b"o", b"p", b"n", b"l", b"u", b"e"
KINDS = {ORDER, PROCESS, NEED, LEFT, UNFIT, END}
REPLIES = {LEFT, UNFIT, END}  # each ends an order


class FrameError(Exception):
    """Bytes that are no message, or not of one who has the key."""


class Message(NamedTuple):
    """What either side says.

    order : number of the map, task and attempt that it is about.
    is_file : whether `data` names a file of the map that holds the data.
    """

    kind: bytes
    order: tuple[int, int, int] = (-1, -1, -1)
    header: bytes | bytearray = b""
    data: bytes | bytearray | memoryview = b""
    is_file: bool = False


class Seal:
    """Tags of the messages that travel in one direction: of each and its place in the sequence."""

    def __init__(self, key: bytes) -> None:
        self._key, self._count = key, 0

    def tag(self, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
        """Of the next message, whose bytes are these in a row."""
        code = hmac.new(self._key, self._count.to_bytes(8, "big"), "sha256")
        for part in parts:
            code.update(part)
        self._count += 1
        return code.digest()

    def verify(self, parts: Iterable[bytes | bytearray | memoryview], tag: bytes | bytearray) -> None:
        """FrameError unless the next message has this tag."""
        if not hmac.compare_digest(self.tag(parts), tag):
            raise FrameError("a message was changed on its way")


class Seals(NamedTuple):
    """Of the two directions of a connection."""

    to_worker: Seal
    to_driver: Seal


def frame(message: Message, seal: Seal | None = None) -> bytes:
    """A message as it travels; `seal`: with a tag at its end."""
    kind, order, header, data, is_file = message
    parts = struct.pack(PREFIX, kind, is_file, *order, len(header), len(data)), header, data
    return b"".join(parts if seal is None else (*parts, seal.tag(parts)))


class Frames:
    """The messages in a stream of bytes, as they become complete.

    seal : of their tags; None if they have none.

    >>> frames = Frames()
    >>> sent = frame(Message(END, (1, 2, 0), b"header", b"data"))
    >>> list(frames.of(sent[:9])), [message.order for message in frames.of(sent[9:])]
    ([], [(1, 2, 0)])
    """

    def __init__(self, seal: Seal | None = None) -> None:
        self._bytes, self._seal = bytearray(), seal

    def of(self, received: bytes) -> Iterator[Message]:
        """Those that are complete with these bytes; FrameError if they are none."""
        self._bytes += received
        tag_bytes = 0 if self._seal is None else TAG_BYTES
        while len(self._bytes) >= PREFIX_BYTES:
            kind, is_file, number, task, attempt, header, data = struct.unpack_from(PREFIX, self._bytes)
            if kind not in KINDS or header > HEADER_BYTES or data > DATA_BYTES:
                raise FrameError(f"a message {kind!r} of {header} and {data} bytes")
            start, end = PREFIX_BYTES + header, PREFIX_BYTES + header + data
            if len(self._bytes) < end + tag_bytes:
                return
            if self._seal is not None:
                with memoryview(self._bytes) as view:
                    self._seal.verify((view[:end],), self._bytes[end : end + TAG_BYTES])
            order = number, task, attempt
            message = Message(kind, order, self._bytes[PREFIX_BYTES:start], self._bytes[start:end], is_file)
            del self._bytes[: end + tag_bytes]
            yield message
