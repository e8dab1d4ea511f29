"""Why a map gives no results, in words and numbers: what is raised where tasks do not give what is needed."""

from __future__ import annotations

from collections import Counter

from polarmap.errors import NotDecodableError, raised_by
from polarmap.executors.base import Failure
from polarmap.run.tasks import TaskTable

NOT_FINITE = "NaN or inf, which parity carries into every block that is decoded"


def late(tasks: TaskTable, needed: int, seconds: float, why: str = "") -> str:
    """The time is over; `why` what arrived does not do."""
    return f"{_counted(tasks, needed)} within {seconds:g} s, {_still_run(tasks)}{why}{_failures(tasks)}"


def not_finite(tasks: TaskTable, needed: int, data: int) -> str:
    """NaN or inf keep what arrived from being decoded; results of so many data blocks did."""
    return (
        f"results contain {NOT_FINITE}, and not all data tasks reported: {data} of {needed}{_failures(tasks)}"
    )


def too_few(tasks: TaskTable, needed: int) -> str:
    """What arrived and may still come does not do."""
    have, coming = len(tasks.arrived), len(tasks.coming)
    if have + coming >= needed:
        still = f", {_still_run(tasks)}" if coming else ""
        said = f"{_counted(tasks, needed)}{still}; they do not determine the rest, and no more can come"
    elif coming:
        said = f"only {have + coming} of {needed} needed results can arrive: {have} did, {_still_run(tasks)}"
    else:
        said = f"{_counted(tasks, needed)}, and no more can come"
    return said + _failures(tasks)


def _counted(tasks: TaskTable, needed: int) -> str:
    return f"{len(tasks.arrived)} of {needed} needed results arrived"


def _still_run(tasks: TaskTable) -> str:
    count = len(tasks.coming)
    return f"{_tasks(count)} still run{'s' * (count == 1)}"


def _failures(tasks: TaskTable) -> str:
    others = (task for index, task in enumerate(tasks) if index not in tasks.arrived)
    last = [str(task.last_failure) for task in others if task.last_failure is not None]
    parts = [f"{_tasks(count)}: {text}" for text, count in Counter(last).most_common(3)]
    return "; failed " + "; ".join(parts) if parts else ""


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"


def raised_everywhere(tasks: TaskTable, needed: int) -> BaseException | None:
    """What f raised, if it was the same in more tasks than may be missing and none has returned."""
    firsts = [] if tasks.arrived else [task.failures[0] for task in tasks if task.failures]
    count = max(len(tasks), needed)  # of which some may not be made yet
    if len(firsts) <= max(count - needed, count // 4, 1):
        return None
    if len({(one.kind, str(one)) for one in firsts}) > 1 or firsts[0].cause is None:
        return None
    who = f"f fails everywhere: each of the first {len(firsts)} of {count} tasks to end"
    return as_raised(who, firsts[0])


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
