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

from polarmap.errors import CodeError, ExecutorError, hide_our_frames, warn, without_our_frames
from polarmap.executors.interface import Outcome
from polarmap.report import Report
from polarmap.run.estimates import EstimateStream, NumberedEstimate, estimate_so_far
from polarmap.run.map_threads import MAP_THREADS, call_before_exit
from polarmap.run.prepared_map import PreparedMap
from polarmap.run.running_map import Observer, Observers, RunningMap
from polarmap.worker.processes import SHUTDOWN_SECONDS

REFRESH_SECONDS = 0.1  # that a report of a map that runs may wait for news of which tasks have begun

R = TypeVar("R")


class CalledOff(BaseException):
    """Ends a map whose results nobody waits for. Nobody sees it."""


class WatchedFuture(Future[R]):
    """A future of a map that goes on as long as it, or another one of the same map, is kept."""

    def __init__(self, reference: _Reference, map_: FutureMap[Any]) -> None:
        super().__init__()
        self._reference, self._map = reference, map_
        self._is_told = False

    def cancel(self) -> bool:
        """Let nobody wait for it any more; False if it is done already."""
        if not super().cancel():
            return False
        with self._condition:
            is_told, self._is_told = self._is_told, True
        if not is_told:
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
        with without_our_frames, self._map.awaited(self):
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the map raises, None if it returns; waits for it."""
        with self._map.awaited(self):
            return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call fn with this future when it is done, at once if it is; the map goes on for that."""
        self._map.keep(self)
        super().add_done_callback(fn)

    def __await__(self) -> Generator[Any, None, R]:
        import asyncio  # takes longer to import than most of polarmap

        return asyncio.wrap_future(self).__await__()


class CodedFuture(WatchedFuture[R]):
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

    def __init__(self, map_: FutureMap[R], blocks: int) -> None:
        reference = _Reference(map_)
        super().__init__(reference, map_)
        self.blocks: tuple[Future[Any], ...] = tuple(WatchedFuture(reference, map_) for _ in range(blocks))

    def __repr__(self) -> str:
        """Return the state, without waiting for anything."""
        if self.cancelled():
            state = "cancelled"
        elif self.done():
            error = Future.exception(self)
            state = "done" if error is None else f"failed with {type(error).__name__}"
        else:
            state = "running" if self.running() else "pending"
        return f"<CodedFuture: {state}{self._map.counts()}>"

    @property
    def report(self) -> Report | None:
        """What has happened so far, or in all; None where nothing is known before the map begins."""
        return self._map.report()

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
        if self._map.no_estimates:
            raise CodeError(f"estimates() {self._map.no_estimates}")
        return self._estimates()

    def _estimates(self) -> Iterator[R]:
        seen = 0
        while (found := self._map.next_estimate(self, seen)) is not None:
            seen = found.arrived
            yield found.value
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
        self._map.call_off()
        for block in self.blocks:
            block.cancel()
        return True

    def running(self) -> bool:
        """Whether it has begun and is not done."""
        return self._map.has_begun and not self.done()


class _Reference:
    """Is held by a future and those of its blocks: when all are dropped, so is it."""

    def __init__(self, map_: FutureMap[Any]) -> None:
        weakref.finalize(self, map_.drop).atexit = False


