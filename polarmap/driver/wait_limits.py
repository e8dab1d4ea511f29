"""How long a map waits for what it does not need: a redundant result, or f evaluated on the driver."""

from __future__ import annotations

from polarmap.driver.collector import JobTimer
from polarmap.driver.task_table import TaskTable

BASE_WAIT_SECONDS = 20.0  # the longest wait for a result that is not needed, or for f on the driver
WAIT_TASK_FACTOR = 4.0  # ... or this many times the longest task, if that is longer
# Bounds in seconds of the wait for a redundant result, after which f is evaluated on the driver.
REDUNDANCY_WAIT_BOUNDS = (0.2, 10.0)


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
