"""Tasks in a pool: they run on daemon threads, and are left when nobody waits for them any more.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
from collections.abc import Callable
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from polarmap.worker.block_cache import LOOK_SECONDS, BlockCache
from polarmap.worker.messages import Reply, StoredBlock, Ticket
from polarmap.worker.processes import has_lost_parent
from polarmap.worker.program import TaskIO, run_task
from polarmap.worker.pytree import Structure
from polarmap.worker.stream import Message
from polarmap.worker.threads import limits, run_on_daemon

POLL_SECONDS = 0.02  # between looks at files that driver and workers of one machine share
MARK = ".began"  # how the file ends that tells the driver that an attempt has begun
KEPT_SECONDS = 60.0  # for which stored blocks are kept

Function = Callable[[Any], Any]
Call = Callable[[], Message | None]


class ThreadLink:
    """What an attempt in the driver's process shares with the driver.

    began : when the attempt did, on the monotonic clock; None before.
    """

    def __init__(self) -> None:
        self.began: float | None = None
        self._end: SimpleQueue[Message | None] = SimpleQueue()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._is_cancelled = True
        self._end.put(None)

    def start_seen(self) -> float | None:
        """Return when the attempt began, on the monotonic clock; None before."""
        return self.began

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._is_cancelled

    def reply_of(self, call: Call) -> Message | None:
        """What a call on a daemon thread returns; None as soon as nobody waits any more."""
        self.began = time.monotonic()
        if self._is_cancelled:  # the driver may have looked a moment before, and seen that it had not begun
            self.began = None
            return None
        run_on_daemon(lambda: self._end.put(call()))
        return self._end.get()


class FolderLink(NamedTuple):
    """What attempts in other processes share with the driver: a folder that is there while that waits.

    folder : to be seen from the driver's machine only.
    machine : its name, and the directory that the folder lies in.
    attempt : name of a file that is there when nobody waits for this one any more.
    """

    folder: str
    machine: tuple[str, int, int]
    attempt: str = "none"

    @classmethod
    def to(cls, folder: str) -> FolderLink:
        """The link to this process, by a folder of it."""
        return cls(folder, _machine(folder))

    def cancel(self) -> None:
        """Nobody waits for this attempt any more."""
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt), "x").close()

    def start_seen(self) -> float | None:
        """Return when the attempt began, on the monotonic clock; None if its worker has not left a mark."""
        try:
            marked = os.stat(os.path.join(self.folder, self.attempt + MARK)).st_mtime
        except OSError:
            return None
        return time.monotonic() - max(0.0, time.time() - marked)

    def mark_start(self) -> None:
        """Leave a mark for the driver; nothing on another machine, which cannot see the folder."""
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt + MARK), "x").close()

    def is_cancelled(self) -> bool:
        """Whether the folder is gone; on another machine, which cannot see it, nobody knows."""
        try:
            if os.path.isdir(self.folder):
                return os.path.exists(os.path.join(self.folder, self.attempt))
            return _machine(self.folder) == self.machine
        except OSError:
            return False

    def reply_of(self, call: Call) -> Message | None:
        """What a call on a daemon thread returns; None once the folder, or the parent, is gone."""
        self.mark_start()
        if self.is_cancelled():  # after the mark: a driver that looks later sees it, one before has cancelled
            return None
        end: SimpleQueue[Message | None] = SimpleQueue()
        run_on_daemon(lambda: end.put(call()))
        parent = os.getppid()
        while True:
            try:
                return end.get(timeout=POLL_SECONDS)
            except Empty:
                if self.is_cancelled() or has_lost_parent(parent):
                    return None


PoolLink = ThreadLink | FolderLink


def _machine(folder: str) -> tuple[str, int, int]:
    """The machine and the directory that a folder lies, or lay, in."""
    parent = os.stat(os.path.dirname(folder))
    return socket.gethostname(), parent.st_dev, parent.st_ino


@cache
def pool_blocks() -> BlockCache:
    """Stored blocks that this process, which others use, too, keeps for a while; then it begins anew."""
    blocks = BlockCache()
    run_on_daemon(partial(_let_go, blocks))
    return blocks


def kept_block(block: StoredBlock, structure: Structure, is_private: bool) -> Any:
    """A stored block, which this process keeps for a while."""
    return pool_blocks().load(block, structure, TaskIO().read, is_private)


def _let_go(blocks: BlockCache) -> None:
    """Drop cached blocks whose files are gone; all of them when the process ends."""
    until = time.monotonic() + KEPT_SECONDS
    while time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        blocks.forget_removed()
        if not len(blocks):
            break
    pool_blocks.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool_blocks.cache_clear)


class PoolIO(TaskIO):
    """What connects a task of a pool with its driver.

    f : a function, or the bytes of a pickled one.
    block : what f is called with, or what makes that.
    """

    def __init__(self, f: Function | bytes, block: Any, link: PoolLink) -> None:
        super().__init__()
        self._f, self._block, self._link = f, block, link

    def is_cancelled(self) -> bool:
        """Whether it is known that nobody waits any more."""
        return self._link.is_cancelled()

    def header(self, reply: Reply) -> Any:
        """A reply as it travels beside the bytes of its result: to another thread as it is."""
        if isinstance(self._link, ThreadLink):
            return reply
        return super().header(reply._replace(host=socket.gethostname()))

    def load(self, ticket: Ticket) -> tuple[Function, Any]:
        """f and the block."""
        f = pickle.loads(self._f) if isinstance(self._f, bytes) else self._f
        block = self._block
        if isinstance(block, partial):
            block = block()
        elif isinstance(block, np.ndarray):  # others may have it
            block = block.view()
            block.flags.writeable = False
        limits.include_loaded()
        return f, block


def run_in_pool(
    f: Function | bytes, block: Any, ticket: Ticket, link: PoolLink, threads: int
) -> Message | None:
    """The reply of a task; None if the task is left.

    It runs on a daemon thread: a straggler holds neither its pool's slot nor the exit of the interpreter.
    Libraries for linear algebra use so many `threads` meanwhile.
    """
    if link.is_cancelled():
        return None
    io = PoolIO(f, block, link)

    def call() -> Message | None:
        with limits.of_this_thread(threads):
            return run_task(ticket, io)

    with limits.of_process(threads):
        return link.reply_of(call)
