"""Scheduling policies: all tasks at once, parity on demand, backups of late tasks."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from polarmap.codes.uncoded import DEFAULT_BACKUPS
from polarmap.driver.collector import Collector
from polarmap.driver.lateness import LatenessRule, LateTracker, ParityRule, make_backup_lateness_rule
from polarmap.driver.task_table import TaskRecord, TaskTable
from polarmap.executors.interface import AttemptId

MAX_RETRY_DELAY = (
    60.0  # seconds between a failure of a task and its next attempt, however often it has failed
)
MAX_DOUBLINGS = 64  # of a delay: with more, the power of two would overflow


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often a failed task is started again, and how long after its failure.

    Parameters
    ----------
    max_retries : int
        Attempts of a task after the first one.
    delay_seconds : float
        Seconds between the first failure and the next attempt. They are doubled after each further attempt,
        up to `MAX_RETRY_DELAY`.

    Examples
    --------
    >>> rule = RetryRule(max_retries=9, delay_seconds=8.0)
    >>> [rule.compute_delay(n_attempts) for n_attempts in (1, 2, 3, 4, 5)]
    [8.0, 16.0, 32.0, 60.0, 60.0]
    """

    max_retries: int
    delay_seconds: float = 0.0

    def allows_retry(self, task: TaskRecord) -> bool:
        """Return whether a failed task has an attempt left."""
        return task.n_counted_attempts <= self.max_retries

    def next_attempt_at(self, task: TaskRecord) -> float:
        """Return the second of the map from which on a failed task may be started again."""
        if not self.delay_seconds:
            return task.ended_at
        return task.ended_at + self.compute_delay(task.n_counted_attempts)

    def compute_delay(self, n_attempts: int) -> float:
        """Return the seconds to wait after `n_attempts` attempts that have failed."""
        n_doublings = min(max(n_attempts - 1, 0), MAX_DOUBLINGS)
        return min(MAX_RETRY_DELAY, self.delay_seconds * 2.0**n_doublings)


class SchedulingPolicy(ABC):
    """Decides which tasks of a job start at once, and which later.

    A policy reads no clock and starts nothing itself: the scheduler passes times in, and starts the tasks.

    Parameters
    ----------
    initial_tasks : sequence of int
        The tasks that start at once.

    Attributes
    ----------
    late_tracker : LateTracker or None
        Is notified when attempts begin and end; None if the policy does not need to know.
    """

    late_tracker: LateTracker[AttemptId] | None = None

    def __init__(self, initial_tasks: Sequence[int]) -> None:
        self.initial_tasks = initial_tasks

    @abstractmethod
    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return the tasks for which to start an attempt now, be it their first or another one."""

    @abstractmethod
    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return the seconds until a task may have to start, if nothing happens before; inf if none may."""


