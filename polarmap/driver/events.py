"""Events that a running job (one run of a map on an executor) emits, and observers that handle them.

Progress bars, logging, callbacks and futures are observers. A `JobContext` passes the observers and the means
to cancel the job from the caller to the job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

from polarmap.executors.interface import AttemptId, Outcome
from polarmap.report import Report

# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobStarted:
    """Emitted when a job starts, before it connects to its workers.

    Attributes
    ----------
    get_report : callable
        Call it without arguments on any thread to get the report so far, until the job has finished.
    function_name : str
        The name of the function that the job runs.
    map_id : int
        The number of the map in this process, starting at 1.
    """

    get_report: Callable[[], Report]
    function_name: str = ""
    map_id: int = 0


@dataclass(frozen=True, slots=True)
class AttemptsStarted:
    """Emitted when further attempts start: parity (redundant) tasks, backups of late tasks, or retries.

    An attempt is one run of a task. The attempts at the start of a job are not reported.

    Attributes
    ----------
    attempts : sequence of (int, int)
        The task and the attempt number of each attempt.
    pending_tasks : collection of int
        All other tasks that have a queued or running attempt.
    elapsed_seconds : float
        Seconds since the start of the job.
    """

    attempts: Sequence[AttemptId]
    pending_tasks: Collection[int]
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """Emitted when an attempt (one run of a task) returned, raised an exception or was lost.

    Attributes
    ----------
    outcome : Outcome
        The result, or the failure.
    elapsed_seconds : float
        Seconds since the start of the job.
    """

    outcome: Outcome
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class BlockReady:
    """Emitted when the result of a data block or item is available.

    Attributes
    ----------
    index : int
        The number of the block or item.
    get_result : callable
        Call it with no arguments to get the result.
    is_final : bool
        Whether the result has been accepted. Otherwise it has not been checked yet, and its arrays are
        read-only, because missing results may still be decoded from them.
    """

    index: int
    get_result: Callable[[], Any]
    is_final: bool


@dataclass(frozen=True, slots=True)
class JobPolled:
    """Emitted each time the job has polled its workers, starting as soon as it has connected.

    Attributes
    ----------
    n_results : int
        The number of results that have arrived and were not rejected.
    """

    n_results: int


@dataclass(frozen=True, slots=True)
class EstimateReady:
    """Emitted when it may be possible to estimate the missing results from the results so far.

    Attributes
    ----------
    n_results : int
        The number of results that have arrived and were not rejected.
    build_estimate : callable
        Call it with no arguments to get the estimated results, or None if they cannot be estimated yet. It
        may be called only while the event is being handled.
    """

    n_results: int
    build_estimate: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class StripesEncoded:
    """Emitted to show the progress of encoding an array in this process.

    The array is encoded in `n_stripes` slices (stripes), of which `n_done` are done.
    """

    n_done: int
    n_stripes: int


@dataclass(frozen=True, slots=True)
class JobFinished:
    """The final event of a job, emitted when it has returned or raised an exception.

    Attributes
    ----------
    get_report : callable or None
        Call it without arguments to get the final report, or the report up to the exception. None if this
        process only encoded an array.
    error : BaseException or None
        The exception, or None if the job has returned.
    n_results : int
        The number of results that have arrived.
    """

    get_report: Callable[[], Report] | None
    error: BaseException | None = None
    n_results: int = 0

    @property
    def report(self) -> Report | None:
        """The report. The first access builds it, which takes time proportional to the number of tasks."""
        return None if self.get_report is None else self.get_report()


JobEvent = (
    JobStarted
    | AttemptsStarted
    | AttemptEnded
    | BlockReady
    | JobPolled
    | EstimateReady
    | StripesEncoded
    | JobFinished
)


# --- observers ---------------------------------------------------------------------------------


class Observer(ABC):
    """Base class of observers, which handle the events of a job (a run of a map) on the job's thread.

    An exception raised by an observer ends the job and propagates to its caller.

    Attributes
    ----------
    poll_interval : float
        The maximum time between two `JobPolled` events, in seconds.
    event_classes : tuple of type, or None
        The classes of events that the observer handles, or None for all. Events that no observer handles are
        not created.
    """

    poll_interval = inf
    event_classes: tuple[type, ...] | None = None

    @abstractmethod
    def on_event(self, event: JobEvent) -> None:
        """Handle an event. Observers should ignore unknown event classes."""


class ResultCallback(Observer):
    """An observer that calls a user function with each final result of a data block or item.

    Parameters
    ----------
    on_result : callable
        Called as `on_result(index, result)` on the thread that runs the job.
    """

    event_classes: tuple[type, ...] | None = (BlockReady,)

    def __init__(self, on_result: Callable[[int, Any], object]) -> None:
        self._on_result = on_result

    def on_event(self, event: JobEvent) -> None:
        """Call the function if the event is a final result."""
        if isinstance(event, BlockReady) and event.is_final:
            self._on_result(event.index, event.get_result())


class EventStream:
    """Passes the events of a job to its observers.

    Parameters
    ----------
    observers : sequence of Observer
        The observers in the order in which they receive events. The final event of a job is delivered in
        reverse order: like nested `with` statements, the observer that was started first is closed last.

    Attributes
    ----------
    poll_interval : float
        The shortest `poll_interval` of the observers.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)
        self.poll_interval = min((observer.poll_interval for observer in self.observers), default=inf)

    def has_observer_of(self, *event_classes: type) -> bool:
        """Return whether an observer handles events of one of these classes."""
        return any(
            observer.event_classes is None or not set(event_classes).isdisjoint(observer.event_classes)
            for observer in self.observers
        )

    def emit(self, event: JobEvent) -> None:
        """Pass an event to each observer."""
        for observer in self.observers:
            observer.on_event(event)

    def emit_final_event(self, event: JobFinished) -> None:
        """Pass the final event of a job to the observers in reverse order."""
        for observer in reversed(self.observers):
            observer.on_event(event)


