"""Define collectors, which receive the outcomes of a map's tasks and decide when the map is over.

For a map with k = 2 data blocks and n = 3 tasks, if task 1 is late, the driver calls:

    add_outcome(result of task 0)    try_finish() -> False    one result is not enough
    add_outcome(result of task 2)    try_finish() -> True     block 1 is decoded from blocks 0 and 2

`CodedCollector` decodes and verifies results. The subclasses of `EveryTaskCollector` need a result of every
task. This module also defines the timer of a map and limits on its waiting times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from math import inf
from typing import Any

from polarmap.driver.failure_messages import find_common_exception, format_timeout_message
from polarmap.driver.results import CodedResult
from polarmap.driver.task_table import TaskTable
from polarmap.errors import CodedTimeoutError
from polarmap.executors.interface import Outcome
from polarmap.report import Report, Verification

# Wait for checks of the results for at most this many seconds, or for WAIT_TASK_FACTOR times the longest run
# time of a task if that is longer.
BASE_WAIT_SECONDS = 20.0
WAIT_TASK_FACTOR = 4.0
# The minimum and maximum time, in seconds, to wait for a redundant result as a check. After that, the mapped
# function is called in this process instead.
REDUNDANCY_WAIT_BOUNDS = (0.2, 10.0)


class JobTimer:
    """Measures the time since the start of a job and the time until its deadline.

    Parameters
    ----------
    clock : callable
        Called without arguments to get the time in seconds. Simulations pass a virtual clock.
    timeout : float
        The time from start to deadline in seconds, or inf if there is no deadline.

    Attributes
    ----------
    started_at : float
        The time of the start by `clock`.

    Examples
    --------
    >>> hand = iter([10.0, 12.0, 12.5])
    >>> timer = JobTimer(lambda: next(hand), 3.0)
    >>> timer.elapsed_seconds, timer.remaining_seconds
    (2.0, 0.5)
    """

    def __init__(self, clock: Callable[[], float], timeout: float = inf) -> None:
        self._clock, self.timeout = clock, timeout
        self.started_at = clock()

    @property
    def elapsed_seconds(self) -> float:
        """The time since the start, in seconds."""
        return self._clock() - self.started_at

    def seconds_since(self, instant: float) -> float:
        """Return the seconds since `instant`, or since the start of the job if that was earlier."""
        return self._clock() - min(instant, self.started_at)

    @property
    def remaining_seconds(self) -> float:
        """The seconds until the deadline, negative after it, or inf without a deadline."""
        return inf if self.timeout == inf else self.timeout - self.elapsed_seconds


class WaitLimits:
    """Computes how long a map may wait for checks, based on its deadline and the run times of its tasks.

    Parameters
    ----------
    task_table : TaskTable
        The tasks, whose run times determine the limits.
    timer : JobTimer
        The time until the deadline of the map.
    """

    def __init__(self, task_table: TaskTable, timer: JobTimer) -> None:
        self._task_table, self._timer = task_table, timer

    @property
    def max_wait_seconds(self) -> float:
        """The maximum time, in seconds, to wait for a redundant result or a local call to check results."""
        return max(BASE_WAIT_SECONDS, WAIT_TASK_FACTOR * max(self._task_table.worker_seconds, default=0.0))

    @property
    def redundancy_wait_seconds(self) -> float:
        """The time, in seconds, to wait for a redundant result that can serve as a check.

        This is the median run time of the tasks, limited to `REDUNDANCY_WAIT_BOUNDS`.
        """
        seconds = sorted(self._task_table.worker_seconds)
        # `np.median` would import numpy.ma, which is slow.
        median_seconds = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
        min_seconds, max_seconds = REDUNDANCY_WAIT_BOUNDS
        return max(min_seconds, min(median_seconds, max_seconds))

    @property
    def local_evaluation_timeout(self) -> float:
        """The maximum time, in seconds, to block for a call of the mapped function on the driver.

        Once the deadline of the map has passed, this is only a fraction of a second.
        """
        return min(self.max_wait_seconds, max(REDUNDANCY_WAIT_BOUNDS[0], self._timer.remaining_seconds))

    @property
    def remaining_seconds(self) -> float:
        """The seconds until the map's deadline, negative after it, or inf without a deadline."""
        return self._timer.remaining_seconds


