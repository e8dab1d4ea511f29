"""The interface of collectors, which receive the outcomes of tasks and decide when a map is over.

For a map with k = 2 data blocks and n = 3 tasks, of which task 1 is late, the driver calls:

    add_outcome(result of task 0)    try_finish() -> False    one result is not enough
    add_outcome(result of task 2)    try_finish() -> True     block 1 is decoded from blocks 0 and 2

`CodedCollector` decodes and verifies results. The subclasses of `EveryTaskCollector` need a result of every
task. The timer of a job and the limits of its waits are also defined here.
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

# The longest wait for a redundant result or for f on the driver: this many seconds, or WAIT_TASK_FACTOR times
# the longest run time of a task if that is longer.
BASE_WAIT_SECONDS = 20.0
WAIT_TASK_FACTOR = 4.0
# Bounds in seconds of the wait for a redundant result, after which f is evaluated on the driver.
REDUNDANCY_WAIT_BOUNDS = (0.2, 10.0)


class JobTimer:
    """The time since a job began and until its deadline, on a clock that is passed in.

    Parameters
    ----------
    clock : callable
        Returns a time in seconds. It may be a virtual one.
    timeout : float
        Seconds from the start to the deadline; inf without a deadline.

    Attributes
    ----------
    started_at : float
        The time of the start, by that clock.

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
        """Seconds since the start."""
        return self._clock() - self.started_at

    def seconds_since(self, instant: float) -> float:
        """Return the seconds since an earlier time, or since the start if the clock is a virtual one."""
        return self._clock() - min(instant, self.started_at)

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline, below 0 after it; inf without a deadline."""
        return inf if self.timeout == inf else self.timeout - self.elapsed_seconds


class WaitLimits:
    """Limits in seconds that follow from the run times of a map's tasks and from its deadline.

    Parameters
    ----------
    task_table : TaskTable
    timer : JobTimer
    """

    def __init__(self, task_table: TaskTable, timer: JobTimer) -> None:
        self._task_table, self._timer = task_table, timer

    @property
    def max_wait_seconds(self) -> float:
        """The longest wait for a result that is not needed, or for f on the driver."""
        return max(BASE_WAIT_SECONDS, WAIT_TASK_FACTOR * max(self._task_table.worker_seconds, default=0.0))

    @property
    def redundancy_wait_seconds(self) -> float:
        """The wait for a redundant result: one median task time, within REDUNDANCY_WAIT_BOUNDS."""
        seconds = sorted(self._task_table.worker_seconds)
        # np.median would import numpy.ma.
        median_seconds = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
        min_seconds, max_seconds = REDUNDANCY_WAIT_BOUNDS
        return max(min_seconds, min(median_seconds, max_seconds))

    @property
    def local_evaluation_timeout(self) -> float:
        """The longest time that the driver stops for f on one block; a moment after the deadline."""
        return min(self.max_wait_seconds, max(REDUNDANCY_WAIT_BOUNDS[0], self._timer.remaining_seconds))

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline of the map, below 0 after it; inf without a deadline."""
        return self._timer.remaining_seconds