# --- what a job gets from its caller -----------------------------------------------------------


class JobCancelled(BaseException):
    """Raised inside a job to end it after it was cancelled. The caller of a map never sees it."""


class CancellationToken:
    """Lets any thread cancel or wake a job, even before the job has started."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._wake: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Wake the job and make it raise `JobCancelled`."""
        self.is_cancelled = True
        self.wake()

    def wake(self) -> None:
        """Make the job poll its tasks immediately, if it is running."""
        wake = self._wake
        if wake is not None:
            wake()

    def set_wake_function(self, wake: Callable[[], None] | None) -> None:
        """Set the function that wakes the job while it is running, or None when the job is over."""
        self._wake = wake

    def raise_if_cancelled(self) -> None:
        """Raise JobCancelled once `cancel` has been called."""
        if self.is_cancelled:
            raise JobCancelled


@dataclass(frozen=True, slots=True)
class JobContext:
    """The observers and the cancellation token that a map passes to each of its jobs.

    Attributes
    ----------
    events : EventStream or None
        The stream to which jobs emit events. None if there are no observers, so that no events are created.
    cancellation : CancellationToken or None
        Lets other threads cancel the map. None if it cannot be cancelled.
    """

    events: EventStream | None = None
    cancellation: CancellationToken | None = None

    @contextmanager
    def track_encoding_progress(self, n_stripes: int) -> Iterator[Callable[[int], None]]:
        """Return a context manager that emits progress events while an array is encoded in slices.

        Entering the context returns a function to be called with the number of slices done so far. This
        function raises JobCancelled if the job has been cancelled.
        """
        events, cancellation = self.events, self.cancellation

        def show_progress(n_done: int) -> None:
            if cancellation is not None:
                cancellation.raise_if_cancelled()
            if events is not None:
                events.emit(StripesEncoded(n_done, n_stripes))

        try:
            show_progress(0)
            yield show_progress
        finally:
            if events is not None:
                events.emit_final_event(JobFinished(None))


PLAIN_CONTEXT = JobContext()  # has no observers and cannot be cancelled
