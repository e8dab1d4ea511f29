"""Parallel transfers between this process and a storage, on daemon threads.

A storage may hang, so neither Ctrl-C nor interpreter exit waits for the threads of this module. In contrast,
`concurrent.futures.ThreadPoolExecutor` joins its threads in both cases.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Generic, TypeVar

from polarmap.worker.daemon_threads import run_in_daemon_thread

# The default number of concurrent transfers.
MAX_PARALLEL_TRANSFERS = 8
# The timeout, in seconds, of each wait for the transfers. The waits are repeated in a loop, so that Ctrl-C is
# noticed in time. A single wait without timeout would ignore a Ctrl-C that arrives just before the wait
# starts and, on Windows, every Ctrl-C.
INTERRUPT_POLL_SECONDS = 1.0
GRACE_SECONDS = 5.0  # maximum seconds to wait for running transfers after an error or Ctrl-C

T = TypeVar("T")
R = TypeVar("R")


class ParallelTransfers(Generic[T, R]):
    """Calls a function with each of several items, in parallel on a limited number of daemon threads.

    The constructor starts the calls, and `wait_for_results` returns their results. No reference to an item is
    kept after its call has returned, so that its memory can be freed.

    Parameters
    ----------
    transfer : callable
        Called with one item, on a daemon thread.
    items : iterable
        The items, in the order in which their calls start.
    max_threads : int
        The maximum number of concurrent calls.

    Examples
    --------
    >>> ParallelTransfers(str.upper, ["a", "b"]).wait_for_results()
    ['A', 'B']
    """

    def __init__(
        self, transfer: Callable[[T], R], items: Iterable[T], max_threads: int = MAX_PARALLEL_TRANSFERS
    ) -> None:
        self._transfer, self._queue = transfer, deque(enumerate(items))
        self._results, self._errors = dict[int, R](), dict[int, BaseException]()
        self._lock, self._n_running_threads = threading.Lock(), 0
        self._has_settled, self._is_idle = threading.Event(), threading.Event()
        self._start_threads(min(max_threads, len(self._queue)))

    def wait_for_results(self, deadline: float = inf) -> list[R]:
        """Block until all calls have returned. Return their results in the order of the items.

        If a call fails, no further calls are started. The error is raised once the running calls have ended,
        or after GRACE_SECONDS, so that these calls do not interfere with the caller's error handling. If
        several calls fail, the error of the item that comes first is raised.

        Parameters
        ----------
        deadline : float
            The time on the monotonic clock at which to raise TimeoutError even if calls are still running.
        """
        grace = GRACE_SECONDS
        try:
            while not self._has_settled.wait(
                max(0.0, min(INTERRUPT_POLL_SECONDS, deadline - time.monotonic()))
            ):
                if time.monotonic() >= deadline:
                    grace = 0.0
                    raise TimeoutError("the transfers have not finished in time")
        finally:
            self.stop(grace)
        error = self._take_first_error()
        try:
            if error is not None:
                raise error
        finally:
            del error  # Break a reference cycle: the error's traceback refers to this frame.
        return [self._results[index] for index in range(len(self._results))]

    def stop(self, grace_seconds: float | None = None) -> None:
        """Drop the calls that have not started, and wait until the running calls have ended.

        The wait takes at most `grace_seconds` seconds, or GRACE_SECONDS if this is None.
        """
        with self._lock:
            self._queue.clear()
        self._is_idle.wait(GRACE_SECONDS if grace_seconds is None else grace_seconds)

    def _start_threads(self, n_threads: int) -> None:
        """Start `n_threads` threads that call the function, or fewer if the system allows no more.

        Raises RuntimeError if no thread can be started.
        """
        self._n_running_threads = max(1, n_threads)
        for n_started in range(n_threads):
            try:
                run_in_daemon_thread(self._transfer_remaining_items)
            except RuntimeError:
                if not n_started:
                    raise
                for _ in range(n_threads - n_started):
                    self._on_thread_exit()
                return
        if not n_threads:
            self._on_thread_exit()

    def _transfer_remaining_items(self) -> None:
        """Take items from the queue and call the function with them, until the queue is empty.

        Each thread runs this method.
        """
        while (indexed_item := self._pop_item()) is not None:
            index, item = indexed_item
            try:
                result = self._transfer(item)
            except BaseException as error:
                # Keep the error. `wait_for_results` raises it in the thread that waits for the results.
                self._record_error(index, error)
            else:
                self._results[index] = result
                del result
            del indexed_item, item
        self._on_thread_exit()

    def _pop_item(self) -> tuple[int, T] | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def _record_error(self, item_index: int, error: BaseException) -> None:
        with self._lock:
            self._errors[item_index] = error
            self._queue.clear()
        self._has_settled.set()

    def _on_thread_exit(self) -> None:
        """Record that a thread is about to exit. The last thread signals that all calls have ended."""
        with self._lock:
            self._n_running_threads -= 1
            is_last = not self._n_running_threads
        if is_last:
            self._has_settled.set()
            self._is_idle.set()

    def _take_first_error(self) -> BaseException | None:
        """Return the error of the first item whose call has failed, or None if all have succeeded.

        All recorded errors are discarded.
        """
        with self._lock:
            errors, self._errors = self._errors, {}
        return errors[min(errors)] if errors else None


def map_in_parallel(
    transfer: Callable[[T], R],
    items: Iterable[T],
    max_threads: int = MAX_PARALLEL_TRANSFERS,
    deadline: float = inf,
) -> list[R]:
    """Call `transfer` with each item in parallel, and return the results in the order of the items.

    See `ParallelTransfers.wait_for_results` for how errors, hanging calls and the deadline are handled.

    >>> map_in_parallel(len, ["a", "bc"])
    [1, 2]
    """
    return ParallelTransfers(transfer, items, max_threads).wait_for_results(deadline)
