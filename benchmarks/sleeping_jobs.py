"""Jobs whose tasks sleep for run times drawn in advance, and the worker-seconds they cost.

Every attempt of a task writes its start and end times to a file, wherever its worker runs on this machine.
The file's name contains the number of the attempt, which selects its run time. Workers import this module, so
it imports only what they need.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from polarmap.types import Report


WORKER_NUMBERS: dict[str, int] = {}  # This worker's number in each folder.


class SleepingJob:
    """A function of a task number that sleeps according to a table of run times (attempts, tasks).

    Parameters
    ----------
    folder : Path
        An empty folder for a file per attempt.
    """

    def __init__(self, folder: Path, run_times: np.ndarray) -> None:
        self._folder, self._run_times = str(folder), run_times.tolist()

    def __call__(self, task: int) -> int:
        """Sleep, then return the task number."""
        attempt, path = self._next_attempt(task)
        time.sleep(self._run_times[attempt][task])
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{time.monotonic()!r}\n")
        return task

    def _next_attempt(self, task: int) -> tuple[int, str]:
        for attempt in range(len(self._run_times)):
            path = os.path.join(self._folder, f"{task}-{attempt}")
            try:
                with open(path, "x", encoding="ascii") as file:
                    file.write(f"{time.monotonic()!r}\n")
                return attempt, path
            except FileExistsError:
                pass
        raise RuntimeError(f"task {task} was started more than {len(self._run_times)} times")

    def attempt_times(self) -> list[list[float]]:
        """Return the start and, if it has ended, end of each attempt on the machine's monotonic clock."""
        times_of_attempts = [
            [float(line) for line in path.read_text().split()] for path in Path(self._folder).iterdir()
        ]
        return [times for times in times_of_attempts if times]  # A file is empty before its attempt begins.

    def worker_seconds(self, end_at: float) -> float:
        """Return the total seconds of all attempts; attempts still running at `end_at` count up to then."""
        return sum(max(0.0, min([*end, end_at]) - started_at) for started_at, *end in self.attempt_times())


class SlowWorkers:
    """A function that doubles a block after a delay, which depends on the worker and differs from job to job.

    A worker claims a number with its first task, by creating a file of that name in an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._driver = str(folder), os.getpid()

    def set_sleep_seconds(self, sleep_seconds: np.ndarray) -> None:
        """Set how long each worker sleeps before every block from now on."""
        path = os.path.join(self._folder, "seconds")
        with open(path + ".new", "w", encoding="ascii") as file:
            file.write("\n".join(map(repr, sleep_seconds.tolist())))
        os.replace(path + ".new", path)

    def __call__(self, block: Any) -> Any:
        if os.getpid() != self._driver:
            with open(os.path.join(self._folder, "seconds"), encoding="ascii") as file:
                sleep_seconds = [float(line) for line in file]
            time.sleep(sleep_seconds[self._worker_number() % len(sleep_seconds)])
        return double_block(block)

    def _worker_number(self) -> int:
        candidate = 0
        while self._folder not in WORKER_NUMBERS:
            with suppress(FileExistsError):
                open(os.path.join(self._folder, str(candidate)), "x").close()
                WORKER_NUMBERS[self._folder] = candidate
            candidate += 1
        return WORKER_NUMBERS[self._folder]


def double_block(block: Any) -> Any:
    """Return twice the block: the function of the coded maps."""
    return 2 * block


def count_worker_seconds(report: Report) -> float:
    """Return the seconds that the tasks of a coded map took until the results were determined."""
    started_tasks = [task for task in report.tasks if task.launched is not None]
    return sum(
        report.seconds - task.launched if task.arrived is None or task.seconds is None else task.seconds
        for task in started_tasks
        if task.launched is not None
    )
