"""Tasks of a worker that stays: messages on a socket, blocks mapped from files.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from polarmap.worker.frames import LENGTHS, frame, plain_reply
from polarmap.worker.kept_blocks import KeptBlocks, OnReadOnlyBlocks
from polarmap.worker.messages import Reply, Ticket, describe
from polarmap.worker.objects import remove_parts, write_object
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import Structure
from polarmap.worker.run_task import run_task

INLINE_BYTES = 1 << 16  # larger results are files: no worker waits until its driver reads
LOOK_SECONDS = 1.0  # between looks whether blocks that are kept have been removed

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
        while len(io.blocks) and not select.select([connection], [], [], LOOK_SECONDS)[0]:
            io.blocks.forget_removed()
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
        self._f: tuple[Function, OnReadOnlyBlocks, Structure] | None = None
        self._folders: tuple[str, ...] = ()
        self.blocks = KeptBlocks()

    def run(self, call: Call) -> None:
        """Do a task and reply."""
        if call.around is not None:
            call.around.take_over()
        if call.map != self._map:
            self._map, self._f = call.map, None
            self.blocks.forget_removed()
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
        """f, made once in each map, and the block.

        A first attempt gets a block that is kept, which f must not change; a further one has a block of
        its own: what f is made of may write where numpy does not see it, and die of that.
        """
        if self._f is None:
            f, structure = self._unpickled()
            self._f = f, OnReadOnlyBlocks(f), structure
        f, f_on_kept, structure = self._f
        assert ticket.block is not None
        is_private = ticket.attempt > 0
        block = self.blocks.load(ticket.block._replace(structure=structure), is_private)
        return f if is_private else f_on_kept, block

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
