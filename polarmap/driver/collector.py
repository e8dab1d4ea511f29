"""The interface of a collector, which takes in outcomes and decides when they suffice; the timer of a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from math import inf
from typing import Any

from polarmap.driver.failure_messages import find_common_exception, format_timeout_message
from polarmap.driver.task_table import TaskTable
from polarmap.errors import CodedTimeoutError
from polarmap.executors.interface import Outcome


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
        tasks = self.task_table
        return self.would_suffice(tasks.arrived.keys() | tasks.in_flight.keys() | tasks.held_back)

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

    def iterate_accepted_results(self) -> Iterable[tuple[int, Callable[[], Any]]]:
        """Yield index and getter of the results of data blocks that are accepted together at the end.

        Called once the job is over. Results that are accepted one by one are not among them.
        """
        return ()

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
