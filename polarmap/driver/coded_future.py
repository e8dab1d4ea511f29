"""Futures of maps that run in the background.

`submit` starts a `BackgroundMap` and returns its `CodedFuture`, which has a further future for each block.
The map is cancelled when no future of it is referenced any more.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.thread import _threads_queues
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from polarmap.driver.daemon_pool import BACKGROUND_THREADS, register_before_exit
from polarmap.driver.estimates import EstimateSnapshot, EstimateStream
from polarmap.driver.events import (
    BlockReady,
    CancellationToken,
    EstimateReady,
    EventStream,
    JobCancelled,
    JobContext,
    JobEvent,
    JobFinished,
    JobPolled,
    JobStarted,
    Observer,
)
from polarmap.driver.prepared_map import PreparedMap
from polarmap.errors import CodeError, ExecutorError, trim_traceback, trimmed_tracebacks, warn
from polarmap.report import Report
from polarmap.worker.processes import SHUTDOWN_SECONDS

if TYPE_CHECKING:
    from polarmap.live.snapshots import ProgramSnapshot

MAX_REFRESH_SECONDS = 0.1  # how long `report` may wait for the start times of running tasks

R = TypeVar("R")


class MapFuture(Future[R]):
    """A future for the result of a map, or of one of its blocks.

    The map keeps running as long as the program refers to any of its futures.
    """

    def __init__(self, reference_token: _ReferenceToken, background_map: BackgroundMap[Any]) -> None:
        super().__init__()
        self._reference_token, self._background_map = reference_token, background_map
        self._is_cancel_notified = False

    def cancel(self) -> bool:
        """Cancel this future and return True, or return False if it is done."""
        if not super().cancel():
            return False
        with self._condition:
            is_notified, self._is_cancel_notified = self._is_cancel_notified, True
        if not is_notified:
            self.set_running_or_notify_cancel()
        return True

    def result(self, timeout: float | None = None) -> R:
        """Wait for the result and return it.

        Parameters
        ----------
        timeout : float, optional
            The longest wait, in seconds. The map continues after a timeout.

        Raises
        ------
        TimeoutError
            If the future is not done after `timeout` seconds.
        CancelledError
            If the future was cancelled.
        PolarmapError
            If the map failed. The exception is the one that the map raised.
        """
        with trimmed_tracebacks, self._background_map.keep_running_while_waiting(self):
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the map to finish. Return the exception that it raised, or None if it succeeded."""
        with self._background_map.keep_running_while_waiting(self):
            return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call `fn` with this future when it is done, or immediately if it is already done.

        The map keeps running until then, even if no future is referenced.
        """
        self._background_map.keep_running_for(self)
        super().add_done_callback(fn)

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio  # lazy import: slower than importing most of polarmap

        return asyncio.wrap_future(self).__await__()


class CodedFuture(MapFuture[R]):
    """The future returned by `submit`: a `concurrent.futures.Future` that can also be awaited.

    The map is cancelled once this future and the futures of its blocks are no longer referenced, unless a
    done callback was added or the results are written to storage.

    Attributes
    ----------
    blocks : tuple of Future
        One future for each of the k results. A future is done as soon as the worker of its block has returned
        the result, or the result has been decoded. A result that arrives before the map is done has not been
        checked, and its arrays are read-only, because missing results may be decoded from them. Empty if the
        result of the map is not a sequence of blocks, or is written to storage.
    """

    def __init__(self, background_map: BackgroundMap[R], n_blocks: int) -> None:
        reference_token = _ReferenceToken(background_map)
        super().__init__(reference_token, background_map)
        self.blocks: tuple[Future[Any], ...] = tuple(
            MapFuture(reference_token, background_map) for _ in range(n_blocks)
        )

    def __repr__(self) -> str:
        """Return a string with the state and progress of the map, without blocking."""
        if self.cancelled():
            state = "cancelled"
        elif self.done():
            error = Future.exception(self)
            state = "done" if error is None else f"failed with {type(error).__name__}"
        else:
            state = "running" if self.running() else "pending"
        return f"<CodedFuture: {state}{self._background_map.format_progress()}>"

    def _ipython_display_(self) -> None:
        """Display the map in a notebook, and update it in place until it is done."""
        from polarmap.live.hub import make_program_snapshot
        from polarmap.live.snapshots import make_map_snapshot
        from polarmap.live.views import display_in_notebook

        reference = weakref.ref(self)  # The display does not keep the map running.

        def has_ended() -> bool:
            future = reference()
            return future is None or future.done()

        def take_snapshot(is_final: bool) -> ProgramSnapshot:
            future, is_running = reference(), not has_ended()
            report = None if future is None else future.report
            maps = [] if report is None else [make_map_snapshot(1, "", report, is_running)]
            return make_program_snapshot(maps)

        display_in_notebook(self, take_snapshot, has_ended)

    @property
    def report(self) -> Report | None:
        """The report of the map so far, or the final report. None until the number of tasks is known."""
        return self._background_map.current_report()

    def estimates(self) -> Iterator[R]:
        """Yield an estimate of the results whenever more have arrived, and finally the exact results.

        Each estimate is what `on_timeout="estimate"` would return at that moment. Its report says how good it
        is: `errors` of each block, `error_p90` of all blocks together. If results arrive faster than you
        consume the estimates, you get the latest estimate. Estimates are read-only. No estimate is made while
        results contain NaN or inf, or once the missing results can be decoded.

        Yields
        ------
        CodedResult
            The last one is `result()`.

        Raises
        ------
        CodeError
            If the map is not a `coded_map` of a linear f, or its results are written to storage.
        PolarmapError
            If the map failed, in place of the last result.

        Examples
        --------
        >>> import numpy as np, polarmap
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> data = np.random.default_rng(0).standard_normal((24, 50))
        >>> with ThreadPoolExecutor(4) as pool:
        ...     future = polarmap.submit(polarmap.coded_map, np.negative, data, blocks=6, executor=pool)
        ...     *_, last = future.estimates()
        >>> last.report.error_p90, bool(np.allclose(last.concatenate(), -data))
        (0.0, True)
        """
        if self._background_map.no_estimates_reason:
            raise CodeError(f"estimates() {self._background_map.no_estimates_reason}")
        return self._iterate_estimates()

    def _iterate_estimates(self) -> Iterator[R]:
        n_seen = 0
        while (snapshot := self._background_map.wait_for_estimate(self, n_seen)) is not None:
            n_seen = snapshot.n_arrived
            yield snapshot.result
        yield self.result()

    def cancel(self) -> bool:
        """Cancel the map, even while it is running, and stop its workers.

        Returns
        -------
        bool
            Whether the map was cancelled. False if it is already done.
        """
        if not super().cancel():
            return False
        self._background_map.cancel()
        for block in self.blocks:
            block.cancel()
        return True

    def running(self) -> bool:
        """Return whether the map has started and is not done."""
        return self._background_map.has_started and not self.done()


class _ReferenceToken:
    """An object to which all futures of a map refer.

    Once the program refers to none of these futures, the finalizer of this object cancels the map, unless a
    thread or a callback still waits for the result.
    """

    def __init__(self, background_map: BackgroundMap[Any]) -> None:
        weakref.finalize(self, background_map.on_futures_unreferenced).atexit = False


class BackgroundMap(Observer, Generic[R]):
    """Runs a map on a background thread, and sets the results of its futures.

    It refers to the futures weakly, so that the map can be cancelled once the program has dropped them.

    Parameters
    ----------
    prepared_map : PreparedMap
        The map to run.
    observers : sequence of Observer
        Further observers that receive the events of the map.

    Attributes
    ----------
    no_estimates_reason : str
        Why the results of this map cannot be estimated, or "" if they can.
    has_started : bool
        Whether a background thread has started to run the map.
    """

    _active_maps: ClassVar[set[BackgroundMap[Any]]] = set()

    def __init__(self, prepared_map: PreparedMap[R], observers: Sequence[Observer]) -> None:
        self._prepared_map = prepared_map
        self.no_estimates_reason = prepared_map.no_estimates_reason
        self._cancellation = CancellationToken()
        self._context = JobContext(EventStream((self, *observers)), self._cancellation)
        self._owner_pid = os.getpid()
        # Objects that keep the map running: futures with callbacks, and one object per waiting thread.
        self._pins: set[object] = set()
        self._get_report = prepared_map.get_report  # returns the report of the running job, if any
        self._report: Report | None = None  # the report of the most recently finished job
        self._is_open = False  # whether the map has workers and can be woken to poll its tasks
        self._finished = threading.Event()
        self._estimate_stream = EstimateStream()
        self._unchecked_blocks: set[int] = set()  # blocks whose futures received unchecked results
        self.has_started = False
        self._thread_id = 0  # the thread that runs the map
        self._has_polled = threading.Event()  # set whenever the map has polled its tasks

    def start(self) -> CodedFuture[R]:
        """Queue the map for a background thread, and return its future."""
        future = CodedFuture(self, self._prepared_map.n_blocks)
        self._future_ref = weakref.ref(future)
        self._block_future_refs = [weakref.ref(block_future) for block_future in future.blocks]
        if self._prepared_map.is_stored:
            self.keep_running_for(future)
        self._active_maps.add(self)
        BACKGROUND_THREADS.submit(partial(contextvars.copy_context().run, self._run_map_in_thread))
        return future

    def current_report(self) -> Report | None:
        """Return the report of the map so far. Any thread may call this method."""
        self._refresh_task_start_times()
        return self._get_report_without_polling()

    def _get_report_without_polling(self) -> Report | None:
        """Return the report so far, without first making the map poll its tasks."""
        get_report = self._get_report
        return self._report if get_report is None else get_report()

    def format_progress(self) -> str:
        """Return the map's progress as a string, for `repr`."""
        report = self._get_report_without_polling()
        if report is None:
            return ""
        n_arrived = sum(task.arrived is not None for task in report.tasks)
        return f", {n_arrived} of {report.n} results arrived, {report.needed} needed"

    def _refresh_task_start_times(self) -> None:
        """Make the map poll its tasks, so that the report shows which of them have started."""
        is_other_thread = threading.get_ident() != self._thread_id
        if self._is_open and is_other_thread and os.getpid() == self._owner_pid:
            self._has_polled.clear()
            self._cancellation.wake()
            self._has_polled.wait(MAX_REFRESH_SECONDS)

    def keep_running_for(self, future: Future[Any]) -> None:
        """Keep the map running until this future is done, even if no future is referenced any more."""
        if not future.done():
            self._pins.add(future)

    def on_futures_unreferenced(self) -> None:
        """Cancel the map unless a waiting thread or a callback still needs it.

        Called once no future is referenced.
        """
        if not self._pins:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the map. Its thread ends soon afterwards."""
        self._pins.clear()
        self._cancellation.cancel()

    def check_not_forked(self, future: Future[Any]) -> None:
        """Raise ExecutorError in a forked child process, because the map runs only in the parent process."""
        if os.getpid() != self._owner_pid and not future.done():
            raise ExecutorError(
                "this process was forked while a map ran, which continues only in the parent process: "
                "wait for its results there"
            )

    @contextmanager
    def keep_running_while_waiting(self, future: Future[Any]) -> Iterator[None]:
        """Return a context manager that keeps the map running while a thread waits for a future."""
        self.check_not_forked(future)
        pin = object()
        self._pins.add(pin)
        try:
            yield
        finally:
            self._pins.discard(pin)

    def wait_for_estimate(self, future: Future[Any], n_seen: int) -> EstimateSnapshot | None:
        """Wait for a new estimate of the results, and return it.

        An estimate is new if it is based on a number of received results other than `n_seen`. Returns None
        once the map is over.
        """
        self.check_not_forked(future)
        return self._estimate_stream.wait_for_next_estimate(n_seen, self._cancellation.wake)

    # -- on the thread of the map -----------------------------------------------------------

    def on_event(self, event: JobEvent) -> None:
        """Set the results of block futures, publish estimates, and keep the report for other threads."""
        if isinstance(event, JobPolled):
            self._is_open = True
            self._has_polled.set()
        elif isinstance(event, EstimateReady):
            if not self.no_estimates_reason:
                self._estimate_stream.publish_estimate_if_awaited(event.n_results, event.build_estimate)
        elif isinstance(event, BlockReady):
            if self._block_future_refs:
                if not event.is_final:
                    self._unchecked_blocks.add(event.index)
                _set_result(self._block_future_refs[event.index](), event.get_result)
        elif isinstance(event, JobStarted):
            self._get_report = event.get_report
        elif isinstance(event, JobFinished) and event.get_report is not None:
            self._report, self._get_report, self._is_open = event.report, None, False

    def _run_map_in_thread(self) -> None:
        """Run the map, and set the results of the futures that are still referenced."""
        self._thread_id = threading.get_ident()
        try:
            self._cancellation.raise_if_cancelled()
            self.has_started = True
            result = self._prepared_map.execute(self._context)
            self._report, self._get_report = getattr(result, "report", self._report), None
            self._warn_about_wrong_early_results()
        except JobCancelled:
            if (future := self._future_ref()) is not None:  # At exit, the future may still be referenced.
                future.cancel()
        except BaseException as error:
            trim_traceback(error)
            for block_ref in self._block_future_refs:
                _set_exception(block_ref(), error)
            _set_exception(self._future_ref(), error)
        else:
            _set_result(self._future_ref(), lambda: result)
        finally:
            self._pins.clear()
            self._active_maps.discard(self)
            self._estimate_stream.close()
            self._finished.set()

    def _warn_about_wrong_early_results(self) -> None:
        """Warn if block futures returned unchecked results that turned out to be wrong."""
        rejected_blocks = (
            self._unchecked_blocks.intersection(self._report.recovered) if self._report is not None else ()
        )
        if rejected_blocks:
            warn(
                f"future.blocks returned wrong results for blocks {sorted(rejected_blocks)}, as a check has "
                "found since. Use the result of the future itself, which is decoded from other results"
            )

    @classmethod
    def finish_maps_at_exit(cls) -> None:
        """Cancel all maps that no thread or callback waits for, and wait for the rest. Called at exit.

        No map is cancelled while other non-daemon threads are running, because they may need its results.
        """
        maps = list(cls._active_maps)
        pinned_maps = [active_map for active_map in maps if active_map._pins]
        unreferenced_maps = (
            []
            if _has_other_threads()
            else [active_map for active_map in maps if active_map not in pinned_maps]
        )
        for active_map in unreferenced_maps:
            active_map.cancel()
        for active_map in pinned_maps:
            active_map._finished.wait()
        for active_map in unreferenced_maps:
            active_map._finished.wait(SHUTDOWN_SECONDS)


def _has_other_threads() -> bool:
    """Return whether the program runs other non-daemon threads that may need results of maps.

    The current thread, the main thread and the threads of thread pools are not counted.
    """
    other_threads = {thread for thread in threading.enumerate() if not thread.daemon} - {
        threading.current_thread()
    }
    return bool(other_threads.difference(_threads_queues, [threading.main_thread()]))


def _set_result(future: Future[Any] | None, get_result: Callable[[], Any]) -> None:
    """Set the result of a future unless it is done or no longer referenced (None)."""
    if future is not None and not future.done():
        with contextlib.suppress(InvalidStateError):  # The future may just have been cancelled.
            future.set_result(get_result())


def _set_exception(future: Future[Any] | None, error: BaseException) -> None:
    """Set the exception of a future unless it is done or no longer referenced (None)."""
    if future is not None and not future.done():
        with contextlib.suppress(InvalidStateError):
            future.set_exception(error)


def _forget_maps_after_fork() -> None:
    """Forget the maps of the parent process, which do not run in a forked child."""
    BackgroundMap._active_maps.clear()


register_before_exit(BackgroundMap.finish_maps_at_exit)
atexit.register(BackgroundMap.finish_maps_at_exit)  # for interpreters without `threading._register_atexit`
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_maps_after_fork)
