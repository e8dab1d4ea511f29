"""Run a task in a worker of a `concurrent.futures` executor, and abandon it once the driver cancels it.

The task runs on a daemon thread while the worker's own thread waits for the result or for the cancellation:

    executor thread:  mark the start | wait for the reply ... | return the reply, or None if cancelled
    daemon thread:                   | read the block, call f | (an abandoned call continues to its end)

This module runs on workers, so it imports at most numpy.
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

# The driver cancels a task by creating a file. Workers check at this interval, in seconds, whether it exists.
CANCEL_POLL_INTERVAL = 0.02
START_MARK_SUFFIX = ".began"  # A worker creates a file with this suffix to show that a task has started.
CACHE_SECONDS = 60.0  # A process discards its cache of data blocks after this many seconds.

Function = Callable[[Any], Any]
Thunk = Callable[[], Message | None]


class ThreadCancelToken:
    """A token with which the driver cancels a task that runs on a thread of its own process.

    The driver is the process that runs the user's program. Each token is for one attempt, which is one run of
    a task. A task that fails or is slow may be run again.

    Attributes
    ----------
    started_at : float or None
        The value of `time.monotonic()` when the attempt started; None if it has not started.
    """

    def __init__(self) -> None:
        self.started_at: float | None = None
        self._reply_queue: SimpleQueue[Message | None] = SimpleQueue()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Cancel the attempt.

        If the user's function is already running, it keeps running, but `run_until_cancelled` stops waiting
        for it.
        """
        self._is_cancelled = True
        self._reply_queue.put(None)

    def get_start_time(self) -> float | None:
        """Return the `time.monotonic()` time at which the attempt started, or None if it has not started."""
        return self.started_at

    def is_cancelled(self) -> bool:
        """Return whether the attempt has been cancelled."""
        return self._is_cancelled

    def run_until_cancelled(self, thunk: Thunk) -> Message | None:
        """Run `thunk` on a daemon thread and return its result.

        Return None as soon as the attempt is cancelled. `thunk` then continues to run.
        """
        self.started_at = time.monotonic()
        # If the driver cancelled the attempt just before `started_at` was set, it assumes that the attempt
        # has not started. In that case, the attempt must not run.
        if self._is_cancelled:
            self.started_at = None
            return None
        run_in_daemon_thread(lambda: self._reply_queue.put(thunk()))
        return self._reply_queue.get()


class FolderCancelToken(NamedTuple):
    """A token with which the driver cancels a task in another process, by creating a file.

    The driver is the process that runs the user's program. Each token is for one attempt, which is one run of
    a task. The files of all tokens are in one folder. When the driver deletes the folder at the end of its
    session, all attempts are cancelled.

    Attributes
    ----------
    folder : str
        The path of the folder, which exists only on the driver's machine.
    machine_id : tuple
        The driver's host name, and the device and inode of the directory that contains the folder. They tell
        a process whether it runs on the driver's machine.
    attempt_name : str
        The name of a file in the folder. Once the file exists, the attempt is cancelled.
    """

    folder: str
    machine_id: tuple[str, int, int]
    attempt_name: str = "none"

    @classmethod
    def from_folder(cls, folder: str) -> FolderCancelToken:
        """Return a token for `folder`, which this process (the driver) has created."""
        return cls(folder, _get_machine_id(folder))

    def cancel(self) -> None:
        """Cancel the attempt by creating its file."""
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt_name), "x").close()

    def get_start_time(self) -> float | None:
        """Return the `time.monotonic()` time at which the attempt started, or None if it has not started."""
        try:
            marked_at = os.stat(os.path.join(self.folder, self.attempt_name + START_MARK_SUFFIX)).st_mtime
        except OSError:
            return None
        return time.monotonic() - max(0.0, time.time() - marked_at)

    def mark_started(self) -> None:
        """Create a file that tells the driver that the attempt has started.

        Do nothing if this is not the driver's machine.
        """
        with contextlib.suppress(OSError):
            open(os.path.join(self.folder, self.attempt_name + START_MARK_SUFFIX), "x").close()

    def is_cancelled(self) -> bool:
        """Return whether the driver has cancelled the attempt; always False on another machine."""
        try:
            if os.path.isdir(self.folder):
                return os.path.exists(os.path.join(self.folder, self.attempt_name))
            return _get_machine_id(self.folder) == self.machine_id
        except OSError:
            return False

    def run_until_cancelled(self, thunk: Thunk) -> Message | None:
        """Run `thunk` on a daemon thread and return its result.

        Return None as soon as the attempt is cancelled or the driver has exited. `thunk` then continues to
        run.
        """
        self.mark_started()
        # Mark the start first, and then check for cancellation. In the opposite order, the driver could
        # cancel between the two steps, see no mark, and assume that the attempt will never start.
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
    """Return a value that identifies the machine on which `folder` exists or existed.

    It consists of the host name, and the device and inode of the directory that contains the folder.
    """
    parent_status = os.stat(os.path.dirname(folder))
    return socket.gethostname(), parent_status.st_dev, parent_status.st_ino


