"""Tasks in a pool: they run on daemon threads, and are left when nobody waits for them any more.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from polarmap.worker import pool_blocks
from polarmap.worker.block_cache import OnReadOnlyBlocks
from polarmap.worker.daemon_threads import run_on_daemon
from polarmap.worker.encrypted_io import ENCRYPTED
from polarmap.worker.liveness import has_lost_parent
from polarmap.worker.messages import Reply, Ticket, plain, reply_of_bytes
from polarmap.worker.parts import Part, Place, remove_parts, write_object
from polarmap.worker.run_task import run_task
from polarmap.worker.thread_limits import limits

KEPT_BYTES = 1 << 20  # of a function, at most, that is kept for the next task
POLL_SECONDS = 0.02  # how often a worker elsewhere looks whether its task is cancelled

Function = Callable[[Any], Any]
Call = Callable[[], Reply | None]


class Link(Protocol):
    """What a task in a pool shares with the driver."""

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more, as far as can be seen from here."""
        ...

    def hand_in(self, reply: Reply) -> bool:
        """Send the result of a subtask; False if that did not work."""
        ...

    def reply_of(self, call: Call) -> Reply | None:
        """What a call on a daemon thread returns; None as soon as it is seen that nobody waits any more."""
        ...


class ThreadLink:
    """Of a task in the driver's process.

    Attributes
    ----------
    replies : SimpleQueue
        Of subtasks.
    began : dict
        From task and attempt to when it began, on the monotonic clock.
    """

    def __init__(self, replies: SimpleQueue[Any]) -> None:
        self.replies = replies
        self.began: dict[tuple[int, int], float] = {}
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._ends: set[SimpleQueue[Reply | None]] = set()  # where calls are waited for

    def cancel(self) -> None:
        """Nobody waits any more, which those who wait for calls are told now."""
        with self._lock:
            self._is_cancelled = True
            for end in self._ends:
                end.put(None)

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._is_cancelled

    def hand_in(self, reply: Reply) -> bool:
        """Send the result of a subtask."""
        self.replies.put(reply)
        return True

    def reply_of(self, call: Call) -> Reply | None:
        """What a call on a daemon thread returns; None as soon as nobody waits any more."""
        end: SimpleQueue[Reply | None] = SimpleQueue()
        with self._lock:
            if self._is_cancelled:
                return None
            self._ends.add(end)
        run_on_daemon(lambda: end.put(call()))
        reply = end.get()
        with self._lock:
            self._ends.discard(end)
        return reply


class FolderLink(NamedTuple):
    """Of a task in another process: a folder that exists for as long as the driver waits.

    folder : to be seen from the driver's machine only; results of subtasks are files in it.
    machine : its name, and the directory that the folder lies in.
    scratch : the folder of blocks, if the driver has started this process: it is removed when that dies.
    """

    folder: str
    machine: tuple[str, int, int]
    scratch: str = ""

    @classmethod
    def to(cls, folder: str, scratch: str = "") -> FolderLink:
        """The link to this process, by a folder of it."""
        return cls(folder, _machine(folder), scratch)

    def is_cancelled(self) -> bool:
        """Whether the folder is gone; on another machine, which cannot see it, nobody knows."""
        if os.path.isdir(self.folder):
            return False
        try:
            return _machine(self.folder) == self.machine
        except OSError:
            return False

    def hand_in(self, reply: Reply) -> bool:
        """Leave the result of a subtask in the folder; False where that does not work."""
        path = os.path.join(self.folder, f"{reply.task}-{reply.attempt}-{reply.subtasks[0]}")
        try:
            with open(path + ".part", "wb") as file:
                file.write(reply.to_bytes())
            os.replace(path + ".part", path)
        except Exception:
            return False
        return True

    def reply_of(self, call: Call) -> Reply | None:
        """What a call on a daemon thread returns; None once the folder is gone, or this process's parent."""
        end: SimpleQueue[Reply | None] = SimpleQueue()
        run_on_daemon(lambda: end.put(call()))
        parent = os.getppid()
        while True:
            try:
                return end.get(timeout=POLL_SECONDS)
            except Empty:
                if self.is_cancelled() or has_lost_parent(parent):
                    return None

    def take(self) -> list[Reply]:
        """The results of subtasks that lie in the folder, which is the driver's: each is told once."""
        replies: list[Reply] = []
        if not os.path.isdir(self.folder):
            return replies
        for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
            if not entry.name.replace("-", "").isdecimal():  # half a result, or the owner of the folder
                continue
            with open(entry.path, "rb") as file:
                reply = reply_of_bytes(file.read())
            os.unlink(entry.path)
            if reply is not None:
                replies.append(reply)
        return replies


