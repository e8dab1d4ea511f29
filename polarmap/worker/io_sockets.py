"""Tasks of a worker that stays: messages on a socket, blocks mapped from files.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import socket
import sys
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.worker.frames import LENGTHS, frame, plain_reply
from polarmap.worker.messages import Reply, StoredBlock, Ticket, describe
from polarmap.worker.objects import remove_parts, write_object
from polarmap.worker.parts import DamagedError, Part, Place, read_file, verified
from polarmap.worker.pytree import Array, Layout, Packed, Structure, unflatten
from polarmap.worker.run_task import run_task

INLINE_BYTES = 1 << 16  # larger results are files: no worker waits until its driver reads
MAPPED_BYTES = 1 << 18  # larger parts of blocks are mapped, smaller ones read
REMEMBERED = 100_000  # parts that were verified

Function = Callable[[Any], Any]


class Surroundings(NamedTuple):
    """What f finds around it, as it is in the driver."""

    folder: str
    module_path: tuple[str, ...]
    environment: dict[str, str]

    def take_over(self) -> None:
        """Make them those of this process."""
        with contextlib.suppress(OSError):  # gone: f may not need it
            os.chdir(self.folder)
        sys.path[:] = self.module_path
        for name in os.environ.keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment)


class Call(NamedTuple):
    """A task as it travels to a worker; the driver's side of the socket is trusted.

    map : number of the map that it belongs to.
    folders : for results, of which the first exists for as long as the map is waited for.
    ticket : whose block has no structure.
    f : bytes of the pickled function and of the structure of blocks, or the path of a file with them;
        None if the worker has them from the last task of the map.
    around : None if they have not changed.
    """

    map: int
    folders: tuple[str, ...]
    ticket: Ticket
    f: bytes | str | None
    around: Surroundings | None


def receive(connection: socket.socket) -> bytes | None:
    """The raw bytes of the next message; None when there is none any more."""
    lengths = _exactly(connection, LENGTHS.size)
    if lengths is None:
        return None
    plain, raw = LENGTHS.unpack(lengths)
    data = _exactly(connection, plain + raw)
    return None if data is None else bytes(memoryview(data)[plain:])


def _exactly(connection: socket.socket, count: int) -> bytearray | None:
    data = bytearray(count)
    with memoryview(data) as view:
        filled = 0
        while filled < count:
            received = connection.recv_into(view[filled:])
            if not received:
                return None
            filled += received
    return data


def serve_tasks(connection: socket.socket) -> None:
    """Do what the messages on a socket say, one after the other, until it is closed."""
    connection.sendall(frame({"process": os.getpid()}))
    io = SocketIO(connection)
    while True:
        message = receive(connection)
        if message is None:
            return
        io.run(pickle.loads(message))


class SocketIO:
    """What connects the tasks of a worker that stays with their driver."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._map = -1
        self._pickled: bytes | str = b""
        self._f: tuple[Function, Structure] | None = None
        self._folders: tuple[str, ...] = ()
        self._blocks = MappedBlocks()

    def run(self, call: Call) -> None:
        """Do a task and reply."""
        if call.around is not None:
            call.around.take_over()
        if call.map != self._map:
            self._map, self._f = call.map, None
        if call.f is not None:
            self._pickled = call.f
        self._folders = call.folders
        ticket = call.ticket
        reply = run_task(ticket, self)
        if reply is None:
            self._connection.sendall(frame({"task": ticket.task, "attempt": ticket.attempt}))
        else:
            self._send(reply, "end")

    def load(self, ticket: Ticket) -> tuple[Function, Any]:
        """f, made once in each map, and the block, which f may write into."""
        if self._f is None:
            self._f = self._unpickled()
        f, structure = self._f
        assert ticket.block is not None
        return f, self._blocks.load(ticket.block._replace(structure=structure))

    def is_cancelled(self) -> bool:
        """Whether the folder of the map is gone."""
        return not os.path.isdir(self._folders[0])

    def hand_in(self, reply: Reply) -> bool:
        """Send the result of a subtask; what is cancelled ends here."""
        if self.is_cancelled():
            raise InterruptedError("nobody waits for this task any more")
        self._send(reply, "part")
        return True

    def write(self, place: Place, key: str, data: bytes) -> None:
        """Store a part of the result."""
        write_object(place, key, data)

    def remove(self, place: Place, parts: tuple[Part, ...]) -> None:
        """Take such parts out of storage again."""
        remove_parts(place, parts)

    def _unpickled(self) -> tuple[Function, Structure]:
        data = self._pickled
        if isinstance(data, str):
            with open(data, "rb") as file:
                data = file.read()
        f, structure = pickle.loads(data)
        return f, structure

    def _send(self, reply: Reply, kind: str) -> None:
        """A reply as a message, its result in a file where it is large."""
        try:
            fields = plain_reply(reply)
        except Exception as error:
            reply = reply._replace(result=None, stored=None, error=describe(error))
            kind, fields = "end", plain_reply(reply)
        fields["kind"] = kind
        data = b"" if reply.result is None else reply.result.data
        if len(data) > INLINE_BYTES:
            fields["file"] = self._left(reply, data)
            data = b""
        self._connection.sendall(frame(fields, data))

    def _left(self, reply: Reply, data: Any) -> list[Any]:
        """The name of a file with these bytes, and in which of the map's folders it lies; -1 if in none."""
        name = "-".join(map(str, (reply.task, reply.attempt, *reply.subtasks)))
        if self.is_cancelled():
            return [-1, name]
        for number, folder in enumerate(self._folders):
            try:
                if number:  # of no use to most maps
                    os.makedirs(folder, exist_ok=True)
                with open(os.path.join(folder, name), "xb") as file:
                    file.write(data)
            except OSError:  # no room, or nobody waits any more
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
            else:
                return [number, name]
        return [-1, name]


