"""The tasks that are held back until they are needed: parity on demand, applied to a running map."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from polarmap.code.base import Code
from polarmap.executors.base import Run
from polarmap.planning.on_demand import ParityRule
from polarmap.run.options import Settings
from polarmap.run.received import Arrivals
from polarmap.run.stopwatch import Stopwatch

LEAST_SECONDS = 1e-9  # to wait: less may leave a clock where it is


class Reserve:
    """Which tasks of a map start at once, and when which of the others do.

    Without parity="on_demand" all start at once and nothing is left.
    """

    def __init__(
        self, run: Run, arrivals: Arrivals, code: Code, settings: Settings, watch: Stopwatch
    ) -> None:
        self._run, self._arrivals, self._watch = run, arrivals, watch
        self._code, self._rule = code, ParityRule(code.recovery_threshold, settings.runtimes)
        count = code.n
        if settings.parity == "on_demand":
            count = min(code.n, code.recovery_threshold + settings.upfront)
        self.first: Sequence[int] = range(count)
        self.left: Sequence[int] = range(count, code.n)
        self._hopeless: tuple[frozenset[int], int] | None = None
        arrivals.hold_back(self.left)

    def look(self) -> bool:
        """Start as many as late and failed tasks make necessary; whether any were."""
        if not self.left or self._arrivals.ready_at is not None:
            return False
        now = self._watch.elapsed
        first, later = self._taken()
        began = self._running(now).values()
        count = self._rule.parity_to_start(first, began, now, len(self.left), later)
        count = max(count, self._short(self._on_time(now), count))
        if count:
            new, self.left = self.left[:count], self.left[count:]
            self._arrivals.launch(new, now)
            self._run.submit(new)
        return count > 0

    def patience(self) -> float:
        """Seconds until the next task becomes late, if nothing happens before."""
        if not self.left:
            return inf
        now = self._watch.elapsed
        waits = [moment - now for moment in self._late_from(now).values() if moment > now]
        return max(LEAST_SECONDS, min(waits, default=inf))

    def note_began(self) -> None:
        """Learn from the run when tasks began; before outcomes are taken from it."""
        if self.left:
            offset = self._watch.elapsed - self._run.now()
            for task, when in self._run.running().items():
                self._arrivals.tasks[task].began = when + offset

    @property
    def _needed(self) -> int:
        return self._code.recovery_threshold

    def _taken(self) -> tuple[list[float], list[float]]:
        """What tasks took that arrived: those started at once, and those started later."""
        took = {i: t.took for i, t in enumerate(self._arrivals.tasks) if t.arrived is not None}
        first = [seconds for i, seconds in took.items() if seconds is not None and i in self.first]
        return first, [seconds for i, seconds in took.items() if seconds is not None and i not in self.first]

    def _running(self, now: float) -> dict[int, float]:
        """When running tasks began; now for those that wait for a slot."""
        tasks = enumerate(self._arrivals.tasks)
        return {i: now if task.began is None else task.began for i, task in tasks if task.running}

    def _late_from(self, now: float) -> dict[int, float]:
        """When each running task becomes late, or did."""
        running, (first, later) = self._running(now), self._taken()
        return dict(zip(running, self._rule.late_moments(first, running.values(), later)))

    def _on_time(self, now: float) -> frozenset[int]:
        """The tasks that run and are not late."""
        return frozenset(task for task, moment in self._late_from(now).items() if moment > now)

    def _short(self, on_time: frozenset[int], count: int) -> int:
        """How many it takes where the number alone does not decide: sparse codes, poor conditioning."""
        counted = on_time | self._arrivals.received.keys()
        if len(counted) + count < self._needed or (self._code.kernel != "arikan" and on_time):
            return count
        while count < len(self.left) and not self._would_do(counted, count):
            count += 1
        return count

    def _would_do(self, counted: frozenset[int], count: int) -> bool:
        """Whether these and the next ones of the reserve determine the results."""
        if self._hopeless == (counted, count):
            return False
        would = self._arrivals.would_determine(set(counted).union(self.left[:count]))
        if not would:
            self._hopeless = (counted, count)
        return would
