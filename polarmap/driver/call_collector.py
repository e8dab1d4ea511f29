"""The collector of an executor's calls: the first attempt that returns or raises ends a call."""

from __future__ import annotations

from math import inf

from polarmap.driver.batch_policy import BatchPolicy
from polarmap.driver.calls import CallGroup
from polarmap.driver.collector import EveryTaskCollector, JobTimer
from polarmap.driver.policies import RetryRule
from polarmap.driver.task_table import TaskTable
from polarmap.errors import WorkerLostError, replace_exit_exception, trim_traceback
from polarmap.executors.interface import FailureKind, Outcome
from polarmap.worker.pickled_values import unpickle_item
from polarmap.worker.pytree import Array

SESSION_IDLE_SECONDS = 0.05  # seconds without calls after which a session is closed


class CallCollector(EveryTaskCollector):
    """Sets the results and exceptions of calls as their attempts end, for as long as there are calls.

    Parameters
    ----------
    policy : BatchPolicy
        Forms the tasks from the calls.
    retry_rule : RetryRule
        How often a call is started again whose worker was lost. What a call raises is final.
    task_table : TaskTable
    timer : JobTimer
    """

    def __init__(
        self, policy: BatchPolicy, retry_rule: RetryRule, task_table: TaskTable, timer: JobTimer
    ) -> None:
        super().__init__(task_table, timer)
        self._policy, self._retry_rule = policy, retry_rule

    def add_outcome(self, outcome: Outcome) -> None:
        """Set the results and exceptions of the calls that an attempt has ended."""
        batch_outcome = self._policy.split_outcome(self.task_table, outcome)
        if batch_outcome is None:
            return
        calls = batch_outcome.items
        assert isinstance(calls, CallGroup)
        if outcome.failure is None or outcome.failure.kind == FailureKind.RAISED:
            self._policy.discard_task(self.task_table, outcome.task)
        for item_index, failure in batch_outcome.failures:
            if outcome.failure is None or failure.kind == FailureKind.RAISED:
                error = failure.cause or RuntimeError(str(failure))
                label = calls.describe_item(item_index)
                set_call_exception(calls, item_index, replace_exit_exception(label, error), raised_by_f=True)
        for item_index, data in batch_outcome.results:
            _set_call_result(calls, item_index, data)

    def try_finish(self) -> bool:
        """Fail the calls that were lost too often, and return whether no call is left."""
        for task_index in sorted(self.task_table.failed):
            record = self.task_table[task_index]
            if record.last_failure is not None and not self._retry_rule.allows_retry(record):
                calls, [item_index] = self._policy.get_batch(task_index)
                assert isinstance(calls, CallGroup)
                self._policy.discard_task(self.task_table, task_index)
                message = (
                    f"a call was lost {record.n_attempts} times, with its worker: "
                    f"{record.last_failure.message}"
                )
                set_call_exception(calls, item_index, WorkerLostError(message))
        return not self._policy.has_items

    @property
    def has_sufficient_results(self) -> bool:
        """Whether no call has to be started again because its worker was lost."""
        return not self.task_table.failed

    def poll_interval(self) -> float:
        """Return inf, or how long to wait for further calls if none is left."""
        if not self._policy.has_items:
            return SESSION_IDLE_SECONDS
        return inf if len(self.task_table) else 0.0

    def on_tasks_exhausted(self) -> None:
        """Do nothing: `try_finish` fails calls that are not tried again."""


def set_call_exception(
    calls: CallGroup, item_index: int, error: BaseException, raised_by_f: bool = False
) -> None:
    """Set the exception of an item of calls, without the frames of polarmap in its traceback.

    Parameters
    ----------
    calls : CallGroup
    item_index : int
    error : BaseException
    raised_by_f : bool
        Whether f raised the exception.
    """
    trim_traceback(error, raised_by_f)
    calls.set_exception(item_index, error)


def _set_call_result(calls: CallGroup, item_index: int, data: bytes | Array) -> None:
    """Set the result of an item of calls, or the exception if it cannot be unpickled here."""
    try:
        value = unpickle_item(data)
    except BaseException as error:
        label = f"the result of {calls.describe_item(item_index)}"
        set_call_exception(calls, item_index, replace_exit_exception(label, error))
    else:
        calls.set_result(item_index, value)
