"""The events of a job, the observers that handle them, and the context that a job gets from its caller."""

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
    """A job is about to open its session.

    Attributes
    ----------
    get_report : callable
        Called with no arguments, on any thread, until the job has finished; returns the report so far.
    """

    get_report: Callable[[], Report]


@dataclass(frozen=True, slots=True)
class AttemptsStarted:
    """Attempts were submitted after the initial ones: parity on demand, backups, or retries of failed tasks.

    Attributes
    ----------
    attempts : sequence of (int, int)
        The task and the number of each attempt.
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
    """An attempt returned a result, raised an exception or was lost.

    Attributes
    ----------
    outcome : Outcome
    elapsed_seconds : float
        Seconds since the start of the job.
    """

    outcome: Outcome
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class BlockReady:
    """The result of a data block or of an item is available.

    Attributes
    ----------
    index : int
        The number of the block or item.
    get_result : callable
        Called with no arguments; returns the result.
    is_final : bool
        Whether the result has been accepted. Otherwise it has not been checked, and its arrays are read-only,
        because missing results may still be decoded from them.
    """

    index: int
    get_result: Callable[[], Any]
    is_final: bool


@dataclass(frozen=True, slots=True)
class JobPolled:
    """The job has polled its session; the first of these events follows the opening of the session.

    Attributes
    ----------
    n_results : int
        The number of results that have arrived and were not rejected.
    """

    n_results: int


@dataclass(frozen=True, slots=True)
class EstimateReady:
    """The missing results can be estimated from those that have arrived.

    Attributes
    ----------
    n_results : int
        The number of results that have arrived and were not rejected.
    build_estimate : callable
        Called with no arguments; returns the estimated results, or None if they cannot be estimated yet. It
        may be called only while the event is handled.
    """

    n_results: int
    build_estimate: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class StripesEncoded:
    """`n_done` of the `n_stripes` stripes of an array have been encoded by this process."""

    n_done: int
    n_stripes: int


@dataclass(frozen=True, slots=True)
class JobFinished:
    """The job has returned, or has raised an exception, perhaps before its session was open.

    Attributes
    ----------
    report : Report or None
        The final report, or the report up to the exception. None after this process has encoded stripes.
    error : BaseException or None
        The exception; None if the job has returned.
    """

    report: Report | None
    error: BaseException | None = None


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
    """Handles the events of a job, on the thread that runs it.

    An exception that an observer raises ends the job and is raised to the caller of the job.

    Attributes
    ----------
    poll_interval : float
        The longest time between two `JobPolled` events, in seconds.
    """

    poll_interval = inf

    @abstractmethod
    def on_event(self, event: JobEvent) -> None:
        """Handle an event. Observers ignore events of other classes than those they are made for."""


class ResultCallback(Observer):
    """Calls a function of the user with each accepted result of a data block or item.

    Parameters
    ----------
    on_result : callable
        Called as `on_result(index, result)` on the thread that runs the job.
    """

    def __init__(self, on_result: Callable[[int, Any], object]) -> None:
        self._on_result = on_result

    def on_event(self, event: JobEvent) -> None:
        """Call the function if the event is an accepted result."""
        if isinstance(event, BlockReady) and event.is_final:
            self._on_result(event.index, event.get_result())


class EventStream:
    """Passes the events of a job to its observers.

    Parameters
    ----------
    observers : sequence of Observer
        They get each event in this order, and the last one in reverse: what an observer opens when a job
        starts is closed after what later ones have opened.

    Attributes
    ----------
    poll_interval : float
        The shortest one of the observers.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)
        self.poll_interval = min((observer.poll_interval for observer in self.observers), default=inf)

    def emit(self, event: JobEvent) -> None:
        """Let each observer handle an event."""
        for observer in self.observers:
            observer.on_event(event)

    def emit_last(self, event: JobFinished) -> None:
        """Let each observer handle the last event of a job, in reverse order."""
        for observer in reversed(self.observers):
            observer.on_event(event)


# --- what a job gets from its caller -----------------------------------------------------------


class JobCancelled(BaseException):
    """Ends a job that was cancelled. No caller of a map ever sees it."""


class CancellationToken:
    """Cancels or wakes the job that runs with it. Any thread may call it, before the job is open as well."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._wake: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Let the job end with `JobCancelled` as soon as it has looked up."""
        self.is_cancelled = True
        self.wake()

    def wake(self) -> None:
        """Let the job look at its tasks at once, if it is open."""
        wake = self._wake
        if wake is not None:
            wake()

    def set_wake(self, wake: Callable[[], None] | None) -> None:
        """Set the function that wakes the job while it is open; None once it is closed."""
        self._wake = wake

    def raise_if_cancelled(self) -> None:
        """Raise JobCancelled once `cancel` has been called."""
        if self.is_cancelled:
            raise JobCancelled


@dataclass(frozen=True, slots=True)
class JobContext:
    """The event stream and the cancellation token of a map, which are passed to each of its jobs.

    Attributes
    ----------
    events : EventStream or None
        The stream to which jobs emit events. None without observers: then no event objects are created.
    cancellation : CancellationToken or None
        None if the map cannot be cancelled.
    """

    events: EventStream | None = None
    cancellation: CancellationToken | None = None

    @contextmanager
    def count_stripes(self, n_stripes: int) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of stripes that are done.

        It raises JobCancelled once the job is cancelled.
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
                events.emit_last(JobFinished(None))


PLAIN_CONTEXT = JobContext()  # without observers, and without a way to cancel the job