class MappedBlocks:
    """Blocks that lie in files: each task gets its own private mapping, of the same memory."""

    def __init__(self) -> None:
        self._verified: set[tuple[Any, ...]] = set()

    def load(self, block: StoredBlock) -> Any:
        """A block; DamagedError if it is not as it was written."""
        buffers = [self._bytes(block.source.place, part) for part in block.parts]
        return unflatten(block.structure, leaves_of(buffers, block.layout))

    def _bytes(self, folder: str, part: Part) -> Any:
        """A writable buffer with the bytes of a part, which nobody else sees written."""
        if not part.key:
            return bytearray(part.size)
        if part.size < MAPPED_BYTES:
            return verified(part, read_file(folder, part))
        try:
            with open(os.path.join(folder, part.key), "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < part.offset + part.size:
                    raise DamagedError(
                        f"{part.key} has {max(0, status.st_size - part.offset)} of {part.size} bytes "
                        f"from {part.offset} on"
                    )
                begin = part.offset - part.offset % mmap.ALLOCATIONGRANULARITY
                length = part.offset - begin + part.size
                mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)
        except FileNotFoundError:
            raise DamagedError(f"{part.key} is missing") from None
        buffer = memoryview(mapped)[part.offset - begin :]
        if part.crc32 is not None:
            seen = (folder, *part, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen not in self._verified:
                verified(part, buffer)
                if len(self._verified) >= REMEMBERED:
                    self._verified.clear()
                self._verified.add(seen)
        return buffer


def leaves_of(buffers: list[Any], layout: Layout) -> list[Array]:
    """The leaves whose bytes are those of the buffers in a row; where they lie, if in one of them.

    >>> [leaf.tolist() for leaf in leaves_of([b"abc", b"d"], (("S1", (2,)), ("S1", (2,))))]
    [[b'a', b'b'], [b'c', b'd']]
    """
    leaves: list[Array] = []
    start = 0
    for dtype, shape in layout:
        size = np.dtype(dtype).itemsize * prod(shape)
        leaves += Packed((), ((dtype, shape),), _run(buffers, start, size)).views()
        start += size
    return leaves


def _run(buffers: list[Any], start: int, size: int) -> Any:
    """A run of the bytes of all buffers in a row: a view if it lies in one of them, else a copy."""
    before = 0
    for buffer in buffers:
        if before <= start and start + size <= before + len(buffer):
            return memoryview(buffer)[start - before : start - before + size]
        before += len(buffer)
    return bytearray().join(buffers)[start : start + size]
