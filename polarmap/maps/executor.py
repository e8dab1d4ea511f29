"""Provide `polarmap.Executor`, a `concurrent.futures.Executor` that also runs backups of late calls."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from functools import partial
from typing import Any, TypeVar

from polarmap.driver.batch_policy import TARGET_BATCH_SECONDS
from polarmap.driver.call_queue import CallQueue
from polarmap.driver.calls import MappedCalls, SubmittedCall, get_function_key
from polarmap.driver.options import check_retry_delay
from polarmap.driver.policies import RetryRule
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError, ExecutorError, trimmed_tracebacks
from polarmap.executors import resolve_executor
from polarmap.executors.encryption_keys import check_not_encrypted
from polarmap.executors.fork_server_client import MAX_INLINE_FUNCTION_BYTES
from polarmap.executors.interface import JobSpec, Session
from polarmap.executors.pickling import (
    PickledFunction,
    pickle_call_to_block,
    pickle_function_with_buffers,
    pickle_small_values,
    pickle_worker_code_by_value,
)
from polarmap.executors.resolved import DelegatingExecutor, ExecutorHandle, ResolvedExecutor
from polarmap.executors.temp_folders import make_temp_folder, remove_owned_folder
from polarmap.validation import check_positive_int, is_nonnegative_int
from polarmap.worker.environment import count_available_cores
from polarmap.worker.private_files import check_private_folder
from polarmap.worker.segments import write_file
from polarmap.worker.task_functions import call_each

T = TypeVar("T")

MAX_QUEUED_CALLS = 4096  # At most this many calls are submitted to a worker pool before their results arrive.

# `Executor.map` with `buffersize` collects calls for at most this long (in seconds), and then submits them
# together. Time in which it waits for a result does not count.
MAX_GROUP_SECONDS = 0.002


class Executor(ExecutorHandle, futures.Executor):
    """A `concurrent.futures.Executor` that retries lost calls and starts backups of late ones.

    Use it with tools that accept an executor, or for calls that arrive one by one. A call returns or raises
    the same as in a `ProcessPoolExecutor`. In addition, a call is retried if its worker dies. If a call takes
    much longer than earlier calls of the same function, it is started again (as a backup) once no other call
    is queued, and the first result counts. Arguments and results are pickled with cloudpickle, so functions
    may be defined anywhere. If a call raises `SystemExit`, `StopIteration` or the like, its future holds a
    `FunctionExitError`. You can also pass an `Executor` to `coded_map` as `executor=`: the map's tasks then
    run on the same workers as the calls.

    Parameters
    ----------
    executor : optional
        Where calls run, as for `coded_map`. By default, they run on persistent workers of this machine. A
        Lithops configuration or executor, a Dask client or `ray` gets persistent workers until `shutdown`.
    workers : int, optional
        How many calls run concurrently, on persistent workers of this executor. By default, there are enough
        to keep the cores of this machine busy. Elsewhere, there are as many as there are calls, or threads.
    backups : int
        The maximum number of backups per call. With 0, no call is started twice unless its worker is lost.
    retries : int
        How often to retry a call whose worker was lost. Short calls of `map` are sent together. If their
        worker is lost, each of them is restarted alone, and that loss does not count. A call that kills its
        worker every time raises `WorkerLostError`, after it has killed at most `retries` + 2 workers, plus
        one for each of its backups.
    retry_delay : float
        The seconds before a lost call is restarted. The delay doubles with each further loss, up to 60
        seconds. Other calls run meanwhile.

    Raises
    ------
    CodeError
        If an option is invalid.
    ExecutorError
        If `executor` is not an executor, or has workers of its own and `workers` is given.

    Examples
    --------
    >>> import polarmap
    >>> with polarmap.Executor(workers=2) as executor:
    ...     power = executor.submit(pow, 2, 10)
    ...     list(executor.map(str.upper, ["a", "b"])), power.result()
    (['A', 'B'], 1024)
    """

    def __init__(
        self,
        executor: Any = None,
        workers: int | None = None,
        *,
        backups: int = 2,
        retries: int = 1,
        retry_delay: float = 0.0,
    ) -> None:
        with trimmed_tracebacks:
            if workers is not None:
                check_positive_int("workers", workers)
            for name, count in {"backups": backups, "retries": retries}.items():
                if not is_nonnegative_int(count):
                    raise CodeError(f"{name} must be 0 or more, not {count!r:.100}")
            retry_rule = RetryRule(int(retries), check_retry_delay(retry_delay))
            used_executor, on_close = resolve_executor(executor).with_persistent_workers(workers)
            self._executor = used_executor
            self.worker_spec, self.is_local = used_executor.worker_spec, used_executor.is_local
            if used_executor.has_persistent_workers or used_executor.max_workers is None:
                max_in_flight = MAX_QUEUED_CALLS
            else:  # Submitted calls cannot be cancelled: submit no more than one call ahead of the workers.
                max_in_flight = used_executor.max_workers + 1
            # Dask reads this private attribute of the executors that it is given.
            self._max_workers = used_executor.max_workers or count_available_cores()
            self._shares_files = used_executor.has_persistent_workers and self.is_local
            # Other machines may not have polarmap installed, so its code is pickled with each function.
            self._is_remote = used_executor.has_persistent_workers and not self.is_local
            self._pickling_context = (
                pickle_worker_code_by_value if self._is_remote else contextlib.nullcontext
            )
            self._call_queue = CallQueue(used_executor, on_close, max_in_flight, int(backups), retry_rule)
            weakref.finalize(self, self._call_queue.shutdown).atexit = False
            # The calls of each running `map` with `buffersize`. Such a map submits its calls gradually, so
            # `shutdown` must submit the calls that have been collected but not submitted yet.
            self._growing_maps = weakref.WeakSet[MappedCalls]()
            self._submission_lock = threading.RLock()

    @property
    def name(self) -> str:
        """The name of the executor on which calls run, as shown in reports."""
        return self._executor.name

    @property
    def workers_by_host(self) -> dict[str, int]:
        """The number of workers on each machine, by host name. Empty if unknown."""
        return self._executor.workers_by_host

    def resolve(self) -> ResolvedExecutor:
        """Return an executor that runs the tasks of maps on the same workers as the submitted calls."""
        return ExecutorOfCalls(self, self._executor)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Schedule the call `fn(*args, **kwargs)` and return its future.

        Parameters
        ----------
        fn : callable
            The function, which may be defined anywhere.
        *args, **kwargs
            Its arguments, which are pickled before `submit` returns.

        Returns
        -------
        concurrent.futures.Future
            The future of the call. It can be cancelled until the call is sent to a worker.

        Raises
        ------
        RuntimeError
            If the executor has been shut down.
        """
        future: futures.Future[T] = futures.Future()
        try:
            block = pickle_call_to_block((fn, args, kwargs), self._is_remote)
        except Exception as error:
            self._call_queue.check_open()
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        self._call_queue.submit(SubmittedCall(future, get_function_key(fn), block), [0])
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` with the items of the iterables, and return an iterator over the results, in order.

        Parameters
        ----------
        fn : callable
            The function, as for `submit`.
        *iterables
            Each of them yields one argument per call. The number of calls is the length of the shortest one.
        timeout : float, optional
            The number of seconds from now after which the iterator raises TimeoutError if the next result has
            not arrived yet.
        chunksize : int
            The number of calls to send and run together, as one call. You rarely need it: short calls share a
            task anyway, and are separated again if one of them takes long.
        buffersize : int, optional
            The maximum number of calls (or chunks of calls) to submit ahead of the result that you wait for.
            By default, the iterables are read to their end and all calls are submitted at once.
        """
        if not is_integer(chunksize) or chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not is_integer(buffersize):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        for iterable_index, iterable in enumerate(iterables):
            check_not_encrypted(
                iterable, f"iterable {iterable_index} of map", "coded_map decrypts it on workers"
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        arguments: Iterator[Any] = zip(*iterables)
        chunks = iter(lambda: list(itertools.islice(arguments, chunksize)), [])
        mapped_calls = MappedCalls(get_function_key(fn), chunksize)
        mapped_calls.context = self._pickle_function_once(partial(call_each, fn), mapped_calls)
        self._enqueue_chunks(mapped_calls, list(itertools.islice(chunks, buffersize)))
        # Only the generator `_submit_in_groups` refers to this executor. Without it, the executor can be
        # garbage-collected although the iterator over the results is still in use.
        submissions = iter(()) if buffersize is None else self._submit_in_groups(mapped_calls, chunks)
        return mapped_calls.iterate_results(
            deadline, submissions, partial(self._call_queue.cancel_calls, [mapped_calls])
        )

    def _submit_in_groups(self, mapped_calls: MappedCalls, chunks: Iterator[list[Any]]) -> Iterator[None]:
        """Submit the remaining chunks of calls of a map with `buffersize`, one chunk for each result taken.

        This is a generator. Whenever the caller takes a result, the generator advances by one step and reads
        one chunk of calls. Chunks are collected and then submitted together, so that short calls share tasks
        and messages. They are submitted when the caller needs a result that has not arrived, when it takes
        the last submitted result, or after MAX_GROUP_SECONDS. If the collected calls are short and the needed
        result arrives soon, more chunks are collected first.
        """
        submit_at = time.monotonic() + MAX_GROUP_SECONDS
        self._growing_maps.add(mapped_calls)
        for item_index, chunk in enumerate(chunks):
            self._call_queue.check_open()
            mapped_calls.collected_chunks.append(chunk)
            is_due = time.monotonic() >= submit_at
            if not is_due and mapped_calls.must_submit_more(item_index):
                is_due = not self._wait_before_submitting(mapped_calls, item_index)
                submit_at = time.monotonic() + MAX_GROUP_SECONDS  # The time spent waiting does not count.
            if is_due:
                self._submit_collected_chunks(mapped_calls)
                submit_at = time.monotonic() + MAX_GROUP_SECONDS
            yield
        self._submit_collected_chunks(mapped_calls)

    def _wait_before_submitting(self, mapped_calls: MappedCalls, item_index: int) -> bool:
        """Wait briefly for the result of an item before the collected calls are submitted.

        Return True if the result arrives within TARGET_BATCH_SECONDS, so that more calls can be collected.
        Return False without waiting if no later item has been submitted, or if the collected calls are
        expected to run long enough to be worth a task of their own.
        """
        n_collected, is_last = len(mapped_calls.collected_chunks), item_index + 1 == len(mapped_calls.blocks)
        if is_last or not self._call_queue.is_small_batch(mapped_calls, n_collected):
            return False
        return mapped_calls.wait_for_outcome(item_index, time.monotonic() + TARGET_BATCH_SECONDS)

    def _submit_collected_chunks(self, mapped_calls: MappedCalls) -> None:
        with self._submission_lock:
            # Take a copy of the list, because the caller's thread may append a chunk to it at any time.
            chunks = mapped_calls.collected_chunks[:]
            del mapped_calls.collected_chunks[: len(chunks)]
            if chunks:
                self._enqueue_chunks(mapped_calls, chunks)

    def _enqueue_chunks(self, mapped_calls: MappedCalls, chunks: list[list[Any]]) -> None:
        """Pickle chunks of arguments, and submit one call for each chunk.

        If a chunk cannot be pickled, its call fails with the pickling error.
        """
        first_index, unpicklable = len(mapped_calls.blocks), set[int]()
        with self._pickling_context():
            chunk_pickles: list[Any] = pickle_small_values(chunks)
            mapped_calls.blocks += chunk_pickles
            is_function_pickled = not callable(mapped_calls.context)
            for item_index, (chunk, chunk_pickle) in enumerate(zip(chunks, chunk_pickles), first_index):
                if is_function_pickled and isinstance(chunk_pickle, bytes):
                    continue
                try:
                    # The arguments are large or refer to the user's own code, or f could not be pickled
                    # alone. Pickle f together with the arguments. Such a call does not share its task with
                    # others.
                    call: Any = mapped_calls.context, (chunk,), {}
                    mapped_calls.blocks[item_index] = pickle_call_to_block(call, self._is_remote)
                except Exception as error:
                    mapped_calls.set_exception(item_index, error)
                    unpicklable.add(item_index)
        item_indices = range(first_index, len(mapped_calls.blocks))
        self._call_queue.submit(
            mapped_calls,
            [index for index in item_indices if index not in unpicklable] if unpicklable else item_indices,
        )

    def _pickle_function_once(
        self, f: Callable[..., Any], mapped_calls: MappedCalls
    ) -> Callable[..., Any] | str | bytes:
        """Pickle f once for all calls of a map. Return the pickle, or the path to a file if it is large.

        If f cannot be pickled, return f itself. Each call then fails with the pickling error.
        """
        with contextlib.suppress(Exception):
            pickled_function = pickle_function_with_buffers(f, "workers", self._is_remote)
            if self._shares_files and pickled_function.n_bytes > MAX_INLINE_FUNCTION_BYTES:
                # If the file cannot be written, for example because the disk is full, send f with each call.
                with contextlib.suppress(OSError, ExecutorError):
                    return _write_function_file(mapped_calls, pickled_function)
            return b"".join(pickled_function.get_buffers_to_send())
        return f

    def open(self, job_spec: JobSpec) -> Session:
        """Open a session in which the tasks of a map run on the workers of this executor.

        Raises RuntimeError if the executor has been shut down.
        """
        self._call_queue.check_open()
        return self._executor.open(job_spec)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and release the workers once all calls have finished.

        Parameters
        ----------
        wait : bool
            Whether to wait until all calls have finished and the executor's own workers have exited.
        cancel_futures : bool
            Whether to cancel the calls that have not been sent to a worker.
        """
        for mapped_calls in list(self._growing_maps):
            with contextlib.suppress(RuntimeError):  # `shutdown` was called before and did this already.
                self._submit_collected_chunks(mapped_calls)
        self._call_queue.shutdown(cancel_futures)
        if wait:
            self._call_queue.wait_for_all_calls()


class ExecutorOfCalls(DelegatingExecutor):
    """Runs maps on the workers of a `polarmap.Executor`.

    It refers to the `polarmap.Executor`, because that would otherwise be shut down if it were
    garbage-collected during a map.
    """

    def __init__(self, owner: Executor, executor: ResolvedExecutor) -> None:
        super().__init__(executor)
        self._owner = owner

    def open(self, job_spec: JobSpec) -> Session:
        """Open a session in which the tasks of a map run on the workers of the `polarmap.Executor`.

        Raises RuntimeError if the `polarmap.Executor` has been shut down.
        """
        return self._owner.open(job_spec)


def _write_function_file(owner: object, f: PickledFunction) -> str:
    """Write a pickled function to a file that is deleted together with `owner`, and return its path."""
    folder = make_temp_folder()  # Use the disk, which has more free space than shared memory.
    weakref.finalize(owner, remove_owned_folder, folder)
    check_private_folder(str(folder))  # Workers refuse to load code from a folder that others can write to.
    write_file(str(folder), "calls/function", *f.get_buffers_to_send())
    return str(folder / "calls/function")
