"""Executor: a concurrent.futures.Executor for any function, whose late calls are started once more."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from functools import partial
from typing import Any, TypeVar

from polarmap.code.checks import checked_count, is_count
from polarmap.code.dtypes import is_integer
from polarmap.errors import CodeError, ExecutorError, without_our_frames
from polarmap.executors import FaultyExecutor, WithFaults, executor_of
from polarmap.executors.base import MapExecutor
from polarmap.executors.choices import is_for_lithops, is_of_dask
from polarmap.executors.fork_server import FUNCTION_BYTES
from polarmap.executors.owned_folder import disk_folder, memory_folder, remove
from polarmap.executors.pickling import pickled_by_value
from polarmap.executors.pool import Pool, default_pool
from polarmap.run.call_driver import CallDriver
from polarmap.run.calls import Call, Calls, function_of
from polarmap.worker.block_functions import call_each
from polarmap.worker.pytree import Array, to_block
from polarmap.worker.surroundings import available_cores

T = TypeVar("T")

MOST_CALLS = 4096  # that a pool is given at a time: it keeps a little of each


class Executor(futures.Executor):
    """A `concurrent.futures.Executor`: calls of any function as futures, with backups for late ones.

    For tools that take an executor, and for calls that come one by one. What a call returns or raises is
    what it would in a `ProcessPoolExecutor`; besides, a call whose worker dies is started again, and one
    that is late, by what calls of its function took before, gets a backup as soon as no other call waits:
    the first to return counts. Arguments and results are pickled (with cloudpickle: functions may be
    defined anywhere).

    Parameters
    ----------
    executor : optional
        Where calls run, as for `coded_map`: by default on workers of this machine that stay. A Lithops
        configuration or executor, and one of Dask, gets workers that stay until `shutdown`.
    workers : int, optional
        Calls at a time, on workers that stay of its own. By default on this machine as many as keep the
        cores busy; elsewhere as many as there are calls, or threads.
    backups : int
        How many a call may get. With 0 no call is begun twice unless its worker is lost.
    retries : int
        How often a call is started again whose worker was lost.

    Raises
    ------
    CodeError
        For an option that is none.
    ExecutorError
        For an executor that is none, or has workers of its own besides `workers`.

    Examples
    --------
    >>> import polarmap
    >>> with polarmap.Executor(workers=2) as executor:
    ...     power = executor.submit(pow, 2, 10)
    ...     list(executor.map(str.upper, ["a", "b"])), power.result()
    (['A', 'B'], 1024)
    """

    def __init__(
        self, executor: Any = None, workers: int | None = None, *, backups: int = 2, retries: int = 1
    ) -> None:
        with without_our_frames:
            if workers is not None:
                checked_count("workers", workers)
            for name, count in {"backups": backups, "retries": retries}.items():
                if not is_count(count):
                    raise CodeError(f"{name} must be 0 or more, not {count!r:.100}")
            place, known, pool, close = _place(executor, workers)
            # What another executor was given cannot be taken back: one call more than it has workers.
            most = MOST_CALLS if pool is not None or known is None else known + 1
            self._max_workers = known or available_cores()  # Dask asks for it
            self._shares_files = pool is not None and pool.is_here
            # Elsewhere polarmap may be missing.
            is_away = pool is not None and not pool.is_here
            self._pickling = pickled_by_value if is_away else contextlib.nullcontext
            self._driver = CallDriver(place, partial(Calls, most, int(backups), int(retries)), close)
            weakref.finalize(self, self._driver.shut_down).atexit = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """The future of the call `fn(*args, **kwargs)`.

        Parameters
        ----------
        fn : callable
            What is called; it may be defined anywhere.
        *args, **kwargs
            What it is called with, as it is now.

        Returns
        -------
        concurrent.futures.Future
            It can be cancelled until a worker is given the call.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        """
        return self._submit(Shared(fn), args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """The results of `fn` on the items of iterables, in their order, as `map` gives them.

        Parameters
        ----------
        fn : callable
            What is called, as for `submit`.
        *iterables
            Each gives one argument of a call; the shortest decides how many there are.
        timeout : float, optional
            Seconds from now after which the next result raises TimeoutError if it is not there.
        chunksize : int
            Calls that travel and run together.
        buffersize : int, optional
            Calls, or chunks of them, that are submitted and whose results nobody has taken yet; by
            default all are submitted at once, and the iterables are read to their end.
        """
        if not is_integer(chunksize) or chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not is_integer(buffersize):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        until = None if timeout is None else time.monotonic() + timeout
        arguments: Iterator[Any] = zip(*iterables)
        if chunksize == 1:
            return _results(self, self._shared(fn), arguments, until, buffersize)
        chunks = zip(iter(lambda: list(itertools.islice(arguments, chunksize)), []))
        lists: Iterator[list[T]] = _results(
            self, self._shared(partial(call_each, fn)), chunks, until, buffersize
        )
        return _chained(lists)

    def _submit(self, shared: Shared, args: tuple[Any, ...], kwargs: dict[str, Any]) -> futures.Future[Any]:
        """The future of a call; a function that does not travel is its exception."""
        future: futures.Future[Any] = futures.Future()
        try:
            with self._pickling():
                block = to_block((shared.sent, args, kwargs))
        except Exception as error:
            self._driver.check_open()
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        self._driver.add(Call(future, function_of(shared.f), block, shared))
        return future

    def _shared(self, f: Callable[..., Any]) -> Shared:
        """A function for many calls, pickled once; a large one is a file where workers can read it."""
        try:
            with self._pickling():
                block = to_block(f)
        except Exception:  # which each call tells
            return Shared(f)
        return Shared(f, block, self._shares_files and len(block) > FUNCTION_BYTES)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Safe to call twice.

        Parameters
        ----------
        wait : bool
            Whether to wait until all calls have ended, and workers of its own, too.
        cancel_futures : bool
            Whether to cancel the calls that no worker was given.
        """
        self._driver.shut_down(cancel_futures)
        if wait:
            self._driver.join()


