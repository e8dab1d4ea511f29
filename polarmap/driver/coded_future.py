"""A map as a future: its results later, those of single blocks as they come, and a way to call it off."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.thread import _threads_queues
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from polarmap.driver.daemon_pool import BACKGROUND_THREADS, register_before_exit
from polarmap.driver.estimates import EstimateSnapshot, EstimateStream
from polarmap.driver.map_execution import MapExecution, Observer, Observers
from polarmap.driver.prepared_map import PreparedMap
from polarmap.errors import CodeError, ExecutorError, trim_traceback, trimmed_tracebacks, warn
from polarmap.executors.interface import Outcome
from polarmap.report import Report
from polarmap.worker.processes import SHUTDOWN_SECONDS

MAX_REFRESH_SECONDS = 0.1  # that a report of a map that runs may wait for news of which tasks have begun

R = TypeVar("R")


class MapCancelled(BaseException):
    """Ends a map whose results nobody waits for. Nobody sees it."""


class MapFuture(Future[R]):
    """A future of a map that goes on as long as it, or another one of the same map, is kept."""

    def __init__(self, reference_token: _ReferenceToken, background_map: BackgroundMap[Any]) -> None:
        super().__init__()
        self._reference_token, self._background_map = reference_token, background_map
        self._is_cancel_notified = False

    def cancel(self) -> bool:
        """Let nobody wait for it any more; False if it is done already."""
        if not super().cancel():
            return False
        with self._condition:
            is_notified, self._is_cancel_notified = self._is_cancel_notified, True
        if not is_notified:
            self.set_running_or_notify_cancel()
        return True

    def result(self, timeout: float | None = None) -> R:
        """What it is a future of; waits for it.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait. The map goes on.

        Raises
        ------
        TimeoutError
            It is not done.
        CancelledError
            It was called off.
        PolarmapError
            Whatever the map raises.
        """
        with trimmed_tracebacks, self._background_map.keep_running_while_waiting(self):
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the map raises, None if it returns; waits for it."""
        with self._background_map.keep_running_while_waiting(self):
            return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call fn with this future when it is done, at once if it is; the map goes on for that."""
        self._background_map.keep_running_for(self)
        super().add_done_callback(fn)

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio  # takes longer to import than most of polarmap

        return asyncio.wrap_future(self).__await__()


class CodedFuture(MapFuture[R]):
    """What `submit` returns: a `concurrent.futures.Future` of what the map returns.

    It may be awaited. When it is dropped, and its blocks too, the map is called off, unless there are
    callbacks to be called or its results stay in storage.

    Attributes
    ----------
    blocks : tuple of Future
        Of the k results; each is done as soon as its own worker has returned it or it is decoded. What
        comes before the others is as its worker returned it, no check has seen it, and it is read-only:
        the others may still be decoded from it. Empty where results are not of blocks, or stay in storage.
    """

    def __init__(self, background_map: BackgroundMap[R], n_blocks: int) -> None:
        reference_token = _ReferenceToken(background_map)
        super().__init__(reference_token, background_map)
        self.blocks: tuple[Future[Any], ...] = tuple(
            MapFuture(reference_token, background_map) for _ in range(n_blocks)
        )

    def __repr__(self) -> str:
        """Return the state, without waiting for anything."""
        if self.cancelled():
            state = "cancelled"
        elif self.done():
            error = Future.exception(self)
            state = "done" if error is None else f"failed with {type(error).__name__}"
        else:
            state = "running" if self.running() else "pending"
        return f"<CodedFuture: {state}{self._background_map.format_progress()}>"

    @property
    def report(self) -> Report | None:
        """What has happened so far, or in all; None where nothing is known before the map begins."""
        return self._background_map.current_report()

    def estimates(self) -> Iterator[R]:
        """The results as they are estimated so far, each time that more have arrived; the exact ones last.

        Each is what `on_timeout="estimate"` would return at that moment, and its report tells how good it
        is: `errors` of each block, `error_p90` of all together. Whoever is slower than results arrive
        gets the latest; when they determine the rest, only the last is left. All but that are read-only. Of
        results that cannot be estimated (NaN, inf) there is only the last.

        Yields
        ------
        CodedResult
            The last one is `result()`, with its own checks.

        Raises
        ------
        CodeError
            The map is not of linear f by coded_map, or its results stay in storage.
        PolarmapError
            Whatever the map raises, in place of the last one.

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
        """Call the map off: its workers stop, also while it runs.

        Returns
        -------
        bool
            False if it is done already.
        """
        if not super().cancel():
            return False
        self._background_map.cancel()
        for block in self.blocks:
            block.cancel()
        return True

    def running(self) -> bool:
        """Whether it has begun and is not done."""
        return self._background_map.has_started and not self.done()


