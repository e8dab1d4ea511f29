"""What is needed of the tasks of a map, which its loop asks; and what is said where they do not give it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from math import inf
from typing import Any

from polarmap.errors import CodedTimeoutError, NotDecodableError, raised_by
from polarmap.executors.base import Failure, Outcome
from polarmap.report import Report
from polarmap.run.tasks import TaskTable

NOT_FINITE = "NaN or inf, which parity carries into every block that is decoded"


class Stopwatch:
    """Seconds since it was made, on a clock that is passed in, and how many are left of so many.

    >>> hand = iter([10.0, 12.0, 12.5])
    >>> watch = Stopwatch(lambda: next(hand), 3.0)
    >>> watch.elapsed, watch.remaining
    (2.0, 0.5)
    """

    def __init__(self, now: Callable[[], float], limit: float = inf) -> None:
        self._now, self.limit = now, limit
        self.began = now()  # by that clock

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self._now() - self.began

    def since(self, moment: float) -> float:
        """Seconds since an earlier moment; since it was made, where its clock is a virtual one."""
        return self._now() - min(moment, self.began)

    @property
    def remaining(self) -> float:
        """Seconds that are left, below 0 when they are over; inf without a limit."""
        return inf if self.limit == inf else self.limit - self.elapsed


class Need(ABC):
    """What a map makes of what becomes of its tasks, and what it needs of them still."""

    def __init__(self, tasks: TaskTable, watch: Stopwatch) -> None:
        self.tasks, self.watch = tasks, watch

    @abstractmethod
    def add(self, outcome: Outcome) -> None:
        """Take in what became of an attempt, which the table of tasks knows already."""

    @property
    @abstractmethod
    def is_met(self) -> bool:
        """Whether the results that arrived suffice, so that no further task has to be started."""

    @abstractmethod
    def settle_for_less(self) -> None:
        """Take what there is or raise, where what is needed is out of reach and no task is tried again."""

    # -- as it is where every task is wanted, and its first result as it is -----------------

    @property
    def threshold(self) -> int:
        """How many results suffice at the least."""
        return len(self.tasks)

    @property
    def outcomes(self) -> int:
        """How many tasks have a result that counts."""
        return len(self.tasks.arrived)

    @property
    def is_protected(self) -> bool:
        """Whether tasks that are held back would help."""
        return True

    def would_be_met(self, tasks: Collection[int]) -> bool:
        """Whether results of these tasks would suffice."""
        return len(set(tasks)) == len(self.tasks)

    def is_within_reach(self) -> bool:
        """Whether what arrived, runs and is held back would; without failures it would."""
        tasks = self.tasks
        return self.would_be_met(tasks.arrived.keys() | tasks.running.keys() | tasks.held_back)

    def look_seconds(self) -> float:
        """How long the loop may look away, because something else than a task is waited for."""
        return inf

    def check_failures(self) -> None:
        """Raise what f raised, if it was the same in more tasks than may be missing and none has returned."""
        tasks = self.tasks
        firsts = [] if tasks.arrived else [task.failures[0] for task in tasks if task.failures]
        if len(firsts) <= max(len(tasks) - self.threshold, len(tasks) // 4, 1):
            return
        if len({(one.kind, str(one)) for one in firsts}) == 1 and firsts[0].cause is not None:
            who = f"f fails everywhere: each of the first {len(firsts)} of {len(tasks)} tasks to end"
            raise as_raised(who, firsts[0])

    def time_is_over(self) -> None:
        """Raise CodedTimeoutError."""
        raise CodedTimeoutError(late(self)) from self.tasks.first_cause

    def step(self) -> bool:
        """Whether the map is over, after another look at the results."""
        return self.is_met

    def early_result(self, task: int) -> Callable[[], Any] | None:
        """What makes the result of a data block that this task has returned, before the others are there."""
        return None

    def estimate(self, report: Report) -> Any:
        """All results as they are estimated now, with the report so far; None if nothing tells them."""
        return None

    @property
    def surplus(self) -> Collection[int]:
        """Tasks whose results were of no use."""
        return ()

    def told(self, ended: float) -> dict[str, Any]:
        """Fields of the report of a map that was over in second `ended`."""
        return {"verified": "not needed"}


# --- why a map gave no results, in words and numbers --------------------------------------------


def late(need: Need, why: str = "") -> str:
    """The time is over; `why` what arrived does not do."""
    return f"{_counted(need)} within {need.watch.limit:g} s, {_still_run(need)}{why}{_failures(need)}"


def not_finite(need: Need, data: int) -> str:
    """NaN or inf keep what arrived from being decoded; results of so many data blocks did."""
    return (
        f"results contain {NOT_FINITE}, and "
        f"not all data tasks reported: {data} of {need.threshold}{_failures(need)}"
    )


def too_few(need: Need) -> str:
    """What arrived and may still come does not do."""
    have, coming = len(need.tasks.arrived), len(need.tasks.coming)
    if have + coming >= need.threshold:
        still = f", {_still_run(need)}" if coming else ""
        said = f"{_counted(need)}{still}; they do not determine the rest, and no more can come"
    elif coming:
        said = (
            f"only {have + coming} of {need.threshold} needed results can arrive: {have} did, "
            f"{_still_run(need)}"
        )
    else:
        said = f"{_counted(need)}, and no more can come"
    return said + _failures(need)


def _counted(need: Need) -> str:
    return f"{len(need.tasks.arrived)} of {need.threshold} needed results arrived"


def _still_run(need: Need) -> str:
    count = len(need.tasks.coming)
    return f"{_tasks(count)} still run{'s' * (count == 1)}"


def _failures(need: Need) -> str:
    others = (task for index, task in enumerate(need.tasks) if index not in need.tasks.arrived)
    last = [str(task.last_failure) for task in others if task.last_failure is not None]
    parts = [f"{_tasks(count)}: {text}" for text, count in Counter(last).most_common(3)]
    return "; failed " + "; ".join(parts) if parts else ""


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"


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