class FutureMap(Observer, Generic[R]):
    """A map that belongs to a future, which it does not hold, and looks on itself.

    Parameters
    ----------
    prepared : what is to run.
    others : who looks on besides.
    """

    _under_way: ClassVar[set[FutureMap[Any]]] = set()

    def __init__(self, prepared: PreparedMap[R], others: Observers) -> None:
        self._prepared, self._others = prepared, others
        self.no_estimates = prepared.no_estimates  # why there are none of such a map
        self._owner = os.getpid()
        # Futures to be fulfilled whether somebody else has them or not, and a mark for each wait for one.
        self._kept: set[object] = set()
        self._is_called_off = False
        self._running = prepared.running
        self._report: Report | None = None  # once it is over
        self._ended = threading.Event()
        self._stream = EstimateStream()
        self._early: set[int] = set()  # blocks whose results were handed out before the others'
        self.has_begun = False
        self._thread = 0  # the identifier of the thread on which the map runs
        self._has_looked = threading.Event()  # set whenever the map has looked at its tasks

    def start(self) -> CodedFuture[R]:
        """The future of the map, which begins as soon as a thread is free."""
        future = CodedFuture(self, self._prepared.blocks)
        self._future = weakref.ref(future)
        self._blocks = [weakref.ref(block) for block in future.blocks]
        if self._prepared.is_lasting:
            self.keep(future)
        self._under_way.add(self)
        MAP_THREADS.start(partial(contextvars.copy_context().run, self._run))
        return future

    def report(self) -> Report | None:
        """Return what has happened so far; any thread may ask."""
        self._refresh()
        running = self._running
        return self._report if running is None else running.report()

    def counts(self) -> str:
        """Return how many results have arrived and are needed, as it is known without waking the map."""
        running = self._running
        report = self._report if running is None else running.report()
        if report is None:
            return ""
        arrived = sum(task.arrived is not None for task in report.tasks)
        return f", {arrived} of {report.n} results arrived, {report.needed} needed"

    def _refresh(self) -> None:
        """Let the map note which tasks have begun: it is told so when a task ends or it is woken."""
        running = self._running
        is_open = running is not None and running.need is not None and os.getpid() == self._owner
        if is_open and threading.get_ident() != self._thread:
            self._has_looked.clear()
            self._wake()
            self._has_looked.wait(REFRESH_SECONDS)

    def keep(self, future: Future[Any]) -> None:
        """Go on until this future is done, whether somebody has it or not."""
        if not future.done():
            self._kept.add(future)

    def drop(self) -> None:
        """Nobody has the future or one of its blocks any more."""
        if not self._kept:
            self.call_off()

    def call_off(self) -> None:
        """Let the map end: its results can reach nobody."""
        self._is_called_off = True
        self._kept.clear()
        self._wake()

    def _wake(self) -> None:
        """Let the map look up, if it runs."""
        running = self._running
        if running is not None:
            running.wake()

    def check_process(self, future: Future[Any]) -> None:
        """ExecutorError in a process that was forked of the one in which the map runs."""
        if os.getpid() != self._owner and not future.done():
            raise ExecutorError("this process was forked while a map ran, which goes on in its parent only")

    @contextmanager
    def awaited(self, future: Future[Any]) -> Iterator[None]:
        """A thread waits for it, within."""
        self.check_process(future)
        mark = object()
        self._kept.add(mark)
        try:
            yield
        finally:
            self._kept.discard(mark)

    def next_estimate(self, future: Future[Any], seen: int) -> NumberedEstimate | None:
        """Wait for an estimate from other than `seen` results; None when the map is over."""
        self.check_process(future)
        return self._stream.after(seen, self._wake)

    # -- as an observer of the map, on its thread -------------------------------------------

    def began(self, running: RunningMap) -> None:
        """The map may be woken, and asked for its report, unless it was called off while it was cut."""
        self._running = running
        self._check()

    def ended(self, outcome: Outcome, elapsed: float) -> None:
        """Fulfil the future of a block that is not to wait for the others."""
        need = self._running and self._running.need
        result = need.early_result(outcome.task) if need and self._blocks else None
        if result is not None:
            self.arrived(outcome.task, result)

    def arrived(self, index: int, result: Callable[[], Any]) -> None:
        """Fulfil its future, if the map is one of these items."""
        if self._blocks:
            self._early.add(index)
            _fulfil(self._blocks[index](), result)

    def looked(self, arrived: int) -> None:
        """Where a map may be called off: from the first look on it may be woken."""
        self._has_looked.set()
        self._check()
        running = self._running
        need = None if running is None else running.need
        if running is not None and need is not None and not self.no_estimates:
            self._stream.offer(arrived, lambda: estimate_so_far(need, running.report()))

    def counted(self, done: int, total: int) -> None:
        """Where an encoding may be called off."""
        self._check()

    def finished(self, end: Report | BaseException | None) -> None:
        """Keep what is left to be asked for."""
        if self._running is not None:
            self._report, self._running = end if isinstance(end, Report) else self._running.report(), None

    def _check(self) -> None:
        if self._is_called_off:
            raise CalledOff

    # ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Run the map, and fulfil the futures that are still there."""
        self._thread = threading.get_ident()
        try:
            self._check()
            self.has_begun = True
            result = self._prepared.run((self, *self._others))
            self._report, self._running = getattr(result, "report", self._report), None
            self._warn_of_garbage()
        except CalledOff:
            if (future := self._future()) is not None:  # at exit somebody may still have it
                future.cancel()
        except BaseException as error:
            hide_our_frames(error)
            for block in self._blocks:
                _fail(block(), error)
            _fail(self._future(), error)
        else:
            results: Any = result
            for index, block in enumerate(self._blocks):
                _fulfil(block(), partial(results.__getitem__, index))
            _fulfil(self._future(), lambda: result)
        finally:
            self._kept.clear()
            self._under_way.discard(self)
            self._stream.end()
            self._ended.set()

    def _warn_of_garbage(self) -> None:
        """Say which results were handed out early and decoded later, because they had been found wrong."""
        wrong = self._early.intersection(self._report.recovered) if self._report is not None else ()
        if wrong:
            warn(
                f"what future.blocks told of blocks {sorted(wrong)} before the others turned out to be "
                "garbage: the results of the future itself are decoded from others"
            )

    @classmethod
    def end_all(cls) -> None:
        """At exit: call off what can reach nobody any more, and wait for the rest as pools of threads do.

        While other threads go on that the interpreter waits for, any map may be of use to them.
        """
        maps = list(cls._under_way)
        lasting = [one for one in maps if one._kept]
        useless = [] if _threads_go_on() else [one for one in maps if one not in lasting]
        for one in useless:
            one.call_off()
        for one in lasting:
            one._ended.wait()
        for one in useless:
            one._ended.wait(SHUTDOWN_SECONDS)


def _threads_go_on() -> bool:
    """Whether there are threads that the interpreter waits for, but for this one and those of pools."""
    others = {one for one in threading.enumerate() if not one.daemon} - {threading.current_thread()}
    return bool(others.difference(_threads_queues, [threading.main_thread()]))


def _fulfil(future: Future[Any] | None, result: Callable[[], Any]) -> None:
    """Set the result of a future that is still there, and not done."""
    if future is not None and not future.done():
        with contextlib.suppress(InvalidStateError):  # cancelled this moment
            future.set_result(result())


def _fail(future: Future[Any] | None, error: BaseException) -> None:
    if future is not None and not future.done():
        with contextlib.suppress(InvalidStateError):
            future.set_exception(error)


def _forget_all() -> None:
    """In a process that was forked the maps of its parent do not run."""
    FutureMap._under_way.clear()


call_before_exit(FutureMap.end_all)
atexit.register(FutureMap.end_all)  # when no threads go on
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
