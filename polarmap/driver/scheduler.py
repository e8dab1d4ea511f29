"""The loop of a map: starts tasks, waits, tells what ended, starts more. Knows no codes and no results.

Which tasks start at once and which later is a `SchedulingPolicy`, here or in `policies`; what is still needed
is known to whoever makes something of the outcomes, which is a `Collector`; how tasks run to the executor's
`Session`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf
from typing import Any

from polarmap.driver.failure_messages import find_common_exception, format_timeout_message
from polarmap.driver.lateness import LateTracker
from polarmap.driver.task_table import TaskTable
from polarmap.errors import CodedTimeoutError
from polarmap.executors.interface import AttemptId, BlockSendingSession, Event, NoWorkers, Outcome, Session

RETRY_IDLE_SECONDS = 1.0  # without news, before failed tasks are started again
MAX_POLL_INTERVAL = (
    5.0  # the longest the loop looks away; what is due is known without: this is against mistakes
)


class JobTimer:
    """Seconds since it was made, on a clock that is passed in, and how many are left of so many.

    >>> hand = iter([10.0, 12.0, 12.5])
    >>> timer = JobTimer(lambda: next(hand), 3.0)
    >>> timer.elapsed_seconds, timer.remaining_seconds
    (2.0, 0.5)
    """

    def __init__(self, clock: Callable[[], float], timeout: float = inf) -> None:
        self._clock, self.timeout = clock, timeout
        self.started_at = clock()  # by that clock

    @property
    def elapsed_seconds(self) -> float:
        """Seconds so far."""
        return self._clock() - self.started_at

    def seconds_since(self, instant: float) -> float:
        """Seconds since an earlier moment; since it was made, where its clock is a virtual one."""
        return self._clock() - min(instant, self.started_at)

    @property
    def remaining_seconds(self) -> float:
        """Seconds that are left, below 0 when they are over; inf without a limit."""
        return inf if self.timeout == inf else self.timeout - self.elapsed_seconds


class Collector(ABC):
    """What a map makes of what becomes of its tasks, and what it needs of them still."""

    def __init__(self, task_table: TaskTable, timer: JobTimer) -> None:
        self.task_table, self.timer = task_table, timer

    @abstractmethod
    def add_outcome(self, outcome: Outcome) -> None:
        """Take in what became of an attempt, which the table of tasks knows already."""

    @property
    @abstractmethod
    def has_sufficient_results(self) -> bool:
        """Whether the results that arrived suffice, so that no further task has to be started."""

    @abstractmethod
    def on_tasks_exhausted(self) -> None:
        """Take what there is or raise, where what is needed is out of reach and no task is tried again."""

    # -- as it is where every task is wanted, and its first result as it is -----------------

    @property
    def recovery_threshold(self) -> int:
        """How many results suffice at the least."""
        return len(self.task_table)

    @property
    def n_results(self) -> int:
        """How many tasks have a result that counts."""
        return len(self.task_table.arrived)

    @property
    def decodable_tasks(self) -> Collection[int]:
        """The tasks whose results count towards what is needed."""
        return self.task_table.arrived.keys()

    @property
    def can_use_parity(self) -> bool:
        """Whether tasks that are held back would help."""
        return True

    def would_suffice(self, task_indices: Collection[int]) -> bool:
        """Whether results of these tasks would suffice."""
        return len(set(task_indices)) == len(self.task_table)

    def can_pending_tasks_suffice(self) -> bool:
        """Whether what arrived, runs and is held back would; without failures it would."""
        task_table = self.task_table
        return self.would_suffice(
            task_table.arrived.keys() | task_table.in_flight.keys() | task_table.held_back
        )

    def poll_interval(self) -> float:
        """How long the loop may look away, because something else than a task is waited for."""
        return inf

    @property
    def awaited_task(self) -> int | None:
        """The task whose own result is needed while all others are determined; None if there is none."""
        return None

    def choose_tasks_to_retry(self, failed_tasks: Collection[int]) -> Collection[int]:
        """Return which failed tasks may be started again."""
        return failed_tasks

    def raise_if_f_always_fails(self) -> None:
        """Raise what f raises, if it is found to do so everywhere."""
        error = find_common_exception(self.task_table, self.recovery_threshold)
        if error is not None:
            raise error

    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """Raise CodedTimeoutError, which tells how many workers are still being sent their block."""
        reported_tasks = self.make_report_table_builder()()
        message = format_timeout_message(
            reported_tasks,
            self.recovery_threshold,
            self.timer.timeout,
            n_receiving_workers=n_receiving_workers,
        )
        raise CodedTimeoutError(message) from reported_tasks.first_exception

    def try_finish(self) -> bool:
        """Whether the map is over, after another look at the results."""
        return self.has_sufficient_results

    def make_early_result_getter(self, task_index: int) -> Callable[[], Any] | None:
        """What makes the result of a data block that this task has returned, before the others are there."""
        return None

    def make_report_table_builder(self) -> Callable[[], TaskTable]:
        """What makes a table of the tasks as the caller of the map counts them."""
        task_table = self.task_table
        return lambda: task_table

    @property
    def unneeded_tasks(self) -> Collection[int]:
        """Tasks whose results were of no use."""
        return ()

    def build_report_fields(self, elapsed_seconds: float) -> dict[str, Any]:
        """Fields of the report of a map that was over in second `elapsed_seconds`."""
        return {"verified": "not needed"}


class SchedulingPolicy:
    """Which tasks start at once, and which later: decisions only, clocks and counts passed in.

    This one starts all of them at once.
    """

    late_tracker: LateTracker[AttemptId] | None = None  # what is to be told when attempts begin and end

    def __init__(self, n_tasks: int) -> None:
        self.initial_tasks: Sequence[int] = range(n_tasks)

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """The tasks to start now, for the first time or once more."""
        return ()

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Seconds until the next task may be due, if nothing happens before; inf if none may."""
        return inf


