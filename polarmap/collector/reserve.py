"""The tasks that are held back until they are needed: parity on demand, applied to a running map."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from polarmap.code.protocol import Code
from polarmap.collector.arrivals import Arrivals
from polarmap.collector.settings import Settings
from polarmap.collector.stopwatch import Stopwatch
from polarmap.executors.base import Executor
from polarmap.runtimes.ondemand import late_age, to_start


class Reserve:
    """Which tasks of a map start at once, and when which of the others do.

    Without parity="on_demand" all start at once and nothing is left.
    """

    def __init__(
        self, executor: Executor, arrivals: Arrivals, code: Code, settings: Settings, watch: Stopwatch
    ) -> None:
        self._executor, self._arrivals, self._watch = executor, arrivals, watch
        self._code, self._law = code, settings.runtimes
        count = code.n
        if settings.parity == "on_demand":
            count = min(code.n, code.needed + settings.upfront)
        self.first: Sequence[int] = range(count)
        self.left: Sequence[int] = range(count, code.n)
        self._hopeless: tuple[frozenset[int], int] | None = None
        arrivals.hold_back(self.left)

    def look(self) -> None:
        """Start as many as late and failed tasks make necessary."""
        if not self.left or self._arrivals.ready_at is not None:
            return
        now = self._watch.elapsed
        on_time, taken = self._on_time(now), self._taken()
        count = to_start(self._needed, taken, self._running(now), now, len(self.left), self._tasks, self._law)
        count = max(count, self._short(on_time, count))
        if count:
            new, self.left = self.left[:count], self.left[count:]
            self._arrivals.launch(new, now)
            self._executor.launch(new)

    def patience(self) -> float:
        """Seconds until the next task becomes late, if nothing happens before."""
        if not self.left:
            return inf
        now = self._watch.elapsed
        age = late_age(self._tasks, self._taken(), self._law)
        waits = [began + age - now for began in self._running(now)]
        return min((wait for wait in waits if wait > 0), default=inf)

    def note_began(self) -> None:
        """Learn from the executor when tasks began; before outcomes are taken from it."""
        if self.left:
            offset = self._watch.elapsed - self._executor.now()
            for task, when in self._executor.began().items():
                self._arrivals.tasks[task].began = when + offset

    @property
    def _needed(self) -> int:
        return self._code.needed

    @property
    def _tasks(self) -> int:
        return self._code.needed

    def _taken(self) -> list[float]:
        """What tasks took that arrived."""
        return [task.took for task in self._arrivals.tasks if task.took is not None]

    def _running(self, now: float) -> list[float]:
        """When running tasks began; now for those that wait for a slot."""
        tasks = self._arrivals.tasks
        return [now if task.began is None else task.began for task in tasks if task.running]

    def _on_time(self, now: float) -> frozenset[int]:
        """The tasks that run and are not late."""
        age = late_age(self._tasks, self._taken(), self._law)
        tasks = enumerate(self._arrivals.tasks)
        return frozenset(i for i, t in tasks if t.running and (t.began is None or now - t.began < age))

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
