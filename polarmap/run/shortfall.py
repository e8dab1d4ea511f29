"""Why a map gives no results, in words and numbers: what is raised where tasks do not give what is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from polarmap.errors import NotDecodableError, add_note, raised_by
from polarmap.executors.interface import Failure
from polarmap.run.tasks import Task, TaskTable

MAX_HOSTS = 5  # that an error names
NOT_FINITE = "NaN or inf, which parity carries into every block that is decoded"


def late(tasks: TaskTable, needed: int, seconds: float, why: str = "", n_receiving: int = 0) -> str:
    """Return the text of an error for a map whose time is over.

    why : the reason why the results that arrived do not suffice, if there is one.
    n_receiving : the number of workers that are still being sent their block.
    """
    slow = ""
    if n_receiving:
        slow = f" ({n_receiving} worker{'s were' if n_receiving > 1 else ' was'} still receiving a block)"
    still = f"{_still_run(tasks)}{slow}"
    return f"{_counted(tasks, needed)} within {seconds:g} s, {still}{why}{_failures(tasks)}"


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
    """Count the tasks whose results may come: those that run, and those that no worker has begun.

    An executor that tells of no begin at all is taken to run what it was given.
    """
    coming = [tasks[index] for index in tasks.coming]
    n_queued = sum(not task.began for task in coming)
    if tasks.shortage:
        return f"{_tasks(n_queued)} {_are(n_queued)} queued: {tasks.shortage}"
    if not any(task.began for task in tasks):
        n_queued = 0
    count = len(coming) - n_queued
    said = [f"{_tasks(count)} still run{'s' * (count == 1)}"] if count or not n_queued else []
    if n_queued:
        said.append(f"{n_queued if said else _tasks(n_queued)} {_are(n_queued)} queued")
    return ", ".join(said)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _failures(tasks: TaskTable) -> str:
    counted = _counted_failures(tasks)
    return f"; failed {counted}{_failed_hosts(tasks)}" if counted else ""


def _failed_hosts(tasks: TaskTable) -> str:
    """Return the machines on which the tasks without a result failed, at most five, as part of a sentence."""
    failed = [task for index, task in enumerate(tasks) if task.failures and index not in tasks.arrived]
    hosts = [host for host, _ in Counter(task.host for task in failed if task.host).most_common()]
    if not hosts:
        return ""
    more = f" and {len(hosts) - MAX_HOSTS} more" if len(hosts) > MAX_HOSTS else ""
    return f" (on {', '.join(hosts[:MAX_HOSTS])}{more})"


def _counted_failures(tasks: TaskTable, without: str | None = None) -> str:
    """Count the tasks without a result by their last failure that has another text than `without`."""
    counts = Counter[str]()
    for index, task in enumerate(tasks):
        texts = [] if index in tasks.arrived else [str(one) for one in task.failures]
        counts.update([text for text in texts if text != without][-1:])
    return "; ".join(f"{_tasks(count)}: {text}" for text, count in counts.most_common(3))


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"


def raised_everywhere(tasks: TaskTable, needed: int) -> BaseException | None:
    """Return what f raised, if it was the same in more tasks than may be missing and none has returned.

    Attempts whose worker was lost tell nothing of f: they are counted in a note.
    """
    if tasks.arrived:
        return None
    firsts = [_first_of_f(task) for task in tasks if task.failures]
    failures = [one for one in firsts if one is not None]
    count = max(len(tasks), needed)  # of which some may not be made yet
    if len(failures) <= max(count - needed, count // 4, 1):
        return None
    if len({(one.kind, str(one)) for one in failures}) > 1 or failures[0].cause is None:
        return None
    who = f"f fails everywhere: each of the first {len(failures)} of {count} tasks to end"
    return with_other_failures(as_raised(who, failures[0]), failures[0], tasks)


def _first_of_f(task: Task) -> Failure | None:
    """The first failure of a task that tells something of f."""
    return next((one for one in task.failures if one.kind != "lost"), None)


def raised_too_often(tasks: TaskTable, would_suffice: Callable[[set[int]], bool]) -> BaseException | None:
    """Return what f raised in most tasks, if that explains why a map has failed, and None otherwise.

    It does if nothing has arrived, and either the map would have failed without any other failure, or the
    lost workers alone would not have made it fail.

    would_suffice : whether results of these tasks would be enough.
    """
    if tasks.arrived:
        return None
    found = ((index, task.last_raised) for index, task in enumerate(tasks))
    raised = {index: failure for index, failure in found if failure is not None}
    if not raised or not _is_due_to(raised.keys(), tasks, would_suffice):
        return None
    texts = {index: str(failure) for index, failure in raised.items()}
    [(usual, _)] = Counter(texts.values()).most_common(1)
    first = next(index for index, text in texts.items() if text == usual)
    count = f"{len(raised)} of {len(tasks)} tasks"
    who = f"f raised in {count}, and the others do not determine the results: task {first}"
    return with_other_failures(as_raised(who, raised[first]), raised[first], tasks)


def _is_due_to(raised: Collection[int], tasks: TaskTable, would_suffice: Callable[[set[int]], bool]) -> bool:
    """Return whether a map failed because f raised in these tasks, rather than because workers were lost."""
    every = set(range(len(tasks)))
    if not would_suffice(every.difference(raised)):
        return True
    return would_suffice(every - tasks.failed.difference(raised))


def with_other_failures(error: BaseException, failure: Failure, tasks: TaskTable) -> BaseException:
    """Add a note to what f raised in some tasks that counts how others failed, and return it."""
    others = _counted_failures(tasks, without=str(failure))
    if others:
        add_note(error, f"other failures: {others}")
    return error


def as_raised(who: str, failure: Failure) -> BaseException:
    """Return what to raise for a failure: what f raised, or a NotDecodableError if f could not be called.

    A key that is missing on the worker, for example, keeps it from calling f.
    """
    assert failure.cause is not None
    if not type(failure.cause).__module__.startswith("polarmap.worker."):
        return raised_by(who, failure.cause)
    error = NotDecodableError(f"{who} failed: {failure}")
    error.__cause__ = failure.cause
    return error