class _ReferenceToken:
    """Is held by a future and those of its blocks: when all are dropped, so is it."""

    def __init__(self, background_map: BackgroundMap[Any]) -> None:
        weakref.finalize(self, background_map.on_futures_unreferenced).atexit = False


class BackgroundMap(Observer, Generic[R]):
    """A map that belongs to a future, which it does not hold, and looks on itself.

    Parameters
    ----------
    prepared_map : what is to run.
    observers : who looks on besides.
    """

    _active_maps: ClassVar[set[BackgroundMap[Any]]] = set()

    def __init__(self, prepared_map: PreparedMap[R], observers: Observers) -> None:
        self._prepared_map, self._observers = prepared_map, observers
        self.no_estimates_reason = prepared_map.no_estimates_reason  # why there are none of such a map
        self._owner_pid = os.getpid()
        # Futures to be fulfilled whether somebody else has them or not, and a mark for each wait for one.
        self._pins: set[object] = set()
        self._is_cancelled = False
        self._execution = prepared_map.execution
        self._report: Report | None = None  # once it is over
        self._finished = threading.Event()
        self._estimate_stream = EstimateStream()
        self._early_blocks: set[int] = set()  # blocks whose results were handed out before the others'
        self.has_started = False
        self._thread_id = 0  # the identifier of the thread on which the map runs
        self._has_polled = threading.Event()  # set whenever the map has looked at its tasks

    def start(self) -> CodedFuture[R]:
        """The future of the map, which begins as soon as a thread is free."""
        future = CodedFuture(self, self._prepared_map.n_blocks)
        self._future_ref = weakref.ref(future)
        self._block_future_refs = [weakref.ref(block_future) for block_future in future.blocks]
        if self._prepared_map.is_stored:
            self.keep_running_for(future)
        self._active_maps.add(self)
        BACKGROUND_THREADS.submit(partial(contextvars.copy_context().run, self._run_map_in_thread))
        return future

    def current_report(self) -> Report | None:
        """Return what has happened so far; any thread may ask."""
        self._refresh_task_start_times()
        execution = self._execution
        return self._report if execution is None else execution.current_report()

    def format_progress(self) -> str:
        """Return how many results have arrived and are needed, as it is known without waking the map."""
        execution = self._execution
        report = self._report if execution is None else execution.current_report()
        if report is None:
            return ""
        n_arrived = sum(task.arrived is not None for task in report.tasks)
        return f", {n_arrived} of {report.n} results arrived, {report.needed} needed"

    def _refresh_task_start_times(self) -> None:
        """Let the map note which tasks have begun: it is told so when a task ends or it is woken."""
        execution = self._execution
        is_open = execution is not None and execution.collector is not None and os.getpid() == self._owner_pid
        if is_open and threading.get_ident() != self._thread_id:
            self._has_polled.clear()
            self._wake_execution()
            self._has_polled.wait(MAX_REFRESH_SECONDS)

    def keep_running_for(self, future: Future[Any]) -> None:
        """Go on until this future is done, whether somebody has it or not."""
        if not future.done():
            self._pins.add(future)

    def on_futures_unreferenced(self) -> None:
        """Nobody has the future or one of its blocks any more."""
        if not self._pins:
            self.cancel()

    def cancel(self) -> None:
        """Let the map end: its results can reach nobody."""
        self._is_cancelled = True
        self._pins.clear()
        self._wake_execution()

    def _wake_execution(self) -> None:
        """Let the map look up, if it runs."""
        execution = self._execution
        if execution is not None:
            execution.wake()

    def check_not_forked(self, future: Future[Any]) -> None:
        """ExecutorError in a process that was forked of the one in which the map runs."""
        if os.getpid() != self._owner_pid and not future.done():
            raise ExecutorError("this process was forked while a map ran, which goes on in its parent only")

    @contextmanager
    def keep_running_while_waiting(self, future: Future[Any]) -> Iterator[None]:
        """A thread waits for it, within."""
        self.check_not_forked(future)
        pin = object()
        self._pins.add(pin)
        try:
            yield
        finally:
            self._pins.discard(pin)

    def wait_for_estimate(self, future: Future[Any], n_seen: int) -> EstimateSnapshot | None:
        """Wait for an estimate from other than `n_seen` results; None when the map is over."""
        self.check_not_forked(future)
        return self._estimate_stream.wait_for_next_estimate(n_seen, self._wake_execution)

    # -- as an observer of the map, on its thread -------------------------------------------

    def on_start(self, execution: MapExecution) -> None:
        """The map may be woken, and asked for its report, unless it was called off while it was cut."""
        self._execution = execution
        self._raise_if_cancelled()

    def on_attempt_end(self, outcome: Outcome, elapsed_seconds: float) -> None:
        """Fulfil the future of a block that is not to wait for the others."""
        collector = self._execution and self._execution.collector
        get_result = (
            collector.make_early_result_getter(outcome.task)
            if collector and self._block_future_refs
            else None
        )
        if get_result is not None:
            self.on_item_result(outcome.task, get_result)

    def on_item_result(self, item_index: int, get_result: Callable[[], Any]) -> None:
        """Fulfil its future, if the map is one of these items."""
        if self._block_future_refs:
            self._early_blocks.add(item_index)
            _set_result(self._block_future_refs[item_index](), get_result)

    def on_poll(self, n_arrived: int) -> None:
        """Where a map may be called off: from the first look on it may be woken."""
        self._has_polled.set()
        self._raise_if_cancelled()
        execution = self._execution
        collector = None if execution is None else execution.collector
        if execution is not None and collector is not None and not self.no_estimates_reason:
            self._estimate_stream.publish_estimate_if_awaited(
                n_arrived, lambda: collector.build_interim_estimate(execution.current_report())
            )

    def on_stripes_done(self, n_done: int, n_stripes: int) -> None:
        """Where an encoding may be called off."""
        self._raise_if_cancelled()

    def on_finish(self, report_or_error: Report | BaseException | None) -> None:
        """Keep what is left to be asked for."""
        if self._execution is not None:
            if not isinstance(report_or_error, Report):
                report_or_error = self._execution.current_report()
            self._report, self._execution = report_or_error, None

    def _raise_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise MapCancelled

    # ---------------------------------------------------------------------------------------

    def _run_map_in_thread(self) -> None:
        """Run the map, and fulfil the futures that are still there."""
        self._thread_id = threading.get_ident()
        try:
            self._raise_if_cancelled()
            self.has_started = True
            result = self._prepared_map.execute((self, *self._observers))
            self._report, self._execution = getattr(result, "report", self._report), None
            self._warn_about_wrong_early_results()
        except MapCancelled:
            if (future := self._future_ref()) is not None:  # at exit somebody may still have it
                future.cancel()
        except BaseException as error:
            trim_traceback(error)
            for block_ref in self._block_future_refs:
                _set_exception(block_ref(), error)
            _set_exception(self._future_ref(), error)
        else:
            results: Any = result
            for block_index, block_ref in enumerate(self._block_future_refs):
                _set_result(block_ref(), partial(results.__getitem__, block_index))
            _set_result(self._future_ref(), lambda: result)
        finally:
            self._pins.clear()
            self._active_maps.discard(self)
            self._estimate_stream.close()
            self._finished.set()

    def _warn_about_wrong_early_results(self) -> None:
        """Say which results were handed out early and decoded later, because they had been found wrong."""
        rejected_blocks = (
            self._early_blocks.intersection(self._report.recovered) if self._report is not None else ()
        )
        if rejected_blocks:
            warn(
                f"what future.blocks told of blocks {sorted(rejected_blocks)} before the others turned out "
                "to be garbage: the results of the future itself are decoded from others"
            )

    @classmethod
    def finish_maps_at_exit(cls) -> None:
        """At exit: call off what can reach nobody any more, and wait for the rest as pools of threads do.

        While other threads go on that the interpreter waits for, any map may be of use to them.
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
    """Whether there are threads that the interpreter waits for, but for this one and those of pools."""
    other_threads = {thread for thread in threading.enumerate() if not thread.daemon} - {
        threading.current_thread()
    }
    return bool(other_threads.difference(_threads_queues, [threading.main_thread()]))


def _set_result(future: Future[Any] | None, get_result: Callable[[], Any]) -> None:
    """Set the result of a future that is still there, and not done."""
    if future is not None and not future.done():
        with contextlib.suppress(InvalidStateError):  # cancelled this moment
            future.set_result(get_result())


def _set_exception(future: Future[Any] | None, error: BaseException) -> None:
    if future is not None and not future.done():
        with contextlib.suppress(InvalidStateError):
            future.set_exception(error)


def _forget_maps_after_fork() -> None:
    """In a process that was forked the maps of its parent do not run."""
    BackgroundMap._active_maps.clear()


register_before_exit(BackgroundMap.finish_maps_at_exit)
atexit.register(BackgroundMap.finish_maps_at_exit)  # when no threads go on
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_maps_after_fork)
