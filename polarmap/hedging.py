"""Backup tasks: what is late is started a second time, and whichever copy returns first counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from polarmap.executors.base import Coded, Executor, Failure, Function, Outcome
from polarmap.remote.stored import Keep
from polarmap.remote.worker import Fault
from polarmap.runtimes.backups import Rule


class HedgingExecutor:
    """Another executor that also starts backups, and hands on the first result of each task.

    Results of any shape are kept here; what it hands on is an empty array in their place.

    Attributes
    ----------
    results : dict from task to Outcome
    attempts : list of int
        How often each task was started.
    failures : list of lists
        Of attempts that were not handed on because another one was still running.
    worker
        What the executor underneath gives each task, if it says so.
    """

    def __init__(self, executor: Executor, rule: Rule) -> None:
        self._executor, self._rule = executor, rule
        self.name = executor.name
        self.worker = getattr(executor, "worker", None)
        self.keep: Keep | None = None
        self.subtasks = 1
        self.results: dict[int, Outcome] = {}

    def now(self) -> float:
        """The clock of the executor underneath."""
        return self._executor.now()

    def start(
        self, f: Function, coded: Coded, faults: Mapping[int, Fault], tasks: Sequence[int] | None = None
    ) -> None:
        """Start these tasks, or all, once."""
        first = range(coded.n) if tasks is None else tasks
        self._tasks = coded.n
        self.attempts = [int(task in first) for task in range(coded.n)]
        self.failures: list[list[Failure]] = [[] for _ in range(coded.n)]
        self._backups = [0] * coded.n
        self._durations: list[float] = []
        self._executor.keep = self.keep
        self._executor.start(f, coded, faults, first)
        self._started = {(task, 0): self.now() for task in first}  # of attempts that run

    def launch(self, tasks: Sequence[int]) -> None:
        """Start further ones once."""
        self._executor.launch(tasks)
        for task in tasks:
            self._started[task, 0] = self.now()
            self.attempts[task] = 1

    def began(self) -> Mapping[int, float]:
        """As the executor underneath says."""
        return self._executor.began()

    def wait(self, timeout: float) -> list[Outcome]:
        """What ended first of each task; starts the backups that are due."""
        soonest = min((when for when, _ in self._due()), default=inf)
        outcomes = self._executor.wait(min(timeout, max(0.0, soonest - self.now())))
        news = [self._told(outcome) for outcome in outcomes]
        late = [task for when, task in self._due() if when <= self.now()]
        if late:
            for task in late:
                self._backups[task] += 1
            self.retry(late)
        return [outcome for outcome in news if outcome is not None]

    def is_exhausted(self) -> bool:
        """As the executor underneath says, unless a backup may still be due."""
        return self._executor.is_exhausted() and not self._due()

    def retry(self, tasks: Sequence[int]) -> None:
        """Start a further attempt of each."""
        self._executor.retry(tasks)
        for task in tasks:
            self._started[task, self.attempts[task]] = self.now()
            self.attempts[task] += 1

    def stop(self) -> None:
        """Abandon all that runs."""
        self._executor.stop()

    def _due(self) -> list[tuple[float, int]]:
        """When each running task becomes late, counted from its latest attempt."""
        patience = self._rule.patience(self._durations, self._tasks)
        if patience == inf:
            return []
        latest: dict[int, float] = {}
        for (task, _), began in self._started.items():
            latest[task] = max(began, latest.get(task, began))
        return [(began + patience, task) for task, began in latest.items() if self._may_back_up(task)]

    def _may_back_up(self, task: int) -> bool:
        return task not in self.results and self._backups[task] < self._rule.most

    def _told(self, outcome: Outcome) -> Outcome | None:
        """The outcome as handed on; None for one that says nothing new."""
        began = self._started.pop((outcome.task, outcome.attempt), None)
        if outcome.task in self.results:
            return None
        if outcome.failure is not None:
            if any(task == outcome.task for task, _ in self._started):
                self.failures[outcome.task].append(outcome.failure)
                return None
            return outcome
        if began is not None:
            self._durations.append(self.now() - began)
        self.results[outcome.task] = outcome
        return outcome._replace(leaves=[np.empty(0)], structure=("array",))
