"""Backup tasks: what is late is started a second time, and whichever copy returns first counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from polarmap.executors.base import Failure, Outcome, Run
from polarmap.planning.backups import BackupRule


class Attempts:
    """What became of every task of a map with backups.

    Attributes
    ----------
    results : dict from task to Outcome
    started : list of int
        How often each task was started.
    failures : list of lists
        Of attempts that were not handed on because another one was still running.
    """

    def __init__(self, count: int) -> None:
        self.results: dict[int, Outcome] = {}
        self.started = [0] * count
        self.failures: list[list[Failure]] = [[] for _ in range(count)]


class HedgedRun:
    """A run that also starts backups, and hands on the first result of each task.

    Results of any shape are kept in `attempts`; what is handed on is an empty array in their place.
    """

    def __init__(self, run: Run, rule: BackupRule, attempts: Attempts) -> None:
        self._run, self._rule, self._attempts = run, rule, attempts
        self._backups = [0] * len(attempts.started)
        self._durations: list[float] = []
        self._began: dict[tuple[int, int], float] = {}  # of attempts that run

    def now(self) -> float:
        """The clock of the run underneath."""
        return self._run.now()

    def submit(self, tasks: Sequence[int]) -> None:
        """Start an attempt of each."""
        self._run.submit(tasks)
        for task in tasks:
            self._began[task, self._attempts.started[task]] = self.now()
            self._attempts.started[task] += 1

    def wait(self, timeout: float) -> list[Outcome]:
        """What ended first of each task; starts the backups that are due."""
        soonest = min((when for when, _ in self._due()), default=inf)
        outcomes = self._run.wait(min(timeout, max(0.0, soonest - self.now())))
        news = [self._told(outcome) for outcome in outcomes]
        late = [task for when, task in self._due() if when <= self.now()]
        if late:
            for task in late:
                self._backups[task] += 1
            self.submit(late)
        return [outcome for outcome in news if outcome is not None]

    def running(self) -> Mapping[int, float]:
        """As the run underneath says."""
        return self._run.running()

    def is_exhausted(self) -> bool:
        """As the run underneath says, unless a backup may still be due."""
        return self._run.is_exhausted() and not self._due()

    def close(self) -> None:
        """Abandon all that runs."""
        self._run.close()

    def _due(self) -> list[tuple[float, int]]:
        """When each running task becomes late, counted from its latest attempt."""
        patience = self._rule.late_after(self._durations, len(self._backups))
        if patience == inf:
            return []
        latest: dict[int, float] = {}
        for (task, _), began in self._began.items():
            latest[task] = max(began, latest.get(task, began))
        return [(began + patience, task) for task, began in latest.items() if self._may_back_up(task)]

    def _may_back_up(self, task: int) -> bool:
        return task not in self._attempts.results and self._backups[task] < self._rule.most

    def _told(self, outcome: Outcome) -> Outcome | None:
        """The outcome as handed on; None for one that says nothing new."""
        began = self._began.pop((outcome.task, outcome.attempt), None)
        if outcome.task in self._attempts.results:
            return None
        if outcome.failure is not None:
            if any(task == outcome.task for task, _ in self._began):
                self._attempts.failures[outcome.task].append(outcome.failure)
                return None
            return outcome
        if began is not None:
            self._durations.append(self.now() - began)
        self._attempts.results[outcome.task] = outcome
        return outcome._replace(leaves=[np.empty(0)], structure=("array",))
