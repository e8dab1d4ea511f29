"""Transfers between this process and a storage, several at a time, on daemon threads.

A storage may hang. Neither Ctrl-C nor the exit of the interpreter waits for a thread of this module, while
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

MAX_PARALLEL_TRANSFERS = 8  # default number of transfers at a time
# A wait without a timeout misses a Ctrl-C just before it starts, and on Windows every Ctrl-C.
INTERRUPT_POLL_SECONDS = 1.0
GRACE_SECONDS = 5.0  # wait for running transfers, which may hang, after an error or Ctrl-C

T = TypeVar("T")
R = TypeVar("R")


class ParallelTransfers(Generic[T, R]):
    """Calls of a function with each of several items, on a limited number of daemon threads.

    The constructor starts the calls. The reference to an item is dropped as soon as its call has ended.

    Parameters
    ----------
    transfer : callable
        Called with one item, on a daemon thread.
    items : iterable
        The items, in the order in which their calls start.
    max_threads : int
        The largest number of calls at the same time.

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
        self._lock, self._n_running_threads = threading.Lock(), 0  # threads that run transfers
        self._has_settled, self._is_idle = threading.Event(), threading.Event()
        self._start_threads(min(max_threads, len(self._queue)))

    def wait_for_results(self, deadline: float = inf) -> list[R]:
        """Block until all calls have returned, and return their results in the order of the items.

        If a call fails, no further call is started. The error of the first failed item is raised once the
        running calls have ended, or after GRACE_SECONDS. Otherwise the running calls could interfere with the
        error handling of the caller.

        Parameters
        ----------
        deadline : float
            When to raise TimeoutError even if calls are running, on the monotonic clock.
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
            del error  # its traceback refers to this frame
        return [self._results[index] for index in range(len(self._results))]

    def stop(self, grace_seconds: float | None = None) -> None:
        """Start no further call, and wait for running calls.

        `grace_seconds` is the longest wait in seconds; None: GRACE_SECONDS.
        """
        with self._lock:
            self._queue.clear()
        self._is_idle.wait(GRACE_SECONDS if grace_seconds is None else grace_seconds)

    def _start_threads(self, n_threads: int) -> None:
        """Start `n_threads` threads, or fewer if the system runs out of threads."""
        self._n_running_threads = max(1, n_threads)
        for n_started in range(n_threads):
            try:
                run_in_daemon_thread(self._run_transfers)
            except RuntimeError:
                if not n_started:
                    raise
                for _ in range(n_threads - n_started):
                    self._on_thread_exit()
                return
        if not n_threads:
            self._on_thread_exit()

    def _run_transfers(self) -> None:
        """Make calls until no item is waiting."""
        while (indexed_item := self._pop_item()) is not None:
            index, item = indexed_item
            try:
                result = self._transfer(item)
            except BaseException as error:  # raised by `wait_for_results`
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
        """Count the exit of a thread. The last one signals that all calls have ended."""
        with self._lock:
            self._n_running_threads -= 1
            is_last = not self._n_running_threads
        if is_last:
            self._has_settled.set()
            self._is_idle.set()

    def _take_first_error(self) -> BaseException | None:
        """Return the error of the first failed item, or None, and discard all errors."""
        with self._lock:
            errors, self._errors = self._errors, {}
        return errors[min(errors)] if errors else None


def map_in_parallel(
    transfer: Callable[[T], R],
    items: Iterable[T],
    max_threads: int = MAX_PARALLEL_TRANSFERS,
    deadline: float = inf,
) -> list[R]:
    """Call `transfer` with each item, several at a time, and return the results in the order of the items.

    See `ParallelTransfers` for what happens when a call fails or hangs, and at the deadline.

    >>> map_in_parallel(len, ["a", "bc"])
    [1, 2]
    """
    return ParallelTransfers(transfer, items, max_threads).wait_for_results(deadline)
