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

from polarmap.worker.blas_threads import thread_limiter
from polarmap.worker.block_cache import CACHE_POLL_INTERVAL, BlockCache
from polarmap.worker.daemon_threads import run_in_daemon_thread
from polarmap.worker.messages import Message
from polarmap.worker.processes import has_lost_parent
from polarmap.worker.pytree import Structure
from polarmap.worker.task_execution import TaskIO, run_task
from polarmap.worker.task_records import BlockRef, TaskReply, TaskRequest

CANCEL_POLL_INTERVAL = 0.02  # between looks at files that driver and workers of one machine share
START_MARK_SUFFIX = ".began"  # how the file ends that tells the driver that an attempt has begun
CACHE_SECONDS = 60.0  # for which stored blocks are kept

Function = Callable[[Any], Any]
Thunk = Callable[[], Message | None]


class ThreadCancelToken:
    """What an attempt in the driver's process shares with the driver.

    started_at : when the attempt did, on the monotonic clock; None before.
    """

    def __init__(self) -> None:
        self.started_at: float | None = None
        self._reply_queue: SimpleQueue[Message | None] = SimpleQueue()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._is_cancelled = True
        self._reply_queue.put(None)

    def get_start_time(self) -> float | None:
        """Return when the attempt began, on the monotonic clock; None before."""
        return self.started_at

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return self._is_cancelled

    def run_until_cancelled(self, thunk: Thunk) -> Message | None:
        """What a call on a daemon thread returns; None as soon as nobody waits any more."""
        self.started_at = time.monotonic()
        if self._is_cancelled:  # the driver may have looked a moment before, and seen that it had not begun
            self.started_at = None
            return None
        run_in_daemon_thread(lambda: self._reply_queue.put(thunk()))
        return self._reply_queue.get()


class FolderCancelToken(NamedTuple):
    """What attempts in other processes share with the driver: a folder that is there while that waits.

    folder : to be seen from the driver's machine only.
    machine_id : its name, and the directory that the folder lies in.
    attempt_name : name of a file that is there when nobody waits for this one any more.
    """

    folder: str
    machine_id: tuple[str, int, int]
    attempt_name: str = "none"

    @classmethod
    def from_folder(cls, folder: str) -> FolderCancelToken:
        """The link to this process, by a folder of it."""
        return cls(folder, _get_machine_id(folder))

    def cancel(self) -> None:
        """Nobody waits for this attempt any more."""
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt_name), "x").close()

    def get_start_time(self) -> float | None:
        """Return when the attempt began, on the monotonic clock; None if its worker has not left a mark."""
        try:
            marked_at = os.stat(os.path.join(self.folder, self.attempt_name + START_MARK_SUFFIX)).st_mtime
        except OSError:
            return None
        return time.monotonic() - max(0.0, time.time() - marked_at)

    def mark_started(self) -> None:
        """Leave a mark for the driver; nothing on another machine, which cannot see the folder."""
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt_name + START_MARK_SUFFIX), "x").close()

    def is_cancelled(self) -> bool:
        """Whether the folder is gone; on another machine, which cannot see it, nobody knows."""
        try:
            if os.path.isdir(self.folder):
                return os.path.exists(os.path.join(self.folder, self.attempt_name))
            return _get_machine_id(self.folder) == self.machine_id
        except OSError:
            return False

    def run_until_cancelled(self, thunk: Thunk) -> Message | None:
        """What a call on a daemon thread returns; None once the folder, or the parent, is gone."""
        self.mark_started()
        if self.is_cancelled():  # after the mark: a driver that looks later sees it, one before has cancelled
            return None
        reply_queue: SimpleQueue[Message | None] = SimpleQueue()
        run_in_daemon_thread(lambda: reply_queue.put(thunk()))
        parent_pid = os.getppid()
        while True:
            try:
                return reply_queue.get(timeout=CANCEL_POLL_INTERVAL)
            except Empty:
                if self.is_cancelled() or has_lost_parent(parent_pid):
                    return None


CancelToken = ThreadCancelToken | FolderCancelToken


def _get_machine_id(folder: str) -> tuple[str, int, int]:
    """The machine and the directory that a folder lies, or lay, in."""
    parent_status = os.stat(os.path.dirname(folder))
    return socket.gethostname(), parent_status.st_dev, parent_status.st_ino


@cache
def get_shared_block_cache() -> BlockCache:
    """Stored blocks that this process, which others use, too, keeps for a while; then it begins anew."""
    block_cache = BlockCache()
    run_in_daemon_thread(partial(_evict_periodically, block_cache))
    return block_cache


def load_cached_block(block_ref: BlockRef, structure: Structure, writable: bool) -> Any:
    """A stored block, which this process keeps for a while."""
    return get_shared_block_cache().load_block(block_ref, structure, TaskIO().read_segment, writable)


def _evict_periodically(block_cache: BlockCache) -> None:
    """Drop cached blocks whose files are gone; all of them when the process ends."""
    deadline = time.monotonic() + CACHE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(CACHE_POLL_INTERVAL)
        block_cache.evict_removed_blocks()
        if not len(block_cache):
            break
    get_shared_block_cache.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=get_shared_block_cache.cache_clear)


class FutureTaskIO(TaskIO):
    """What connects a task of a pool with its driver.

    f : a function, or the bytes of a pickled one.
    block : what f is called with, or what makes that.
    """

    def __init__(self, f: Function | bytes, block: Any, cancel_token: CancelToken) -> None:
        super().__init__()
        self._f, self._block, self._cancel_token = f, block, cancel_token

    def is_cancelled(self) -> bool:
        """Whether it is known that nobody waits any more."""
        return self._cancel_token.is_cancelled()

    def encode_header(self, reply: TaskReply) -> Any:
        """A reply as it travels beside the bytes of its result: to another thread as it is."""
        if isinstance(self._cancel_token, ThreadCancelToken):
            return reply
        return super().encode_header(reply._replace(host=socket.gethostname()))

    def load_inputs(self, request: TaskRequest) -> tuple[Function, Any]:
        """f and the block."""
        f = pickle.loads(self._f) if isinstance(self._f, bytes) else self._f
        block = self._block
        if isinstance(block, partial):
            block = block()
        elif isinstance(block, np.ndarray):  # others may have it
            block = block.view()
            block.flags.writeable = False
        thread_limiter.limit_newly_loaded_libraries()
        return f, block


def run_task_in_future(
    f: Function | bytes, block: Any, request: TaskRequest, cancel_token: CancelToken, n_threads: int
) -> Message | None:
    """The reply of a task; None if the task is left.

    It runs on a daemon thread: a straggler holds neither its pool's slot nor the exit of the interpreter.
    Libraries for linear algebra use so many `n_threads` meanwhile.
    """
    if cancel_token.is_cancelled():
        return None
    task_io = FutureTaskIO(f, block, cancel_token)

    def execute() -> Message | None:
        with thread_limiter.limit_current_thread(n_threads):
            return run_task(request, task_io)

    with thread_limiter.limit_process_threads(n_threads):
        return cancel_token.run_until_cancelled(execute)
