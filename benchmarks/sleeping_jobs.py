"""Jobs whose tasks sleep for run times drawn beforehand, and what their workers are paid for.

Every attempt of a task leaves a file with the times of its begin and its end, wherever its worker is on
this machine: the file tells which attempt it is, and so how long it sleeps. Workers import this module, so it
imports no more than they need.
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


WORKER_NUMBERS: dict[str, int] = {}  # of this worker, by the folder in which it took it


class SleepingJob:
    """A function of a task's number that sleeps as long as a table (attempts, tasks) says.

    folder : empty, for a file of each attempt
    """

    def __init__(self, folder: Path, run_times: np.ndarray) -> None:
        self._folder, self._run_times = str(folder), run_times.tolist()

    def __call__(self, task: int) -> int:
        """Sleep; the task is what is returned."""
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
        """When each attempt began and, if it has, ended: on the monotonic clock of the machine."""
        times_of_attempts = [
            [float(line) for line in path.read_text().split()] for path in Path(self._folder).iterdir()
        ]
        return [times for times in times_of_attempts if times]  # a file is empty before its attempt begins

    def worker_seconds(self, end_at: float) -> float:
        """What attempts took until the job was over; those that still ran were stopped then."""
        return sum(max(0.0, min([*end, end_at]) - started_at) for started_at, *end in self.attempt_times())


class SlowWorkers:
    """Doubles a block after as long as its worker is to sleep, which differs from job to job.

    A worker takes a number with its first task, by a file of that name in an empty folder, and keeps it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._driver = str(folder), os.getpid()

    def set_sleep_seconds(self, sleep_seconds: np.ndarray) -> None:
        """What workers sleep from now on, each before every block."""
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
    """f of the coded maps."""
    return 2 * block


def count_worker_seconds(report: Report) -> float:
    """The same of a coded map: what its tasks took until the results were determined."""
    started_tasks = [task for task in report.tasks if task.launched is not None]
    return sum(
        report.seconds - task.launched if task.arrived is None or task.seconds is None else task.seconds
        for task in started_tasks
        if task.launched is not None
    )