@cache
def get_shared_block_cache() -> BlockCache:
    """Return the block cache that all tasks in this process share.

    The cache is discarded after CACHE_SECONDS, or when it becomes empty.
    """
    block_cache = BlockCache()
    run_in_daemon_thread(partial(_evict_periodically, block_cache))
    return block_cache


def load_cached_block(block_ref: BlockRef, structure: Structure, writable: bool) -> Any:
    """Return a stored data block from the cache of this process. If necessary, read and cache it first."""
    return get_shared_block_cache().load_block(block_ref, structure, TaskIO().read_segment, writable)


def _evict_periodically(block_cache: BlockCache) -> None:
    """Evict blocks whose files were deleted, until the cache is empty or CACHE_SECONDS have passed.

    Then discard the cache, so that its memory is freed.
    """
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
    """The inputs and cancellation state of a task in a `concurrent.futures` executor.

    Parameters
    ----------
    f : callable or bytes
        The user's function, or its pickle.
    block : object
        The argument of f, or a `functools.partial` object that loads the argument when it is called.
    cancel_token : ThreadCancelToken or FolderCancelToken
        The token by which the driver cancels the task.
    """

    def __init__(self, f: Function | bytes, block: Any, cancel_token: CancelToken) -> None:
        super().__init__()
        self._f, self._block, self._cancel_token = f, block, cancel_token

    def is_cancelled(self) -> bool:
        """Return whether the driver has cancelled this attempt."""
        return self._cancel_token.is_cancelled()

    def encode_header(self, reply: TaskReply) -> Any:
        """Return a reply in the form in which it is sent to the driver as the header of a message.

        It is serialized if the driver is another process. If the task runs on a thread of the driver's
        process, the reply is returned unchanged.
        """
        if isinstance(self._cancel_token, ThreadCancelToken):
            return reply
        return super().encode_header(reply._replace(host=socket.gethostname()))

    def load_inputs(self, request: TaskRequest) -> tuple[Function, Any]:
        """Return the user's function and its argument. Arrays are returned as read-only views."""
        f = pickle.loads(self._f) if isinstance(self._f, bytes) else self._f
        block = self._block
        if isinstance(block, partial):
            block = block()
        elif isinstance(block, np.ndarray):  # Other tasks may share this array, so f must not modify it.
            block = block.view()
            block.flags.writeable = False
        thread_limiter.limit_newly_loaded_libraries()
        return f, block


def run_task_in_future(
    f: Function | bytes, block: Any, request: TaskRequest, cancel_token: CancelToken, n_threads: int
) -> Message | None:
    """Run a task in a worker of a `concurrent.futures` executor.

    Return the reply for the driver, or None if the driver has cancelled the task. The task runs on a daemon
    thread. If it is cancelled while running, the executor's worker becomes available for other work
    immediately, and the interpreter can exit.

    Parameters
    ----------
    f : callable or bytes
        The user's function, or its pickle.
    block : object
        The argument of f, or a `functools.partial` object that loads the argument when it is called.
    request : TaskRequest
        The description of the task.
    cancel_token : ThreadCancelToken or FolderCancelToken
        The token by which the driver cancels the task.
    n_threads : int
        The maximum number of threads that linear algebra libraries use during the task.
    """
    if cancel_token.is_cancelled():
        return None
    task_io = FutureTaskIO(f, block, cancel_token)

    def execute() -> Message | None:
        with thread_limiter.limit_current_thread(n_threads):
            return run_task(request, task_io)

    with thread_limiter.limit_process_threads(n_threads):
        return cancel_token.run_until_cancelled(execute)
