"""The calls of an executor as tasks of its runs, which come while a schedule runs, and the thread of both."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, TimeoutError
from contextlib import closing, suppress
from math import inf
from typing import Any

from polarmap.driver.batches import BatchPolicy, ItemSequence, can_batch_items, unpickle_result
from polarmap.driver.collector import Collector, EveryTaskCollector, JobTimer
from polarmap.driver.daemon_pool import register_before_exit
from polarmap.driver.policies import RetryRule
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.errors import WorkerLostError, replace_exit_exception, trim_traceback
from polarmap.executors.interface import JobSpec, Outcome, Session
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.worker.pytree import Array
from polarmap.worker.task_functions import execute_pickled_call

SESSION_IDLE_SECONDS = 0.05  # without calls, before a run is closed


class SubmittedCall(ItemSequence):
    """A call, and the future of what it gives."""

    def __init__(self, future: Future[Any], function_key: Hashable, block: bytes | Array) -> None:
        super().__init__(function_key, blocks=[block])
        self.future, self._is_cancelled = future, False

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """It, if it may begin, or has: nobody has cancelled it, and nobody can any more."""
        is_claimed = self.future.running()
        can_start = is_claimed or (not self._is_cancelled and self.future.set_running_or_notify_cancel())
        return item_indices if can_start else []

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """It, if it has."""
        return item_indices if self.future.running() else []

    def cancel(self) -> None:
        """Cancel it, unless it has begun."""
        if not self._is_cancelled and self.future.cancel():
            self._is_cancelled = True
            self.future.set_running_or_notify_cancel()  # which tells who waits for it

    def describe_item(self, item_index: int) -> str:
        """Return the words by which an error names it."""
        return f"a call of {_get_function_name(self.item_class)}"

    def set_result(self, item_index: int, value: Any) -> None:
        """Its result is there."""
        with suppress(InvalidStateError):  # somebody else has set it
            self.future.set_result(value)

    def set_exception(self, item_index: int, error: BaseException) -> None:
        """It has none."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class MappedCalls(ItemSequence):
    """Calls of one function whose results are asked for in their order, each of a list."""

    def __init__(self, function_key: Hashable, chunksize: int = 1) -> None:
        super().__init__((function_key, chunksize))
        self._function_key, self._chunksize = function_key, chunksize
        self._is_cancelled = False
        self._claimed = set[int]()
        self._outcomes: dict[int, tuple[bool, Any]] = {}  # that nobody has asked for yet
        self._awaited_index, self._changed = -1, threading.Condition()

    def claim_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Those of these that may begin, or have."""
        if self._is_cancelled:
            return self.select_claimed_items(item_indices)
        self._claimed.update(item_indices)
        return item_indices

    def select_claimed_items(self, item_indices: Sequence[int]) -> Sequence[int]:
        """Those of these that have."""
        return [item_index for item_index in item_indices if item_index in self._claimed]

    def cancel(self) -> None:
        """Cancel those that have not begun."""
        self._is_cancelled = True
        with self._changed:
            self._changed.notify_all()

    def describe_item(self, item_index: int) -> str:
        """Return the words by which an error names one of them, which may be several calls of the caller."""
        first_call, name = item_index * self._chunksize, _get_function_name(self._function_key)
        if self._chunksize == 1:
            return f"call {first_call} of map({name})"
        return f"one of calls {first_call} to {first_call + self._chunksize - 1} of map({name})"

    def set_result(self, item_index: int, value: Any) -> None:
        """A result is there."""
        self._store_item_outcome(item_index, (True, value))

    def set_exception(self, item_index: int, error: BaseException) -> None:
        """One has none."""
        self._store_item_outcome(item_index, (False, error))

    def _store_item_outcome(self, item_index: int, outcome: tuple[bool, Any]) -> None:
        self._outcomes[item_index], self.blocks[item_index] = outcome, b""
        if item_index == self._awaited_index:
            with self._changed:
                self._changed.notify_all()

    def iterate_results(
        self, deadline: float | None, submissions: Iterator[object], on_close: Callable[[], object]
    ) -> Iterator[Any]:
        """The items of all results, in their order, none of which is kept.

        deadline : when the next result raises TimeoutError if it is not there, on the monotonic clock.
        submissions : brings one more call for each whose result is taken.
        on_close : is called at the end.
        """
        item_index = 0
        try:
            while item_index < len(self.blocks):
                next(submissions, None)
                chunk_results = self._pop_result(item_index, deadline)
                item_index += 1
                chunk_results.reverse()
                while chunk_results:
                    yield chunk_results.pop()
        finally:
            on_close()

    def _pop_result(self, item_index: int, deadline: float | None) -> list[Any]:
        """A result for which nobody else waits."""
        if item_index not in self._outcomes:
            with self._changed:
                self._awaited_index = item_index
                while item_index not in self._outcomes:
                    if self._is_cancelled and item_index not in self._claimed:
                        raise CancelledError
                    if not self._changed.wait(None if deadline is None else deadline - time.monotonic()):
                        raise TimeoutError
        has_returned, value = self._outcomes.pop(item_index)
        if has_returned:
            return value  # type: ignore[no-any-return]
        try:
            raise value
        finally:
            del value  # an exception shall not keep itself


CallGroup = SubmittedCall | MappedCalls


class CallQueue(BatchPolicy, EveryTaskCollector):
    """The calls of an executor: what its schedules start and need, the blocks of its runs, and its thread.

    A run is open while there are calls, and no longer; the watch is that of the run. Numbers of tasks go on
    from run to run.

    Parameters
    ----------
    executor : ResolvedExecutor
    on_close : called once, when it was shut down and all calls have ended.
    max_in_flight : calls that a run is given at a time.
    max_backups : that a late call may get.
    max_retries : of one whose worker was lost.
    """

    def __init__(
        self,
        executor: ResolvedExecutor,
        on_close: Callable[[], None],
        max_in_flight: int,
        max_backups: int,
        max_retries: int,
    ) -> None:
        self._executor, self._on_close = executor, on_close
        allow_batches = can_batch_items(executor, max_backups, max_retries)
        self._policy_arguments = allow_batches, max_in_flight, max_backups, executor.faults
        self._max_retries = max_retries
        self._is_shut_down = False
        self.after_fork()
        _call_queues.add(self)

    def after_fork(self) -> None:
        """Begin anew, in a process that was forked of the one that has the thread."""
        Collector.__init__(self, TaskTable(0), JobTimer(time.monotonic))
        BatchPolicy.__init__(self, *self._policy_arguments)
        self._n_unfinished: dict[CallGroup, int] = {}  # how many of them are not over
        # One call is not to begin while another thread cancels it; an executor may be dropped at any moment.
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._thread: threading.Thread | None = None  # the latest
        self._is_thread_running = False

    # -- by any thread -------------------------------------------------------------------------

    def submit(self, calls: CallGroup, item_indices: Sequence[int]) -> None:
        """There are more, these of some that come together; RuntimeError after `shutdown`."""
        with self._lock:
            self.check_open()
            if not item_indices:
                return
            if not self._n_unfinished:
                calls.claim_items([item_indices[0]])  # nothing stands between it and a worker
            self._n_unfinished[calls] = self._n_unfinished.get(calls, 0) + len(item_indices)
            must_wake = not self._queue  # else the run looks up as soon as there is room for more
            self.enqueue_items(calls, item_indices)
            if not self._is_thread_running:
                self._thread = threading.Thread(
                    target=self._run_sessions_in_thread, name="polarmap-executor", daemon=True
                )
                self._thread.start()
                self._is_thread_running = True
        if must_wake:
            self._wake_session()

    def check_open(self) -> None:
        """RuntimeError after `shutdown`."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shutdown(self, cancel_futures: bool = False) -> None:
        """Take no more calls; `cancel_futures`: cancel those that no worker was given."""
        self._is_shut_down = True
        if cancel_futures:
            self.cancel_calls(list(self._n_unfinished))
        self._wake_session()
        self._close_if_drained()

    def wait_for_all_calls(self) -> None:
        """Wait until all calls have ended."""
        self._wake_session()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake_session(self) -> None:
        """Let the run look up, if one is open."""
        session = self._session
        if session is not None:
            session.wake()

    def cancel_calls(self, call_groups: Sequence[CallGroup]) -> None:
        """Cancel those of these that no worker was given."""

        def select_unclaimed(calls: CallGroup, item_indices: Sequence[int]) -> Collection[int]:
            if calls not in call_groups:
                return ()
            return set(item_indices).difference(calls.select_claimed_items(item_indices))

        with self._lock:
            for calls in call_groups:
                calls.cancel()
            self._remove_queued_calls(select_unclaimed)

    def _remove_queued_calls(
        self, select_finished: Callable[[Any, Sequence[int]], Collection[int]]
    ) -> list[tuple[Any, list[int]]]:
        """Those that wait and are over with this."""
        removed, queued, self._queue = list[tuple[Any, list[int]]](), self._queue, deque()
        for calls, item_indices in queued:
            finished = select_finished(calls, item_indices)
            removed.append((calls, list(finished)))
            self._count_finished_calls(calls, len(finished))
            if len(finished) < len(item_indices):
                self._queue.append((calls, [index for index in item_indices if index not in finished]))
        return [(calls, item_indices) for calls, item_indices in removed if item_indices]

    def _count_finished_calls(self, calls: Any, n_finished: int) -> None:
        """So many of these are."""
        with self._lock:
            n_unfinished = self._n_unfinished.pop(calls, 0) - n_finished
            if n_unfinished > 0:
                self._n_unfinished[calls] = n_unfinished

    def _close_if_drained(self) -> None:
        with self._lock:
            if self._is_thread_running or not self._is_shut_down:
                return
            on_close, self._on_close = self._on_close, lambda: None
        on_close()

    # -- on its thread -------------------------------------------------------------------------

    def _run_sessions_in_thread(self) -> None:
        """The life of the thread: runs, until one has ended and no call has come."""
        must_continue = True
        while must_continue:
            self._run_session()
            with self._lock:
                must_continue = self._is_thread_running = bool(self._n_unfinished)
        self._close_if_drained()

    def _run_session(self) -> None:
        """Do calls on a run of the executor, until none has come for a while."""
        try:
            with closing(self._executor.open(JobSpec(execute_pickled_call, self))) as session:
                self._session, self.timer = session, JobTimer(session.now)
                for outcomes in schedule_tasks(session, self, RetryRule(self._max_retries), self):
                    has_events = bool(outcomes)
                    while outcomes:  # nothing of them is kept
                        self.add_outcome(outcomes.pop(0))
                    if self.try_finish() and not has_events:
                        break
        except BaseException as error:
            self._on_session_end(error)
        else:
            self._on_session_end()
        finally:
            self._session = None

    def _on_session_end(self, error: BaseException | None = None) -> None:
        """What is left waits for the next; an error of this one ends the calls that have begun, or all."""
        with self._lock:  # others may come in this moment
            batches = [*self.batches.values(), *self._single_items]
            self._queue.extendleft(reversed([batch for batch in batches if batch[1]]))
            self._single_items.clear()
            for task_index in self.task_table.task_indices():
                self.discard_task(self.task_table, task_index)
            self.task_table.attempts_to_cancel.clear()
            if error is None:
                return
            claimed = self._remove_queued_calls(
                lambda calls, item_indices: calls.select_claimed_items(item_indices)
            )
            failed = claimed or self._remove_queued_calls(lambda calls, item_indices: item_indices)
        for calls, item_indices in failed:
            for item_index in calls.claim_items(item_indices):
                self._set_exception(calls, item_index, error)

    # -- as blocks and policy of a run ----------------------------------------------------------

    def _build_batch_block(self, task_index: int) -> Array:
        with self._lock:
            calls, indices_before = self.batches.get(task_index) or (None, [])
            try:
                return super()._build_batch_block(task_index)
            finally:
                if calls is not None:  # of which nobody waits for some
                    self._count_finished_calls(calls, len(indices_before) - len(self.batches[task_index][1]))

    def choose_tasks_to_start(
        self, task_table: TaskTable, collector: Collector, elapsed_seconds: float
    ) -> Sequence[int]:
        """Calls that have come; late ones, if none waits for a worker that a backup would take."""
        with self._lock:
            return super().choose_tasks_to_start(task_table, collector, elapsed_seconds)

    # -- as its need ---------------------------------------------------------------------------

    def add_outcome(self, outcome: Outcome) -> None:
        """The first attempt that returns or raises is the end of a call."""
        with self._lock:
            batch_outcome, failure = self.split_outcome_by_item(self.task_table, outcome), outcome.failure
        if batch_outcome is None:
            return
        if failure is None or failure.kind == "raised":
            self.discard_task(self.task_table, outcome.task)
        calls: Any
        calls, results, failures = batch_outcome
        final_failures = [
            indexed_failure
            for indexed_failure in failures
            if outcome.failure is None or indexed_failure[1].kind == "raised"
        ]
        self._count_finished_calls(calls, len(results) + len(final_failures))
        for item_index, item_failure in final_failures:
            error = replace_exit_exception(
                calls.describe_item(item_index), item_failure.cause or RuntimeError(str(item_failure))
            )
            self._set_exception(calls, item_index, error, raised_by_f=True)
        for item_index, data in results:
            try:
                value = unpickle_result(data)
            except BaseException as error_:
                self._set_exception(
                    calls,
                    item_index,
                    replace_exit_exception(f"the result of {calls.describe_item(item_index)}", error_),
                )
            else:
                calls.set_result(item_index, value)

    def _set_exception(
        self, calls: CallGroup, item_index: int, error: BaseException, raised_by_f: bool = False
    ) -> None:
        """A call has no result; `raised_by_f`: the error is what f raised."""
        trim_traceback(error, raised_by_f)
        calls.set_exception(item_index, error)

    def try_finish(self) -> bool:
        """Whether no call is under way, once those have failed that were lost too often."""
        for task_index in sorted(self.task_table.failed):
            record = self.task_table[task_index]
            if record.n_counted_attempts > self._max_retries and record.last_failure is not None:
                calls: Any
                calls, [item_index] = self.batches[task_index]
                message = (
                    f"a call was lost {record.n_attempts} times, with its worker: "
                    f"{record.last_failure.message}"
                )
                self.discard_task(self.task_table, task_index)
                self._count_finished_calls(calls, 1)
                self._set_exception(calls, item_index, WorkerLostError(message))
        return not self._n_unfinished

    @property
    def has_sufficient_results(self) -> bool:
        """Whether no call has to be started again, as its worker was lost."""
        return not self.task_table.failed

    def poll_interval(self) -> float:
        """Nothing else is waited for; for other calls not for long while none is under way."""
        if not self._n_unfinished:
            return SESSION_IDLE_SECONDS
        return inf if len(self.task_table) else 0.0

    def on_tasks_exhausted(self) -> None:
        """Each call has had its end when its outcome was noted."""


