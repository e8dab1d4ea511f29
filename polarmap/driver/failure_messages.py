"""Build the messages and exceptions of maps that fail because too few tasks return a usable result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from polarmap.driver.task_table import TaskRecord, TaskTable
from polarmap.errors import NotDecodableError, add_note, annotate_exception
from polarmap.executors.interface import Failure, FailureKind

MAX_HOSTS = 5  # name at most this many machines in a message
NONFINITE_TEXT = "NaN or inf, which parity carries into every block that is decoded"


def format_timeout_message(
    task_table: TaskTable,
    n_needed: int,
    timeout_seconds: float,
    reason: str = "",
    n_receiving_workers: int = 0,
) -> str:
    """Return the error message for a map that has timed out.

    n_needed : the number of results that the map needs.
    reason : why the arrived results do not suffice, or "". It is appended to the message.
    n_receiving_workers : the number of workers that are still receiving their data block.
    """
    receiving_text = ""
    if n_receiving_workers:
        workers_text = f"worker{'s were' if n_receiving_workers > 1 else ' was'}"
        receiving_text = f" ({n_receiving_workers} {workers_text} still receiving a block)"
    pending_text = f"{_format_pending_tasks(task_table)}{receiving_text}"
    return (
        f"{_format_arrived_count(task_table, n_needed)} within {timeout_seconds:g} s, "
        f"{pending_text}{reason}{_format_failures(task_table)}"
    )


def format_nonfinite_message(task_table: TaskTable, n_needed: int, n_data_results: int) -> str:
    """Return the error message for a map whose results contain NaN or inf and so cannot be decoded.

    n_data_results : the number of data blocks whose results have arrived.
    """
    return (
        f"results contain {NONFINITE_TEXT}, and not all data tasks reported: "
        f"{n_data_results} of {n_needed}{_format_failures(task_table)}"
    )


def format_too_few_results_message(task_table: TaskTable, n_needed: int) -> str:
    """Return the error message for a map that cannot succeed even if all pending tasks return."""
    n_arrived, n_pending = len(task_table.arrived), len(task_table.pending_tasks)
    if n_arrived + n_pending >= n_needed:
        pending_text = f" and {_format_pending_tasks(task_table)}" if n_pending else ""
        message = (
            f"{n_arrived} results arrived{pending_text}, but all of these together do not determine the "
            f"missing results: {n_needed} suffice only in some combinations"
        )
    elif n_pending:
        message = (
            f"only {n_arrived + n_pending} of {n_needed} needed results can arrive: "
            f"{n_arrived} did, {_format_pending_tasks(task_table)}"
        )
    else:
        message = f"{_format_arrived_count(task_table, n_needed)}, and no more can come"
    return message + _format_failures(task_table)


def _format_arrived_count(task_table: TaskTable, n_needed: int) -> str:
    n_arrived = len(task_table.arrived)
    if n_arrived > n_needed:
        return f"{n_arrived} results arrived (the smallest number that can suffice is {n_needed})"
    return f"{n_arrived} of {n_needed} needed results arrived"


def _format_pending_tasks(task_table: TaskTable) -> str:
    """Return a phrase with the numbers of running and queued tasks, such as "3 tasks still run".

    If an executor never reports that a task has started, all its pending tasks count as running.
    """
    pending_records = [task_table[task_index] for task_index in task_table.pending_tasks]
    n_queued = sum(not task.dispatched_at for task in pending_records)
    if task_table.no_worker_reason:
        return (
            f"{_format_n_tasks(n_queued)} {_choose_is_or_are(n_queued)} queued: {task_table.no_worker_reason}"
        )
    if not any(task.dispatched_at for task in task_table):
        n_queued = 0
    n_running = len(pending_records) - n_queued
    phrases = (
        [f"{_format_n_tasks(n_running)} still run{'s' * (n_running == 1)}"]
        if n_running or not n_queued
        else []
    )
    if n_queued:
        phrases.append(
            f"{n_queued if phrases else _format_n_tasks(n_queued)} {_choose_is_or_are(n_queued)} queued"
        )
    return ", ".join(phrases)


def _choose_is_or_are(n_tasks: int) -> str:
    return "is" if n_tasks == 1 else "are"


def _format_failures(task_table: TaskTable) -> str:
    failure_counts = _format_failure_counts(task_table)
    return f"; failed {failure_counts}{_format_failed_hosts(task_table)}" if failure_counts else ""


def _format_failed_hosts(task_table: TaskTable) -> str:
    """Return a phrase that names the machines on which tasks failed, such as " (on node1, node2)"."""
    arrived = task_table.arrived
    failed_records = [task for index, task in enumerate(task_table) if task.failures and index not in arrived]
    hosts = [host for host, _ in Counter(task.host for task in failed_records if task.host).most_common()]
    if not hosts:
        return ""
    omitted_text = f" and {len(hosts) - MAX_HOSTS} more" if len(hosts) > MAX_HOSTS else ""
    return f" (on {', '.join(hosts[:MAX_HOSTS])}{omitted_text})"


def _format_failure_counts(task_table: TaskTable, excluded_text: str | None = None) -> str:
    """Return a summary that counts the failed tasks by the message of their last failure.

    excluded_text : failures with this message are left out.
    """
    counts = Counter[str]()
    for task_index, task in enumerate(task_table):
        texts = [] if task_index in task_table.arrived else [str(failure) for failure in task.failures]
        counts.update([text for text in texts if text != excluded_text][-1:])
    return "; ".join(f"{_format_n_tasks(n_tasks)}: {text}" for text, n_tasks in counts.most_common(3))


def _format_n_tasks(n_tasks: int) -> str:
    return f"{n_tasks} task{'s' * (n_tasks != 1)}"


def find_common_exception(task_table: TaskTable, n_needed: int) -> BaseException | None:
    """Return the exception raised by the mapped function f if f appears to fail in every task, else None.

    f is assumed to fail in every task if no task has returned and f raised the same exception in more tasks
    than the map can lose. Lost workers are not counted, because f did not cause them. A note on the exception
    mentions them.
    """
    if task_table.arrived:
        return None
    first_failures = [_find_first_failure_of_f(task) for task in task_table if task.failures]
    failures = [failure for failure in first_failures if failure is not None]
    n_tasks = max(len(task_table), n_needed)  # Some tasks may not exist yet.
    if len(failures) <= max(n_tasks - n_needed, n_tasks // 4, 1):
        return None
    if len({(failure.kind, str(failure)) for failure in failures}) > 1 or failures[0].cause is None:
        return None
    label = f"f fails everywhere: each of the first {len(failures)} of {n_tasks} tasks to end"
    return add_other_failures_note(build_failure_exception(label, failures[0]), failures[0], task_table)


def _find_first_failure_of_f(record: TaskRecord) -> Failure | None:
    """Return the first failure of a task that is not a lost worker, or None."""
    return next((failure for failure in record.failures if failure.kind != FailureKind.LOST), None)


def find_decisive_exception(
    task_table: TaskTable, would_suffice: Callable[[set[int]], bool]
) -> BaseException | None:
    """Return the exception that the mapped function f raised most often if f made the map fail, else None.

    f is considered the cause if no result has arrived, and either the exceptions of f alone were enough to
    make the map fail, or the lost workers alone were not.

    would_suffice : called with a set of tasks to ask whether their results would be enough for the map.
    """
    if task_table.arrived:
        return None
    last_failures = ((task_index, record.last_raised_failure) for task_index, record in enumerate(task_table))
    failure_by_task = {task_index: failure for task_index, failure in last_failures if failure is not None}
    if not failure_by_task or not _has_map_failed_due_to_f(failure_by_task.keys(), task_table, would_suffice):
        return None
    text_by_task = {task_index: str(failure) for task_index, failure in failure_by_task.items()}
    [(common_text, _)] = Counter(text_by_task.values()).most_common(1)
    first_task = next(task_index for task_index, text in text_by_task.items() if text == common_text)
    count_text = f"{len(failure_by_task)} of {len(task_table)} tasks"
    label = f"f raised in {count_text}, and the others do not determine the results: task {first_task}"
    failure = failure_by_task[first_task]
    return add_other_failures_note(build_failure_exception(label, failure), failure, task_table)


def _has_map_failed_due_to_f(
    raising_tasks: Collection[int], task_table: TaskTable, would_suffice: Callable[[set[int]], bool]
) -> bool:
    """Return whether a map failed because of exceptions in `raising_tasks` rather than lost workers."""
    all_tasks = set(range(len(task_table)))
    if not would_suffice(all_tasks.difference(raising_tasks)):
        return True
    return would_suffice(all_tasks - task_table.failed.difference(raising_tasks))


def add_other_failures_note(error: BaseException, failure: Failure, task_table: TaskTable) -> BaseException:
    """Add a note to `error` that counts failures other than `failure`, and return `error`."""
    other_failures = _format_failure_counts(task_table, excluded_text=str(failure))
    if other_failures:
        add_note(error, f"other failures: {other_failures}")
    return error


def build_failure_exception(label: str, failure: Failure) -> BaseException:
    """Return the exception to raise for a failed task.

    This is the exception raised by the mapped function f, or a NotDecodableError if the worker could not call
    f, for example because it lacks the encryption key.

    label : names the task in the message.
    """
    assert failure.cause is not None
    if not type(failure.cause).__module__.startswith("polarmap.worker."):
        return annotate_exception(label, failure.cause)
    error = NotDecodableError(f"{label} failed: {failure}")
    error.__cause__ = failure.cause
    return error