class UpfrontPolicy(SchedulingPolicy):
    """A policy that starts all tasks at once and none of them again."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__(range(n_tasks))

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return no tasks."""
        return ()

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return inf."""
        return inf


class OnDemandParityPolicy(SchedulingPolicy):
    """A policy that starts as many tasks as are needed, and parity tasks in place of late and failed ones.

    Parameters
    ----------
    n_tasks : int
        The number of tasks of the job.
    parity_rule : ParityRule
        Decides when a task is late, and how many parity tasks replace late ones.
    n_upfront_parity : int
        The number of parity tasks that start with the data tasks.
    is_mds : bool
        Whether any `recovery_threshold` results determine all others. If not, the collector is asked.
    """

    def __init__(
        self,
        n_tasks: int,
        parity_rule: ParityRule,
        n_upfront_parity: int = 0,
        is_mds: bool = True,
    ) -> None:
        n_started = min(n_tasks, parity_rule.recovery_threshold + n_upfront_parity)
        super().__init__(range(n_started))
        self._held_back_parity: Sequence[int] = range(n_started, n_tasks)
        self._parity_rule, self._is_mds = parity_rule, is_mds
        self.late_tracker: LateTracker[AttemptId] = LateTracker(
            parity_rule.lateness_rule, n_initial_attempts=n_started
        )

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return as many parity tasks as late and failed tasks make necessary."""
        if not self._held_back_parity or collector.has_sufficient_results or not collector.can_use_parity:
            return ()
        late_attempts = self.late_tracker.find_late_attempts(elapsed_seconds)
        if not late_attempts and task_table.in_flight and self._is_mds and not task_table.failed:
            return ()
        on_time_tasks = task_table.in_flight.keys() - {task_index for task_index, _ in late_attempts}
        n_open = len(task_table.in_flight) + len(task_table.failed) + len(task_table.held_back)
        n_ended = len(task_table) - n_open
        n_returned = n_ended - (len(task_table.arrived) - len(collector.decodable_tasks))
        n_to_start = self._parity_rule.count_parity_to_start(
            n_returned, len(on_time_tasks), len(self._held_back_parity)
        )
        if not (self._is_mds and on_time_tasks):  # sparse codes, poor conditioning
            expected_tasks = on_time_tasks.union(collector.decodable_tasks)
            reaches_threshold = len(expected_tasks) + n_to_start >= self._parity_rule.recovery_threshold
            while reaches_threshold and n_to_start < len(self._held_back_parity):
                if collector.would_suffice(expected_tasks.union(self._held_back_parity[:n_to_start])):
                    break
                n_to_start += 1
        due_tasks = self._held_back_parity[:n_to_start]
        self._held_back_parity = self._held_back_parity[n_to_start:]
        return due_tasks

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return the seconds until the next attempt may become late; a queued attempt may begin now."""
        if not self._held_back_parity:
            return inf
        return self.late_tracker.seconds_until_next_late_attempt(bool(task_table.queued), elapsed_seconds)


class AwaitedTaskBackupPolicy(SchedulingPolicy):
    """A policy with backups of one task while the map waits for nothing but the result of that task.

    Parameters
    ----------
    base_policy : SchedulingPolicy
        Starts all other tasks.
    n_tasks : int
        The number of tasks of the job.
    task_index : int
        The task. Its worker evaluates f on the block and on some rows of it, so it is late after twice the
        time of the others.
    """

    def __init__(self, base_policy: SchedulingPolicy, n_tasks: int, task_index: int) -> None:
        super().__init__(base_policy.initial_tasks)
        self._base_policy, self._task_index = base_policy, task_index
        self.late_tracker = base_policy.late_tracker or LateTracker(make_backup_lateness_rule(n_tasks))

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return the tasks of the base policy, or the awaited task if its latest attempt is late."""
        if collector.awaited_task != self._task_index:
            return self._base_policy.choose_tasks_to_start(task_table, collector, elapsed_seconds)
        task, attempts_in_flight = task_table[self._task_index], task_table.in_flight.get(self._task_index)
        dispatched_at = task.dispatched_at.get(max(attempts_in_flight)) if attempts_in_flight else None
        late_tracker = self.late_tracker
        assert late_tracker is not None
        if (
            dispatched_at is None
            or task.n_backups >= DEFAULT_BACKUPS
            or elapsed_seconds < dispatched_at + 2 * late_tracker.late_after_seconds()
        ):
            return ()
        task.n_backups += 1
        return (self._task_index,)

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return the seconds of the base policy: a map that awaits one task polls often anyway."""
        return self._base_policy.seconds_until_next_start(task_table, elapsed_seconds)


def make_backup_policy(n_tasks: int, max_backups: int) -> SchedulingPolicy:
    """Return a policy that starts all tasks at once, and at most `max_backups` backups of each late one.

    Without backups no late tasks are looked for.
    """
    if not max_backups:
        return UpfrontPolicy(n_tasks)
    return BackupPolicy(n_tasks, make_backup_lateness_rule(n_tasks), max_backups)


class BackupPolicy(SchedulingPolicy):
    """A policy that starts all tasks at once, and late ones again: the first attempt to return counts.

    Parameters
    ----------
    n_tasks : int
        The number of tasks of the job.
    lateness_rule : LatenessRule
        Decides when an attempt is late. A queued attempt is not.
    max_backups : int
        The number of backups that a task may get. A backup may become late itself.
    """

    def __init__(self, n_tasks: int, lateness_rule: LatenessRule, max_backups: int) -> None:
        super().__init__(range(n_tasks))
        self._max_backups = max_backups
        self.late_tracker: LateTracker[AttemptId] = LateTracker(lateness_rule)
        self._late_trackers = weakref.WeakSet([self.late_tracker])

    def add_late_tracker(self, late_tracker: LateTracker[AttemptId]) -> None:
        """Look for late attempts in this tracker too, as long as it is referenced elsewhere."""
        self._late_trackers.add(late_tracker)

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return the tasks whose latest attempt is late and that may get another backup."""
        trackers, in_flight = self._late_trackers, task_table.in_flight
        late_attempts = set().union(*(tracker.find_late_attempts(elapsed_seconds) for tracker in trackers))
        late_tasks = sorted(task for task, attempt in late_attempts if attempt == max(in_flight[task]))
        due_tasks = [task for task in late_tasks if task_table[task].n_backups < self._max_backups]
        for task in due_tasks:
            task_table[task].n_backups += 1
        return due_tasks

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return the seconds until the next attempt may become late; a queued attempt may begin now."""
        can_queued_start = any(task_table[task].n_backups < self._max_backups for task in task_table.queued)
        return min(
            tracker.seconds_until_next_late_attempt(can_queued_start, elapsed_seconds)
            for tracker in self._late_trackers
        )
