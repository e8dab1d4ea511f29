"""Why a map gave no results, in words and numbers."""

from __future__ import annotations

from collections import Counter

from polarmap.run.received import Arrivals


class Shortfall:
    """The texts of the errors that a map ends with whose code takes `needed` results at the least."""

    def __init__(self, arrivals: Arrivals, needed: int) -> None:
        self._arrivals, self._needed = arrivals, needed

    @property
    def first_cause(self) -> BaseException | None:
        """The exception of the first task that raised one."""
        causes = (failure.cause for task in self._arrivals.tasks for failure in task.failures)
        return next((cause for cause in causes if cause is not None), None)

    def late(self, timeout: float | None, not_finite: bool = False) -> str:
        """The timeout passed; `not_finite`: and NaN or inf keep what arrived from being decoded."""
        running = sum(task.running for task in self._arrivals.tasks)
        still = f"{_tasks(running)} still run{'s' * (running == 1)}"
        head = f"{self._counted()} arrived within {timeout:g} s, {still}"
        enough = len(self._arrivals.received) >= self._needed
        if not_finite:
            head += "; results contain NaN or inf, which parity carries into every block that is decoded"
        elif self._arrivals.ready_at is not None:
            head += "; they determine the rest, but f could not be verified in time (verify=False skips that)"
        elif enough:
            head += "; they do not determine the rest, or not as accurately as rtol asks for"
        return head + self._failures()

    def too_few(self, not_finite: bool, nothing: bool = False) -> str:
        """Nothing more can arrive; `not_finite`: and NaN or inf keep what did from being decoded.

        `nothing`: though tasks seem to run, their executor knows that none of them will end.
        """
        if not_finite:
            data = self._arrivals.data_count
            return (
                "results contain NaN or inf, which parity carries into every block that is decoded, and "
                f"not all data tasks reported: {data} of {self._needed}{self._failures()}"
            )
        have = len(self._arrivals.received)
        if nothing:
            enough = ", which do not determine the rest" if have >= self._needed else ""
            return f"{self._counted()} arrived{enough}, and {self._executor_says()}{self._failures()}"
        running = sum(task.running for task in self._arrivals.tasks)
        still = f", {_tasks(running)} still run{'s' * (running == 1)}" if running else ""
        if have + running >= self._needed:
            return (
                f"{have} results arrived{still}, but decoding them would be too inaccurate for rtol or not "
                f"possible with this code, and no more can come{self._failures()}"
            )
        if running:
            return (
                f"only {have + running} of {self._needed} needed results can arrive: {have} did{still}"
                f"{self._failures()}"
            )
        return f"{self._counted()} arrived and no more can{self._failures()}"

    def _executor_says(self) -> str:
        running = sum(task.running for task in self._arrivals.tasks)
        return f"none of the {_tasks(running)} that still run{'s' * (running == 1)} will ever end"

    def _counted(self) -> str:
        return f"{self._arrivals.count} of {self._needed} needed results"

    def _failures(self) -> str:
        tasks = self._arrivals.tasks
        last = [str(task.failures[-1]) for task in tasks if task.arrived is None and task.failures]
        parts = [f"{_tasks(count)}: {text}" for text, count in Counter(last).most_common(3)]
        return "; failed " + "; ".join(parts) if parts else ""


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"