class Collector(ABC):
    """Base class of objects that receive the outcomes of a map's tasks and decide when the map is over.

    Parameters
    ----------
    task_table : TaskTable
        The tasks of the map. Each outcome is recorded there before `add_outcome` is called with it.
    timer : JobTimer
        Measures the time since the map started and until its deadline.
    """

    def __init__(self, task_table: TaskTable, timer: JobTimer) -> None:
        self.task_table, self.timer = task_table, timer

    # -- what arrives -----------------------------------------------------------------------

    @abstractmethod
    def add_outcome(self, outcome: Outcome) -> None:
        """Store the result of an attempt (one run of a task). Failures are already in the task table."""

    def on_due_tasks_started(self) -> None:  # noqa: B027 (most collectors have nothing to do)
        """Do work that can wait until the tasks that are due have been started, such as running callbacks.

        Called before each wait for outcomes. Workers are not idle meanwhile. The default does nothing.
        """

    @abstractmethod
    def try_finish(self) -> bool:
        """Accept the results if enough have arrived, and return whether the map is over."""

    @abstractmethod
    def on_tasks_exhausted(self) -> None:
        """Accept the results that have arrived, or raise an error.

        Called when no further result can arrive.
        """

    @abstractmethod
    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """Raise CodedTimeoutError, or accept the results that have arrived.

        Called when the deadline of the map has passed.

        n_receiving_workers : the number of workers still receiving their data, for the error message.
        """

    # -- what the scheduler asks ------------------------------------------------------------

    @property
    @abstractmethod
    def recovery_threshold(self) -> int:
        """The minimum number of results with which the map can finish."""

    @property
    def n_results(self) -> int:
        """The number of tasks with an accepted result."""
        return len(self.task_table.arrived)

    @property
    @abstractmethod
    def has_sufficient_results(self) -> bool:
        """Whether the results that have arrived suffice, so that no further task has to be started."""

    @property
    @abstractmethod
    def decodable_tasks(self) -> Collection[int]:
        """The tasks with results that can be returned to the caller or used for decoding."""

    @property
    @abstractmethod
    def can_use_parity(self) -> bool:
        """Whether results of held-back tasks (parity tasks not started yet) would help."""

    @property
    @abstractmethod
    def awaited_task(self) -> int | None:
        """The only task whose result is still needed and cannot be decoded, or None."""

    @abstractmethod
    def would_suffice(self, task_indices: Collection[int]) -> bool:
        """Return whether the map could finish with the results of these tasks alone."""

    @abstractmethod
    def can_pending_tasks_suffice(self) -> bool:
        """Return whether the map can finish if no further task fails."""

    @abstractmethod
    def choose_tasks_to_retry(self, failed_tasks: Collection[int]) -> Collection[int]:
        """Return the failed tasks that are worth retrying."""

    def raise_if_f_always_fails(self) -> None:
        """Raise the mapped function's exception if too many tasks raised it for the map to succeed.

        Does nothing once any task has returned a result.
        """
        error = find_common_exception(self.task_table, self.recovery_threshold)
        if error is not None:
            raise error

    @abstractmethod
    def poll_interval(self) -> float:
        """Return the seconds after which to call `try_finish` even if no task has ended, or inf."""

    # -- what the caller of the map gets ----------------------------------------------------

    @abstractmethod
    def make_unchecked_result_getter(self, task_index: int) -> Callable[[], Any] | None:
        """Return a function that builds the result of a data block before the result has been checked.

        Returns None if this task has not returned the result of a data block.
        """

    @abstractmethod
    def iterate_accepted_results(self) -> Iterable[tuple[int, Callable[[], Any]]]:
        """Yield the index of each result, and a function that returns the result, once the map is over.

        Yields nothing if results are accepted one by one as they arrive instead of at the end of the map.
        """

    @abstractmethod
    def build_interim_estimate(self, report: Report) -> CodedResult[Any] | None:
        """Return estimates of all results of a running map, or None if they cannot be estimated.

        report : the report of the map so far, to attach to the estimates.
        """

    def make_report_table_builder(self) -> Callable[[], TaskTable]:
        """Return a function that builds the task table for the report.

        If tasks are batches of several items, each item may count as a task in this table.
        """
        task_table = self.task_table
        return lambda: task_table

    @property
    @abstractmethod
    def unneeded_tasks(self) -> Collection[int]:
        """The tasks whose results were not needed. The report calls them surplus."""

    @abstractmethod
    def build_report_fields(self, elapsed_seconds: float) -> dict[str, Any]:
        """Return the fields that this collector contributes to the final report.

        elapsed_seconds : the run time of the map.
        """


class EveryTaskCollector(Collector):
    """Base class of collectors that need the result of every task and do no decoding."""

    @property
    def recovery_threshold(self) -> int:
        """The number of required results: one per task."""
        return len(self.task_table)

    @property
    def decodable_tasks(self) -> Collection[int]:
        """The tasks whose results have arrived."""
        return self.task_table.arrived.keys()

    @property
    def can_use_parity(self) -> bool:
        """Always True: every task is needed, so starting further tasks always helps."""
        return True

    @property
    def awaited_task(self) -> int | None:
        """Always None: no single task is awaited."""
        return None

    def would_suffice(self, task_indices: Collection[int]) -> bool:
        """Return whether `task_indices` contains all tasks."""
        return len(set(task_indices)) == len(self.task_table)

    def can_pending_tasks_suffice(self) -> bool:
        """Return whether every task has returned, is in flight (submitted), or is yet to be started."""
        tasks = self.task_table
        return self.would_suffice(tasks.arrived.keys() | tasks.in_flight.keys() | tasks.held_back)

    def choose_tasks_to_retry(self, failed_tasks: Collection[int]) -> Collection[int]:
        """Return all failed tasks."""
        return failed_tasks

    def poll_interval(self) -> float:
        """Return inf: only the arrival of a result can finish the map, so polling is unnecessary."""
        return inf

    def try_finish(self) -> bool:
        """Return whether the map is over, which is the case once every task has a result."""
        return self.has_sufficient_results

    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """Raise CodedTimeoutError, because tasks are missing at the deadline."""
        reported_tasks = self.make_report_table_builder()()
        message = format_timeout_message(
            reported_tasks,
            self.recovery_threshold,
            self.timer.timeout,
            n_receiving_workers=n_receiving_workers,
        )
        raise CodedTimeoutError(message) from reported_tasks.first_exception

    def make_unchecked_result_getter(self, task_index: int) -> Callable[[], Any] | None:
        """Return None: each result is final, and is emitted as soon as it arrives."""
        return None

    def iterate_accepted_results(self) -> Iterable[tuple[int, Callable[[], Any]]]:
        """Return an empty iterable: each result is accepted when it arrives."""
        return ()

    def build_interim_estimate(self, report: Report) -> CodedResult[Any] | None:
        """Return None: missing results cannot be estimated."""
        return None

    @property
    def unneeded_tasks(self) -> Collection[int]:
        """Always empty: every result is needed."""
        return ()

    def build_report_fields(self, elapsed_seconds: float) -> dict[str, Any]:
        """Return the report field `verified`: no verification was needed, because nothing was decoded."""
        return {"verified": str(Verification.NOT_NEEDED)}