class Collector(ABC):
    """Takes in the outcomes of a map's tasks, and decides when enough results have arrived.

    Parameters
    ----------
    task_table : TaskTable
        The tasks of the map. Every outcome is recorded there before it comes here.
    timer : JobTimer
        The time since the map began, and its deadline.
    """

    def __init__(self, task_table: TaskTable, timer: JobTimer) -> None:
        self.task_table, self.timer = task_table, timer

    # -- what arrives -----------------------------------------------------------------------

    @abstractmethod
    def add_outcome(self, outcome: Outcome) -> None:
        """Store the result of an attempt. Its failure, if it failed, is in the table of tasks already."""

    @abstractmethod
    def try_finish(self) -> bool:
        """Judge the results that have arrived, and return whether the map is over."""

    @abstractmethod
    def on_tasks_exhausted(self) -> None:
        """Accept what has arrived, or raise: enough results cannot arrive, and no task is tried again."""

    @abstractmethod
    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """Raise CodedTimeoutError, or accept what has arrived: the deadline of the map has passed.

        n_receiving_workers : the number of workers that are still being sent their block, for the message.
        """

    # -- what the scheduler asks ------------------------------------------------------------

    @property
    @abstractmethod
    def recovery_threshold(self) -> int:
        """The smallest number of results that can suffice."""

    @property
    def n_results(self) -> int:
        """The number of tasks with a result that counts."""
        return len(self.task_table.arrived)

    @property
    @abstractmethod
    def has_sufficient_results(self) -> bool:
        """Whether the results that have arrived suffice, so that no further task has to be started."""

    @property
    @abstractmethod
    def decodable_tasks(self) -> Collection[int]:
        """The tasks whose results are returned, or can be decoded from."""

    @property
    @abstractmethod
    def can_use_parity(self) -> bool:
        """Whether results of tasks that are held back would help."""

    @property
    @abstractmethod
    def awaited_task(self) -> int | None:
        """The task whose own result is needed while all other results are determined, or None."""

    @abstractmethod
    def would_suffice(self, task_indices: Collection[int]) -> bool:
        """Return whether results of these tasks alone would suffice."""

    @abstractmethod
    def can_pending_tasks_suffice(self) -> bool:
        """Return whether the tasks that have arrived, run or are held back would suffice without failures."""

    @abstractmethod
    def choose_tasks_to_retry(self, failed_tasks: Collection[int]) -> Collection[int]:
        """Return which failed tasks may be started again."""

    def raise_if_f_always_fails(self) -> None:
        """Raise the exception of f if so many tasks raised it that the results cannot be decoded any more.

        Nothing is raised once any task has returned a result.
        """
        error = find_common_exception(self.task_table, self.recovery_threshold)
        if error is not None:
            raise error

    @abstractmethod
    def poll_interval(self) -> float:
        """Return the seconds after which to call `try_finish` although no task has ended; inf: never."""

    # -- what the caller of the map gets ----------------------------------------------------

    @abstractmethod
    def make_early_result_getter(self, task_index: int) -> Callable[[], Any] | None:
        """Return a function that builds the result of a data block before the map is over.

        None if this task has returned no result of a data block.
        """

    @abstractmethod
    def iterate_accepted_results(self) -> Iterable[tuple[int, Callable[[], Any]]]:
        """Yield index and getter of the results of data blocks that are accepted together at the end.

        Called once the map is over. Results that are accepted one by one are not among them.
        """

    @abstractmethod
    def build_interim_estimate(self, report: Report) -> CodedResult[Any] | None:
        """Return estimates of all results while the map runs, with its report so far; None without any."""

    def make_report_table_builder(self) -> Callable[[], TaskTable]:
        """Return a function that builds a table of the tasks as the caller of the map counts them."""
        task_table = self.task_table
        return lambda: task_table

    @property
    @abstractmethod
    def unneeded_tasks(self) -> Collection[int]:
        """The tasks whose results, if there are any, were not needed."""

    @abstractmethod
    def build_report_fields(self, elapsed_seconds: float) -> dict[str, Any]:
        """Return fields of the report of a map that was over after `elapsed_seconds`."""


class EveryTaskCollector(Collector):
    """A collector that needs one result of every task, and decodes nothing."""

    @property
    def recovery_threshold(self) -> int:
        """The number of tasks."""
        return len(self.task_table)

    @property
    def decodable_tasks(self) -> Collection[int]:
        """The tasks whose results have arrived."""
        return self.task_table.arrived.keys()

    @property
    def can_use_parity(self) -> bool:
        """Whether tasks that are held back would help: always."""
        return True

    @property
    def awaited_task(self) -> int | None:
        """Always None: no task is awaited more than others."""
        return None

    def would_suffice(self, task_indices: Collection[int]) -> bool:
        """Return whether these are all tasks."""
        return len(set(task_indices)) == len(self.task_table)

    def can_pending_tasks_suffice(self) -> bool:
        """Return whether each task has arrived, runs or is held back."""
        tasks = self.task_table
        return self.would_suffice(tasks.arrived.keys() | tasks.in_flight.keys() | tasks.held_back)

    def choose_tasks_to_retry(self, failed_tasks: Collection[int]) -> Collection[int]:
        """Return all failed tasks."""
        return failed_tasks

    def poll_interval(self) -> float:
        """Return inf: only tasks are waited for."""
        return inf

    def try_finish(self) -> bool:
        """Return whether there is a result of every task."""
        return self.has_sufficient_results

    def on_timeout(self, n_receiving_workers: int = 0) -> None:
        """Raise CodedTimeoutError."""
        reported_tasks = self.make_report_table_builder()()
        message = format_timeout_message(
            reported_tasks,
            self.recovery_threshold,
            self.timer.timeout,
            n_receiving_workers=n_receiving_workers,
        )
        raise CodedTimeoutError(message) from reported_tasks.first_exception

    def make_early_result_getter(self, task_index: int) -> Callable[[], Any] | None:
        """Return None: the map reports results by itself as they arrive."""
        return None

    def iterate_accepted_results(self) -> Iterable[tuple[int, Callable[[], Any]]]:
        """Return nothing: each result is accepted when it arrives."""
        return ()

    def build_interim_estimate(self, report: Report) -> CodedResult[Any] | None:
        """Return None: results that have not arrived cannot be estimated."""
        return None

    @property
    def unneeded_tasks(self) -> Collection[int]:
        """No task: every result is needed."""
        return ()

    def build_report_fields(self, elapsed_seconds: float) -> dict[str, Any]:
        """Return the way of verification: nothing is decoded, so that no verification is needed."""
        return {"verified": str(Verification.NOT_NEEDED)}