def get_function_key(f: Callable[..., Any]) -> Hashable:
    """What is the same for calls of one function: the code of what is written in Python.

    >>> get_function_key(min) == get_function_key(max)
    False
    >>> get_function_key("a".join) == get_function_key("b".join)
    True
    """
    unwrapped: Any = getattr(f, "func", f)  # of a partial
    code = getattr(getattr(unwrapped, "__func__", unwrapped), "__code__", None)
    if code is not None:
        return code  # type: ignore[no-any-return]
    owner = unwrapped if hasattr(unwrapped, "__qualname__") else type(unwrapped)
    return getattr(owner, "__module__", None), owner.__qualname__


def _get_function_name(function_key: Hashable) -> str:
    """Return the name of a function of which `get_function_key` told.

    >>> _get_function_name(get_function_key(_get_function_name))
    '_get_function_name'
    >>> _get_function_name(get_function_key(str.upper))
    'str.upper'
    """
    name = (
        function_key[1]
        if isinstance(function_key, tuple)
        else getattr(function_key, "co_qualname", function_key)
    )
    return str(name)


_call_queues: weakref.WeakSet[CallQueue] = weakref.WeakSet()
_is_exiting = False


def _wait_for_calls_at_exit() -> None:
    """At exit: all calls come to their end, as those of other executors do."""
    global _is_exiting
    _is_exiting = True
    for calls in list(_call_queues):
        calls.wait_for_all_calls()


def _reset_call_queues_after_fork() -> None:
    for calls in list(_call_queues):
        calls.after_fork()


register_before_exit(_wait_for_calls_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_call_queues_after_fork)