class Shared:
    """A function of many calls, as it travels with each of them.

    f : itself.
    sent : what travels: f, a block as bytes, or the path of a file that is there as long as this is kept.
    """

    def __init__(self, f: Callable[..., Any], block: Array | None = None, in_file: bool = False) -> None:
        self.f = f
        self.sent: Callable[..., Any] | bytes | str = f
        if block is not None:
            self.sent = self._file(block) if in_file else block.tobytes()

    def _file(self, block: Array) -> str:
        """The path of a new file."""
        for new_folder in (memory_folder, disk_folder):
            folder = new_folder()
            if folder is None:
                continue
            weakref.finalize(self, remove, folder)
            try:
                (folder / "calls").mkdir()
                block.tofile(folder / "calls/function")
                return str(folder / "calls/function")
            except OSError as error:
                failure = error
        raise ExecutorError(f"no room for the function that workers are to read: {failure}") from failure


def _place(
    choice: Any, workers: int | None
) -> tuple[MapExecutor, int | None, Pool | None, Callable[[], None]]:
    """Where the caller means: calls at a time, if that is known; its pool, if it has one; what ends it."""
    if isinstance(choice, FaultyExecutor):
        executor, known, pool, close = _place(choice.executor, workers)
        return WithFaults(executor, choice.faults), known, pool, close
    if choice is None or is_for_lithops(choice) or is_of_dask(choice):
        is_shared = choice is None and workers is None
        pool = default_pool if is_shared else Pool(choice, workers)
        return pool, pool.workers, pool, (lambda: None) if is_shared else pool.close
    if workers is not None:
        raise ExecutorError(f"a {type(choice).__name__} has workers of its own: leave workers= out")
    if isinstance(choice, Pool):
        return choice, choice.workers, choice, lambda: None
    count: Any = getattr(choice, "_max_workers", None)
    return executor_of(choice), int(count) if is_integer(count) else None, None, lambda: None


def _results(
    executor: Executor,
    shared: Shared,
    arguments: Iterator[tuple[Any, ...]],
    until: float | None,
    buffersize: int | None,
) -> Iterator[T]:
    """The results of calls that are submitted now, in their order; those not taken are cancelled."""
    pending = deque(executor._submit(shared, each, {}) for each in itertools.islice(arguments, buffersize))
    reference = weakref.ref(executor)
    del executor  # an iterator keeps none alive

    def results() -> Iterator[T]:
        try:
            while pending:
                alive = reference() if buffersize else None
                if alive is not None:
                    pending.extend(alive._submit(shared, each, {}) for each in itertools.islice(arguments, 1))
                del alive
                yield _result(pending.popleft(), until)
        finally:
            for future in pending:
                future.cancel()

    return results()


def _result(future: futures.Future[T], until: float | None) -> T:
    """The result of a future that nobody else waits for; cancel it if that is not there in time."""
    try:
        return future.result(None if until is None else until - time.monotonic())
    finally:
        future.cancel()
        del future  # an exception shall not keep it


def _chained(lists: Iterator[list[T]]) -> Iterator[T]:
    """The items of lists, none of which is kept."""
    for one in lists:
        one.reverse()
        while one:
            yield one.pop()
