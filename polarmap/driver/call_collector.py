"""Collect the outcomes of calls that were submitted to a `polarmap.Executor`, and set their futures.

A call may be run more than once, because late calls get backups (second attempts) and lost calls are retried.
The first attempt that returns or raises an exception determines the result.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

from polarmap.driver.batch_policy import BatchPolicy
from polarmap.driver.batches import BatchOutcome
from polarmap.driver.calls import CallGroup
from polarmap.driver.collector import EveryTaskCollector, JobTimer
from polarmap.driver.policies import RetryRule
from polarmap.driver.task_table import TaskTable
from polarmap.errors import WorkerLostError, replace_exit_exception, trim_traceback
from polarmap.executors.interface import FailureKind, Outcome
from polarmap.worker.pickled_values import unpickle_item
from polarmap.worker.pytree import Array

SESSION_IDLE_SECONDS = 0.05  # close the session with the workers after this time without calls


@dataclass(slots=True)
class CallCounts:
    """The number of calls that are done (returned or failed), and how many of them have failed.

    A call counts as done as soon as it leaves the `BatchPolicy`, before its result is set. Each call is thus
    always counted by either the policy or this object, and a live view can add the two numbers.
    """

    n_done: int = 0
    n_failed: int = 0


class CallCollector(EveryTaskCollector):
    """Sets the results and exceptions of submitted calls as attempts finish, until no calls are left.

    Parameters
    ----------
    policy : BatchPolicy
        Forms the tasks from the calls.
    retry_rule : RetryRule
        How often to retry a call whose worker was lost. An exception raised by the call itself is final.
    task_table : TaskTable
        The state of the tasks.
    timer : JobTimer
        The time since the session with the workers was opened.
    counts : CallCounts
        The counts to update when calls have returned or failed.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        retry_rule: RetryRule,
        task_table: TaskTable,
        timer: JobTimer,
        counts: CallCounts,
    ) -> None:
        super().__init__(task_table, timer)
        self._policy, self._retry_rule, self._counts = policy, retry_rule, counts
        # Batches that have finished, but whose calls do not have their results or exceptions yet.
        self._finished_batches = deque[BatchOutcome]()

    def add_outcome(self, outcome: Outcome) -> None:
        """Record a finished batch. `set_outcomes` sets the results and exceptions of its calls later."""
        batch_outcome = self._policy.split_outcome(self.task_table, outcome)
        if batch_outcome is None:
            return
        if outcome.failure is None or outcome.failure.kind == FailureKind.RAISED:
            self._counts.n_done += len(batch_outcome.results) + len(batch_outcome.failures)
            self._policy.discard_task(self.task_table, outcome.task)
            self._finished_batches.append(batch_outcome)

    def on_due_tasks_started(self) -> None:
        """Set the results and exceptions of the futures of finished calls.

        This is done after starting tasks, because it may take long: the futures call their callbacks.
        """
        self.set_outcomes()

    def set_outcomes(self) -> None:
        """Set the result or exception of each call in the finished batches."""
        while self._finished_batches:  # Pop the outcomes so as not to keep references to results.
            batch_outcome = self._finished_batches.popleft()
            calls = batch_outcome.items
            assert isinstance(calls, CallGroup)
            for item_index, failure in batch_outcome.failures:
                error = failure.cause or RuntimeError(str(failure))
                error = replace_exit_exception(calls.describe_item(item_index), error)
                set_call_exception(calls, item_index, error, self._counts, raised_by_f=True)
            # The iterator of a map waits for the first item. Set it last, so that the iterator wakes up once.
            for item_index, data in reversed(batch_outcome.results):
                _set_call_result(calls, item_index, data, self._counts)

    def try_finish(self) -> bool:
        """Fail the calls that have used up their retries, and return whether no calls are left."""
        for task_index in sorted(self.task_table.failed):
            record = self.task_table[task_index]
            if record.last_failure is not None and not self._retry_rule.allows_retry(record):
                calls, [item_index] = self._policy.get_batch(task_index)
                assert isinstance(calls, CallGroup)
                self._counts.n_done += 1
                self._policy.discard_task(self.task_table, task_index)
                message = (
                    f"a call was lost {record.n_attempts} times, with its worker: "
                    f"{record.last_failure.message}"
                )
                set_call_exception(calls, item_index, WorkerLostError(message), self._counts)
        return not self._policy.has_items

    @property
    def has_sufficient_results(self) -> bool:
        """Whether no call has to be retried because its worker was lost."""
        return not self.task_table.failed

    def poll_interval(self) -> float:
        """Return the seconds until the next poll.

        This is 0 before any task has been formed. If no calls are left, it is the time to wait for new calls
        before the session is closed. Otherwise it is inf.
        """
        if not self._policy.has_items:
            return SESSION_IDLE_SECONDS
        return inf if len(self.task_table) else 0.0

    def on_tasks_exhausted(self) -> None:
        """Do nothing: `try_finish` fails the calls that are not retried."""


def set_call_exception(
    calls: CallGroup, item_index: int, error: BaseException, counts: CallCounts, raised_by_f: bool = False
) -> None:
    """Set and count the exception of a call, after removing polarmap's own frames from its traceback.

    Parameters
    ----------
    calls : CallGroup
        The calls, of which one has failed.
    item_index : int
        The index of the call (or chunk of calls) in `calls`.
    error : BaseException
        The exception to set.
    counts : CallCounts
        The counts to update.
    raised_by_f : bool
        Whether the called function raised the exception, rather than polarmap.
    """
    trim_traceback(error, raised_by_f)
    counts.n_failed += 1
    calls.set_exception(item_index, error)


def _set_call_result(calls: CallGroup, item_index: int, data: bytes | Array, counts: CallCounts) -> None:
    """Set the unpickled result of a call, or set and count the exception if unpickling fails."""
    try:
        value = unpickle_item(data)
    except BaseException as error:
        label = f"the result of {calls.describe_item(item_index)}"
        set_call_exception(calls, item_index, replace_exit_exception(label, error), counts)
    else:
        calls.set_result(item_index, value)
