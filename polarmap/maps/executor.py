"""Executor: a concurrent.futures.Executor for any function, whose late calls are started once more."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from functools import partial
from typing import Any, TypeVar

from polarmap.dtypes import is_integer
from polarmap.errors import CodeError, ExecutorError, without_our_frames
from polarmap.executors import resolve_executor, rewrap_with_faults, unwrap_faulty_executor
from polarmap.executors.encryption_keys import check_not_encrypted
from polarmap.executors.executor_specs import is_dask_client, is_lithops, is_ray
from polarmap.executors.fork_server_client import MAX_INLINE_FUNCTION_BYTES
from polarmap.executors.interface import DelegatingExecutor, JobSpec, MapExecutor, Session
from polarmap.executors.pickling import (
    PickledFunction,
    pickle_call_to_block,
    pickle_function_with_buffers,
    pickle_small_values,
    worker_code_by_value,
)
from polarmap.executors.pool import Pool, default_pool
from polarmap.executors.temp_folders import make_temp_folder, remove_owned_folder
from polarmap.run.calls import Call, Calls, CallsOfMap, function_of
from polarmap.validation import check_positive_int, is_nonnegative_int
from polarmap.worker.environment import count_available_cores
from polarmap.worker.private_files import check_private_folder
from polarmap.worker.segments import write_file
from polarmap.worker.task_functions import call_each

T = TypeVar("T")

MOST_CALLS = 4096  # that a pool is given at a time: it keeps a little of each


class Executor(DelegatingExecutor, futures.Executor):
    """A `concurrent.futures.Executor`: calls of any function as futures, with backups for late ones.

    For tools that take an executor, and for calls that come one by one. What a call returns or raises is
    what it would in a `ProcessPoolExecutor`; besides, a call whose worker dies is started again, and one
    that is late, by what calls of its function took before, gets a backup as soon as no other call waits:
    the first to return counts. Arguments and results are pickled (with cloudpickle: functions may be
    defined anywhere). If a call raises `SystemExit`, `StopIteration` or the like, its future holds a
    `FunctionExitError`. As `executor=` of a map it is where it runs itself.

    Parameters
    ----------
    executor : optional
        Where calls run, as for `coded_map`: by default on workers of this machine that stay. A Lithops
        configuration or executor, a Dask client or `ray` gets workers that stay until `shutdown`.
    workers : int, optional
        Calls at a time, on workers that stay of its own. By default on this machine as many as keep the
        cores busy; elsewhere as many as there are calls, or threads.
    backups : int
        How many a call may get. With 0 no call is begun twice unless its worker is lost.
    retries : int
        How often a call is started again whose worker was lost. Short calls of `map` travel together: if
        their worker is lost, each of them is started again alone, and that loss counts for none. A call that
        ends its worker every time raises `WorkerLostError`, and has ended at most `retries` + 2 workers by
        then, plus one for each of its backups.

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
                check_positive_int("workers", workers)
            for name, count in {"backups": backups, "retries": retries}.items():
                if not is_nonnegative_int(count):
                    raise CodeError(f"{name} must be 0 or more, not {count!r:.100}")
            inner, known, pool, close = _place(unwrap_faulty_executor(executor), workers)
            place = resolve_executor(rewrap_with_faults(executor, inner))
            # What another executor was given cannot be taken back: one call more than it has workers.
            most = MOST_CALLS if pool is not None or known is None else known + 1
            self.choice = executor
            self._max_workers = known or count_available_cores()  # Dask asks for it
            self._shares_files = pool is not None and pool.is_local
            # Elsewhere polarmap may be missing.
            self._is_away = pool is not None and not pool.is_local
            self._pickling = worker_code_by_value if self._is_away else contextlib.nullcontext
            super().__init__(place)
            self._calls = Calls(place, close, most, int(backups), int(retries))
            weakref.finalize(self, self._calls.shut_down).atexit = False

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
        future: futures.Future[T] = futures.Future()
        try:
            block = pickle_call_to_block((fn, args, kwargs), self._is_away)
        except Exception as error:
            self._calls.check_open()
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        self._calls.put(Call(future, function_of(fn), block), [0])
        return future

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
            Calls that travel and run together, as one call. Short ones go to workers together anyway; what
            one that takes long holds up goes to other workers, and so does that one, once more.
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
        for number, one in enumerate(iterables):
            check_not_encrypted(one, f"iterable {number} of map", "coded_map decrypts it on workers")
        until = None if timeout is None else time.monotonic() + timeout
        arguments: Iterator[Any] = zip(*iterables)
        chunks = iter(lambda: list(itertools.islice(arguments, chunksize)), [])
        calls = CallsOfMap(function_of(fn), chunksize)
        calls.head = self._sent(partial(call_each, fn), calls)
        self._put(calls, list(itertools.islice(chunks, buffersize)))
        # Where none is to come, an iterator keeps no executor alive.
        more = () if buffersize is None else (self._put(calls, [chunk]) for chunk in chunks)
        return calls.results(until, iter(more), partial(self._calls.cancel, [calls]))

    def _put(self, calls: CallsOfMap, chunks: list[list[Any]]) -> bool:
        """Let calls of one function have more, each of a chunk; one that does not travel has failed."""
        first, new = len(calls.blocks), list[int]()
        calls.blocks += [b""] * len(chunks)
        with self._pickling():
            for number, (chunk, small) in enumerate(zip(chunks, pickle_small_values(chunks)), first):
                try:
                    is_alone = callable(calls.head) or not isinstance(small, bytes)
                    call: Any = calls.head, (chunk,), {}
                    block: Any = pickle_call_to_block(call, self._is_away) if is_alone else small
                    calls.blocks[number] = block
                    new.append(number)
                except Exception as error:
                    calls.fail(number, error)
        self._calls.put(calls, new if len(new) < len(chunks) else range(first, first + len(new)))
        return True

    def _sent(self, f: Callable[..., Any], calls: CallsOfMap) -> Callable[..., Any] | str | bytes:
        """f of these calls, pickled once, what is large as a file; itself if it does not travel."""
        with contextlib.suppress(Exception):  # which each call tells
            pickled = pickle_function_with_buffers(f, "workers", self._is_away)
            if self._shares_files and pickled.n_bytes > MAX_INLINE_FUNCTION_BYTES:
                with contextlib.suppress(OSError, ExecutorError):  # no room: it travels with each call
                    return _file_of(calls, pickled)
            return b"".join(pickled.get_buffers_to_send())
        return f

    def open(self, job_spec: JobSpec) -> Session:
        """A run of a map where its calls run; RuntimeError after `shutdown`."""
        self._calls.check_open()
        return self._executor.open(job_spec)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Safe to call twice.

        Parameters
        ----------
        wait : bool
            Whether to wait until all calls have ended, and workers of its own, too.
        cancel_futures : bool
            Whether to cancel the calls that no worker was given.
        """
        self._calls.shut_down(cancel_futures)
        if wait:
            self._calls.join()


def _file_of(owner: object, f: PickledFunction) -> str:
    """The path of a file that holds a function, and is there as long as its owner."""
    folder = make_temp_folder()  # which has more room; a new file is in memory at first
    weakref.finalize(owner, remove_owned_folder, folder)
    check_private_folder(str(folder))  # as workers do: not every file system keeps others out
    write_file(str(folder), "calls/function", *f.get_buffers_to_send())
    return str(folder / "calls/function")


def _place(
    choice: Any, workers: int | None
) -> tuple[MapExecutor, int | None, Pool | None, Callable[[], None]]:
    """Where the caller means: calls at a time, if that is known; its pool, if it has one; what ends it."""
    if choice is None or is_lithops(choice) or is_dask_client(choice) or is_ray(choice):
        is_shared = choice is None and workers is None
        pool = default_pool if is_shared else Pool(choice, workers)
        return pool, pool.workers, pool, (lambda: None) if is_shared else pool.close
    if workers is not None:
        raise ExecutorError(f"a {type(choice).__name__} has workers of its own: leave workers= out")
    if isinstance(choice, Pool):
        return choice, choice.workers, choice, lambda: None
    count: Any = getattr(choice, "_max_workers", None)
    return resolve_executor(choice), int(count) if is_integer(count) else None, None, lambda: None
