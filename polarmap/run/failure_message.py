"""Why a map gave no results, in words and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from polarmap.errors import NotDecodableError, raised_by
from polarmap.executors.base import Failure
from polarmap.run.tasks import TaskTable


@dataclass(frozen=True)
class FailureMessage:
    """The texts of the errors that a map ends with.

    tasks : all of them.
    needed : results that it takes at the least.
    arrived, received : tasks whose results came, and those of which they can be used.
    data : how many of the former are of data blocks.
    is_ready : whether what is received determines the rest.
    running : tasks whose results may still come.
    """

    tasks: TaskTable
    needed: int
    arrived: Collection[int]
    received: Collection[int]
    data: int
    is_ready: bool
    running: Sequence[int]

    def late(self, timeout: float, not_finite: bool = False) -> str:
        """The timeout passed; `not_finite`: and NaN or inf keep what arrived from being decoded."""
        running = len(self.running)
        still = f"{_tasks(running)} still run{'s' * (running == 1)}"
        head = f"{self._counted()} arrived within {timeout:g} s, {still}"
        enough = len(self.received) >= self.needed
        if not_finite:
            head += "; results contain NaN or inf, which parity carries into every block that is decoded"
        elif self.is_ready:
            head += "; they determine the rest, but f could not be verified in time (verify=False skips that)"
        elif enough:
            head += "; they do not determine the rest, or not as accurately as rtol asks for"
        return head + self._failures()

    def too_few(self, not_finite: bool, nothing: bool = False) -> str:
        """Nothing more can arrive; `not_finite`: and NaN or inf keep what did from being decoded.

        `nothing`: no task runs any more.
        """
        if not_finite:
            data = self.data
            return (
                "results contain NaN or inf, which parity carries into every block that is decoded, and "
                f"not all data tasks reported: {data} of {self.needed}{self._failures()}"
            )
        have = len(self.received)
        if nothing:
            enough = ", which do not determine the rest" if have >= self.needed else ""
            return f"{self._counted()} arrived{enough}, and no more can come{self._failures()}"
        running = len(self.running)
        still = f", {_tasks(running)} still run{'s' * (running == 1)}" if running else ""
        if have + running >= self.needed:
            return (
                f"{have} results arrived{still}, but decoding them would be too inaccurate for rtol or not "
                f"possible with this code, and no more can come{self._failures()}"
            )
        if running:
            return (
                f"only {have + running} of {self.needed} needed results can arrive: {have} did{still}"
                f"{self._failures()}"
            )
        return f"{self._counted()} arrived and no more can{self._failures()}"

    def _counted(self) -> str:
        return f"{len(self.arrived)} of {self.needed} needed results"

    def _failures(self) -> str:
        others = (self.tasks[index] for index in range(len(self.tasks)) if index not in self.arrived)
        last = [str(task.last_failure) for task in others if task.last_failure is not None]
        parts = [f"{_tasks(count)}: {text}" for text, count in Counter(last).most_common(3)]
        return "; failed " + "; ".join(parts) if parts else ""


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"


def raise_if_all_fail(tasks: TaskTable, any_returned: bool, spare: int) -> None:
    """What f raised, when it was the same in more tasks than may be missing and none has returned."""
    if any_returned:
        return
    firsts = [task.failures[0] for task in map(tasks.__getitem__, range(len(tasks))) if task.failures]
    if len(firsts) <= max(spare, len(tasks) // 4, 1):
        return
    if len({(one.kind, str(one)) for one in firsts}) == 1 and firsts[0].cause is not None:
        who = f"f fails everywhere: each of the first {len(firsts)} of {len(tasks)} tasks to end"
        raise as_raised(who, firsts[0])


def as_raised(who: str, failure: Failure) -> BaseException:
    """What f raised; and in our words what kept a worker from calling it, such as a key that is missing.

    In our words, too, what would end a generator of ours, or of whoever has called.
    """
    assert failure.cause is not None
    is_ours = type(failure.cause).__module__.startswith("polarmap.worker.")
    if not (is_ours or isinstance(failure.cause, StopIteration)):
        return raised_by(who, failure.cause)
    error = NotDecodableError(f"{who} failed: {failure}")
    error.__cause__ = failure.cause
    return error
