"""Run a task in a worker of a `concurrent.futures` executor, and abandon it once the driver cancels it.

The task runs on a daemon thread while the worker's own thread waits for the result or for the cancellation:

    executor thread:  mark the start | wait for the reply ... | return the reply, or None if cancelled
    daemon thread:                   | read the block, call f | (an abandoned call continues to its end)

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

# Seconds between checks of the files by which a driver on the same machine cancels attempts.
CANCEL_POLL_INTERVAL = 0.02
START_MARK_SUFFIX = ".began"  # suffix of the file that shows the driver that an attempt has started
CACHE_SECONDS = 60.0  # seconds after which the shared block cache is discarded

Function = Callable[[Any], Any]
Thunk = Callable[[], Message | None]


class ThreadCancelToken:
    """A cancellation token for an attempt that runs on a thread of the driver's process.

    Attributes
    ----------
    started_at : float or None
        When the attempt started, in seconds on the monotonic clock; None before that.
    """

    def __init__(self) -> None:
        self.started_at: float | None = None
        self._reply_queue: SimpleQueue[Message | None] = SimpleQueue()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Cancel the attempt. A running call continues, but `run_until_cancelled` stops waiting for it."""
        self._is_cancelled = True
        self._reply_queue.put(None)

    def get_start_time(self) -> float | None:
        """Return when the attempt started, in seconds on the monotonic clock; None before that."""
        return self.started_at

    def is_cancelled(self) -> bool:
        """Return whether the attempt has been cancelled."""
        return self._is_cancelled

    def run_until_cancelled(self, thunk: Thunk) -> Message | None:
        """Run `thunk` on a daemon thread and return its result, or None once the attempt is cancelled."""
        self.started_at = time.monotonic()
        # If the attempt was cancelled before `started_at` was set, the driver believes that it never started.
        if self._is_cancelled:
            self.started_at = None
            return None
        run_in_daemon_thread(lambda: self._reply_queue.put(thunk()))
        return self._reply_queue.get()


class FolderCancelToken(NamedTuple):
    """A cancellation token for an attempt in another process: files in a folder of the driver.

    The driver removes the folder when its session ends, which cancels all attempts.

    Attributes
    ----------
    folder : str
        Path of the folder, which exists on the driver's machine only.
    machine_id : tuple
        The driver's host name, and the device and inode of the directory that contains the folder.
    attempt_name : str
        Name of the file in the folder whose existence cancels this attempt.
    """

    folder: str
    machine_id: tuple[str, int, int]
    attempt_name: str = "none"

    @classmethod
    def from_folder(cls, folder: str) -> FolderCancelToken:
        """Return a token for attempts whose driver is this process, which has created `folder`."""
        return cls(folder, _get_machine_id(folder))

    def cancel(self) -> None:
        """Cancel this attempt by creating its file."""
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt_name), "x").close()

    def get_start_time(self) -> float | None:
        """Return when the attempt was marked as started, on the monotonic clock; None before that."""
        try:
            marked_at = os.stat(os.path.join(self.folder, self.attempt_name + START_MARK_SUFFIX)).st_mtime
        except OSError:
            return None
        return time.monotonic() - max(0.0, time.time() - marked_at)

    def mark_started(self) -> None:
        """Create the file that shows the driver that the attempt has started, if the folder exists here."""
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt_name + START_MARK_SUFFIX), "x").close()

    def is_cancelled(self) -> bool:
        """Return whether the attempt is known to be cancelled. Always False on another machine."""
        try:
            if os.path.isdir(self.folder):
                return os.path.exists(os.path.join(self.folder, self.attempt_name))
            return _get_machine_id(self.folder) == self.machine_id
        except OSError:
            return False

    def run_until_cancelled(self, thunk: Thunk) -> Message | None:
        """Run `thunk` on a daemon thread and return its result.

        Return None once the attempt is cancelled or the driver of this process has exited.
        """
        self.mark_started()
        # Check after marking, so that the driver cannot miss both: it sees the mark, or has cancelled before.
        if self.is_cancelled():
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
    """Return the host name, and the device and inode of the directory that contains or contained `folder`."""
    parent_status = os.stat(os.path.dirname(folder))
    return socket.gethostname(), parent_status.st_dev, parent_status.st_ino


@cache
def get_shared_block_cache() -> BlockCache:
    """Return the block cache of this process. It is discarded after CACHE_SECONDS or once it is empty."""
    block_cache = BlockCache()
    run_in_daemon_thread(partial(_evict_periodically, block_cache))
    return block_cache


def load_cached_block(block_ref: BlockRef, structure: Structure, writable: bool) -> Any:
    """Return a stored block, from the block cache of this process or read now."""
    return get_shared_block_cache().load_block(block_ref, structure, TaskIO().read_segment, writable)


def _evict_periodically(block_cache: BlockCache) -> None:
    """Evict blocks whose files have been removed, and discard the cache after CACHE_SECONDS or once empty."""
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
    """The connection between a task that runs as a future and its driver.

    Parameters
    ----------
    f : callable or bytes
        The function, or its pickle.
    block : object
        The argument of f, or a `functools.partial` object that loads it.
    cancel_token : ThreadCancelToken or FolderCancelToken
        The cancellation token of the attempt.
    """

    def __init__(self, f: Function | bytes, block: Any, cancel_token: CancelToken) -> None:
        super().__init__()
        self._f, self._block, self._cancel_token = f, block, cancel_token

    def is_cancelled(self) -> bool:
        """Return whether the attempt is known to be cancelled."""
        return self._cancel_token.is_cancelled()

    def encode_header(self, reply: TaskReply) -> Any:
        """Return a reply as sent with the bytes of its result: unchanged to a thread, else serialized."""
        if isinstance(self._cancel_token, ThreadCancelToken):
            return reply
        return super().encode_header(reply._replace(host=socket.gethostname()))

    def load_inputs(self, request: TaskRequest) -> tuple[Function, Any]:
        """Return f, unpickled if necessary, and the block. An array is passed as a read-only view."""
        f = pickle.loads(self._f) if isinstance(self._f, bytes) else self._f
        block = self._block
        if isinstance(block, partial):
            block = block()
        elif isinstance(block, np.ndarray):  # Other tasks may use the same array.
            block = block.view()
            block.flags.writeable = False
        thread_limiter.limit_newly_loaded_libraries()
        return f, block


def run_task_in_future(
    f: Function | bytes, block: Any, request: TaskRequest, cancel_token: CancelToken, n_threads: int
) -> Message | None:
    """Run a task on a daemon thread and return its reply, or None if it was cancelled.

    An abandoned task blocks neither its slot in the executor nor the exit of the interpreter.

    Parameters
    ----------
    f : callable or bytes
        The function, or its pickle.
    block : object
        The argument of f, or a `functools.partial` object that loads it.
    request : TaskRequest
        The attempt to run.
    cancel_token : ThreadCancelToken or FolderCancelToken
        The cancellation token of the attempt.
    n_threads : int
        Maximum number of threads that linear algebra libraries use during the task.
    """
    if cancel_token.is_cancelled():
        return None
    task_io = FutureTaskIO(f, block, cancel_token)

    def execute() -> Message | None:
        with thread_limiter.limit_current_thread(n_threads):
            return run_task(request, task_io)

    with thread_limiter.limit_process_threads(n_threads):
        return cancel_token.run_until_cancelled(execute)
