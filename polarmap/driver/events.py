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
    """A job is about to be opened on its executor.

    get_report : returns the report so far. Any thread may call it until the job has finished.
    """

    get_report: Callable[[], Report]


@dataclass(frozen=True, slots=True)
class AttemptsStarted:
    """Attempts were submitted after the first ones: held-back parity, backups, or failed tasks again.

    attempts : the attempts, as (task, attempt).
    pending_tasks : the other tasks that have an attempt which is queued or running.
    """

    attempts: Sequence[AttemptId]
    pending_tasks: Collection[int]
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt returned a result, raised or was lost."""

    outcome: Outcome
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class BlockReady:
    """The result of a data block or of an item is there.

    get_result : returns the result.
    is_final : whether the result has been accepted. Otherwise no check has seen it, and it is read-only,
        because other results may still be decoded from it.
    """

    index: int
    get_result: Callable[[], Any]
    is_final: bool


@dataclass(frozen=True, slots=True)
class JobPolled:
    """The job has looked at its tasks, for the first time when it is open: `n_results` results count."""

    n_results: int


@dataclass(frozen=True, slots=True)
class EstimateReady:
    """The results could be estimated from the `n_results` that have arrived.

    build_estimate : returns the estimated results, or None if nothing can be estimated from these. Only the
        observer that gets the event may call it, and only until it returns.
    """

    n_results: int
    build_estimate: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class StripesEncoded:
    """`n_done` of the `n_stripes` stripes that this process encodes are done."""

    n_done: int
    n_stripes: int


@dataclass(frozen=True, slots=True)
class JobFinished:
    """The job has returned, or raised `error`, perhaps before it was open.

    report : the final report, or the report so far of a job that raised. None after stripes were encoded
        by this process.
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

    An exception that an observer raises ends the job, and the caller of the job gets it as it is.

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
    """Calls a function with the index and the result of each data block or item that is accepted.

    on_result : called as `on_result(index, result)`.
    """

    def __init__(self, on_result: Callable[[int, Any], object]) -> None:
        self._on_result = on_result

    def on_event(self, event: JobEvent) -> None:
        """Pass on a result that has been accepted."""
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
    """What a job gets from its caller, which passes it on to all jobs that it consists of.

    events : where the job emits its events; None if it has no observers, so that no event is made.
    cancellation : cancels the job; None if nothing does.
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


PLAIN_CONTEXT = JobContext()  # of a job that nobody observes or cancels