def _machine(folder: str) -> tuple[str, int, int]:
    """The machine and the directory that a folder lies, or lay, in."""
    parent = os.stat(os.path.dirname(folder))
    return os.uname().nodename, parent.st_dev, parent.st_ino


class PoolIO:
    """What connects a task of a pool with its driver.

    f : a function, or the bytes of a pickled one.
    block : what f is called with; None if the ticket names a stored block.
    """

    encrypted = ENCRYPTED

    def __init__(self, f: Function | bytes, block: Any, link: Link) -> None:
        self._f, self._block, self._link = f, block, link
        self.is_cancelled, self.hand_in = link.is_cancelled, link.hand_in

    def load(self, ticket: Ticket) -> tuple[Function, Any]:
        """f and the block.

        A first attempt gets a stored block that is kept, which f must not change; a further one has a block
        of its own: what f is made of may write where numpy does not see it, and die of that.
        """
        f = self._f if callable(self._f) else _unpickled(self._f, self._link)
        if ticket.block is not None:
            scratch = self._link.scratch if isinstance(self._link, FolderLink) else ""
            block = pool_blocks.blocks.load(ticket.block, ticket.attempt > 0, scratch)
        else:
            block = self._block.make() if isinstance(self._block, LazyBlock) else self._block
        limits.include_loaded()
        return f, block

    def write(self, place: Place, key: str, data: Any) -> None:
        """Store a part of the result."""
        write_object(place, key, data)

    def remove(self, place: Place, parts: tuple[Part, ...]) -> None:
        """Take such parts out of storage again."""
        remove_parts(place, parts)


_last: tuple[str, Function] = "", len  # the function of the latest map, which its folder names


def _unpickled(f: bytes, link: Link) -> Function:
    """A function, made once in each map where tasks come one by one."""
    global _last
    folder = link.folder if isinstance(link, FolderLink) and link.scratch and len(f) <= KEPT_BYTES else ""
    last = _last
    if not folder or last[0] != folder:
        last = folder, OnReadOnlyBlocks(pickle.loads(f))
        _last = last if folder else ("", len)
    return last[1]


class LazyBlock(NamedTuple):
    """A block that its worker, a thread of the driver's process, is to read."""

    make: Callable[[], Any]


def run_in_pool(
    f: Function | bytes, block: Any, ticket: Ticket, link: Link, threads: int
) -> Reply | tuple[Any, ...] | None:
    """The reply of a task, a plain one to another process; None if the task is left.

    It runs on a daemon thread: a straggler holds neither its pool's slot nor the exit of the interpreter.
    Libraries for linear algebra use so many `threads` meanwhile.
    """
    if link.is_cancelled():
        return None
    if isinstance(link, ThreadLink):
        link.began[ticket.task, ticket.attempt] = time.monotonic()
    io = PoolIO(f, block, link)

    def call() -> Reply | None:
        with limits.of_this_thread(threads):
            return run_task(ticket, io)

    with limits.of_process(threads):
        reply = link.reply_of(call)
    return plain(reply) if reply is not None and isinstance(link, FolderLink) else reply
