"""Scheduling policies, which decide when to start tasks: all at once, parity on demand, or backups if late.

Parity tasks are redundant tasks, whose results replace any missing ones. A backup is a second attempt (run)
of the same task.
"""

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

MAX_RETRY_DELAY = 60.0  # the maximum delay, in seconds, between the failure of a task and its retry
MAX_DOUBLINGS = 64  # double a delay at most this often, so that the power of two does not overflow


@dataclass(frozen=True, slots=True)
class RetryRule:
    """Decides how often a failed task is retried, and after what delay.

    Parameters
    ----------
    max_retries : int
        The maximum number of attempts per task after the first one.
    delay_seconds : float
        The delay in seconds between the first failure and the next attempt. It doubles after each further
        failure, up to `MAX_RETRY_DELAY`.

    Examples
    --------
    >>> rule = RetryRule(max_retries=9, delay_seconds=8.0)
    >>> [rule.compute_delay(n_attempts) for n_attempts in (1, 2, 3, 4, 5)]
    [8.0, 16.0, 32.0, 60.0, 60.0]
    """

    max_retries: int
    delay_seconds: float = 0.0

    def allows_retry(self, task: TaskRecord) -> bool:
        """Return whether a failed task may be retried."""
        return task.n_counted_attempts <= self.max_retries

    def compute_retry_time(self, task: TaskRecord) -> float:
        """Return the time at which a failed task may be retried, in seconds after the start of the map."""
        if not self.delay_seconds:
            return task.ended_at
        return task.ended_at + self.compute_delay(task.n_counted_attempts)

    def compute_delay(self, n_attempts: int) -> float:
        """Return the delay, in seconds, before the next attempt after `n_attempts` failed attempts."""
        n_doublings = min(max(n_attempts - 1, 0), MAX_DOUBLINGS)
        return min(MAX_RETRY_DELAY, self.delay_seconds * 2.0**n_doublings)


class SchedulingPolicy(ABC):
    """Base class of policies, which decide when the tasks of a job start.

    A policy neither reads a clock nor starts tasks. The scheduler passes it the time and starts the tasks.

    Parameters
    ----------
    initial_tasks : sequence of int
        The tasks that start at once.

    Attributes
    ----------
    late_tracker : LateTracker or None
        Notified when attempts start and end, to find late ones. None if the policy does not need it.
    """

    late_tracker: LateTracker[AttemptId] | None = None

    def __init__(self, initial_tasks: Sequence[int]) -> None:
        self.initial_tasks = initial_tasks

    @abstractmethod
    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return the tasks to start now, either for the first time or as backups of late attempts."""

    @abstractmethod
    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return the seconds until a task may have to start if nothing else happens first, or inf."""


class UpfrontPolicy(SchedulingPolicy):
    """A policy that starts all tasks at once, without backups."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__(range(n_tasks))

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return no tasks: all of them have been started."""
        return ()

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return inf: there are no tasks left to start."""
        return inf


class OnDemandParityPolicy(SchedulingPolicy):
    """A policy that starts the data tasks first, and parity (redundant) tasks only if tasks are late or fail.

    Parameters
    ----------
    n_tasks : int
        The number of tasks of the job.
    parity_rule : ParityRule
        Decides when a task is late and how many parity tasks to start in its place.
    n_upfront_parity : int
        The number of parity tasks that start with the data tasks.
    is_mds : bool
        Whether any `recovery_threshold` results suffice for decoding, as with a maximum distance separable
        (MDS) code. If not, the collector is asked which sets of results suffice.
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
        """Return the parity tasks that are needed to replace late and failed tasks."""
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
        if not (self._is_mds and on_time_tasks):  # Counting results may not be enough: ask the collector.
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
        """Return the seconds until the next attempt may become late, or inf if no parity task is left."""
        if not self._held_back_parity:
            return inf
        return self.late_tracker.seconds_until_next_late_attempt(bool(task_table.queued), elapsed_seconds)


class AwaitedTaskBackupPolicy(SchedulingPolicy):
    """A policy that adds backups (further attempts) for a single task whose result must arrive.

    The result of that task cannot be decoded from others.

    Parameters
    ----------
    base_policy : SchedulingPolicy
        The policy to follow unless the map is waiting only for that task.
    n_tasks : int
        The number of tasks of the job.
    task_index : int
        The task to back up. Because its worker calls the mapped function twice, with and without padding, it
        counts as late only after twice the time of other tasks.
    """

    def __init__(self, base_policy: SchedulingPolicy, n_tasks: int, task_index: int) -> None:
        super().__init__(base_policy.initial_tasks)
        self._base_policy, self._task_index = base_policy, task_index
        self.late_tracker = base_policy.late_tracker or LateTracker(make_backup_lateness_rule(n_tasks))

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return the tasks that the base policy starts now.

        If the map is waiting only for the task that this policy backs up, return that task once it is late.
        """
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
        """Return the seconds until the base policy may start a task, or inf.

        Backups need not be considered, because a map that waits for a single task polls often.
        """
        return self._base_policy.seconds_until_next_start(task_table, elapsed_seconds)


def make_backup_policy(n_tasks: int, max_backups: int) -> SchedulingPolicy:
    """Return a policy that starts all tasks at once and up to `max_backups` backups of each late task."""
    if not max_backups:
        return UpfrontPolicy(n_tasks)
    return BackupPolicy(n_tasks, make_backup_lateness_rule(n_tasks), max_backups)


class BackupPolicy(SchedulingPolicy):
    """A policy that starts all tasks at once, and backups (second attempts) of late tasks.

    The first result of a task is used.

    Parameters
    ----------
    n_tasks : int
        The number of tasks of the job.
    lateness_rule : LatenessRule
        Decides when a running attempt is late. Queued attempts are never late.
    max_backups : int
        The maximum number of backups per task. Each one starts when the previous one is late.
    """

    def __init__(self, n_tasks: int, lateness_rule: LatenessRule, max_backups: int) -> None:
        super().__init__(range(n_tasks))
        self._max_backups = max_backups
        self.late_tracker: LateTracker[AttemptId] = LateTracker(lateness_rule)
        self._late_trackers = weakref.WeakSet([self.late_tracker])

    def add_late_tracker(self, late_tracker: LateTracker[AttemptId]) -> None:
        """Start backups for late attempts in this tracker as well. The tracker is referenced weakly."""
        self._late_trackers.add(late_tracker)

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Return the tasks that need a backup because their latest attempt is late."""
        trackers, in_flight = self._late_trackers, task_table.in_flight
        if not in_flight:
            return []
        late_attempts = set().union(*(tracker.find_late_attempts(elapsed_seconds) for tracker in trackers))
        late_tasks = sorted(task for task, attempt in late_attempts if attempt == max(in_flight[task]))
        due_tasks = [task for task in late_tasks if task_table[task].n_backups < self._max_backups]
        for task in due_tasks:
            task_table[task].n_backups += 1
        return due_tasks

    def seconds_until_next_start(self, task_table: TaskTable, elapsed_seconds: float) -> float:
        """Return the seconds until the next attempt, running or queued, may become late."""
        if not task_table.in_flight:
            return inf
        can_queued_start = any(task_table[task].n_backups < self._max_backups for task in task_table.queued)
        return min(
            tracker.seconds_until_next_late_attempt(can_queued_start, elapsed_seconds)
            for tracker in self._late_trackers
        )