def schedule_tasks(
    session: Session,
    policy: SchedulingPolicy,
    retries: int,
    collector: Collector,
    poll_interval: float = inf,
    on_started: Callable[[Sequence[int], float], None] = lambda indices, elapsed: None,
) -> Iterator[list[Outcome]]:
    """What ended, as soon as anything did; an empty list when it is time to look at other things.

    Goes on for as long as it is asked: whoever has what it needs stops asking. In between it starts
    what the policy says, then what failed and may be tried again. Raises what `collector` does when the time
    of the watch is over, or what it needs is out of reach.

    poll_interval : seconds after which it is time to look, whatever happens.
    on_started : is told of tasks that were started after the first ones, and in which second.
    """
    task_table, timer = collector.task_table, collector.timer
    last_event_at, polled_at, can_retry_when_idle = 0.0, 0.0, False
    poll_interval = min(MAX_POLL_INTERVAL, poll_interval)

    def start_tasks(task_indices: Sequence[int]) -> None:
        nonlocal last_event_at
        last_event_at = timer.elapsed_seconds
        session.submit(task_table.start_attempts(task_indices, last_event_at))
        on_started(task_indices, last_event_at)

    def record_events(events: Sequence[Event]) -> list[Outcome]:
        nonlocal last_event_at
        now, outcomes, task_table.no_worker_reason = timer.elapsed_seconds, [], ""
        for event in events:
            if isinstance(event, Outcome):
                last_event_at = now
                outcomes.append(event)
                task_table.record_outcome(event, now)
            elif isinstance(event, NoWorkers):
                task_table.no_worker_reason = event.reason
            else:
                started_at = event.started_at - timer.started_at
                task_table.record_start(event.task, event.attempt, started_at, event.is_confirmed, event.host)
        return outcomes

    if timer.timeout < inf and isinstance(session, BlockSendingSession):
        session.deadline = session.now() + timer.remaining_seconds
    session.submit(task_table.start_attempts(policy.initial_tasks, 0.0))
    while True:
        timeout = min(poll_interval, collector.poll_interval(), timer.remaining_seconds)
        # of the moment for which it was asked what is due: none between is missed
        if collector.can_use_parity:
            timeout = min(timeout, policy.seconds_until_next_start(task_table, polled_at))
        if can_retry_when_idle:
            timeout = min(timeout, last_event_at + RETRY_IDLE_SECONDS - timer.elapsed_seconds)
        yield record_events(session.wait(max(0.0, timeout)))  # and keeps none of it
        polled_at = now = timer.elapsed_seconds
        due_tasks = policy.choose_tasks_to_start(task_table, collector, now)
        if due_tasks:
            start_tasks(due_tasks)
        if task_table.attempts_to_cancel:
            session.cancel(task_table.attempts_to_cancel)
            task_table.attempts_to_cancel = []
        if now >= timer.timeout:
            collector.on_timeout(
                session.count_receiving_workers() if isinstance(session, BlockSendingSession) else 0
            )
        can_retry_when_idle = False
        if collector.has_sufficient_results:
            continue
        has_nothing_pending = not task_table.in_flight and not (
            task_table.held_back and collector.can_use_parity
        )
        is_stalled = has_nothing_pending
        if task_table.failed:
            collector.raise_if_f_always_fails()
            is_stalled = has_nothing_pending or not collector.can_pending_tasks_suffice()
        retryable_tasks = sorted(
            task_index
            for task_index in collector.choose_tasks_to_retry(task_table.failed)
            if task_table[task_index].n_counted_attempts <= retries
        )
        # failed tasks start again while others are late
        can_retry_when_idle = bool(retryable_tasks) and not task_table.held_back
        is_idle = can_retry_when_idle and now >= last_event_at + RETRY_IDLE_SECONDS
        if retryable_tasks and (is_stalled or is_idle):
            start_tasks(retryable_tasks)
        elif is_stalled:
            collector.on_tasks_exhausted()
