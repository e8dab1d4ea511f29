"""Queue the calls that are submitted to a `polarmap.Executor`, and run them from a background thread."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from polarmap.driver.batch_policy import BatchPolicy, can_batch_items
from polarmap.driver.batches import ItemSequence, QueuedBatchBlocks
from polarmap.driver.call_collector import CallCollector, CallCounts, set_call_exception
from polarmap.driver.calls import CallGroup
from polarmap.driver.collector import JobTimer
from polarmap.driver.daemon_pool import register_before_exit
from polarmap.driver.policies import RetryRule
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.executors.interface import JobSpec, Session
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.live import activation
from polarmap.worker.task_functions import execute_pickled_call

if TYPE_CHECKING:
    from polarmap.live.snapshots import ExecutorSnapshot


class CallQueue:
    """A queue of calls and the background thread that runs them on an executor.

    Any thread may submit and cancel calls. The background thread opens a session (a connection to the
    workers) and closes it when no calls are left. The next call starts a new thread and session. The run
    times of earlier calls are remembered.

    Parameters
    ----------
    executor : ResolvedExecutor
        Opens sessions.
    on_close : callable
        Called once without arguments when `shutdown` has been called and no calls are left.
    max_in_flight : int
        The maximum number of calls submitted to the workers at a time.
    max_backups : int
        The number of backups that a late call may get.
    retry_rule : RetryRule
        How often, and after which delay, to retry a call whose worker was lost.
    """

    def __init__(
        self,
        executor: ResolvedExecutor,
        on_close: Callable[[], None],
        max_in_flight: int,
        max_backups: int,
        retry_rule: RetryRule,
    ) -> None:
        self._executor, self._on_close = executor, on_close
        self._max_in_flight, self._max_backups, self._retry_rule = max_in_flight, max_backups, retry_rule
        self._is_shut_down = False
        self.queue_id = next(_queue_ids)
        self._job_name = f"Executor {self.queue_id}"
        self.after_fork()
        _call_queues.add(self)

    def after_fork(self) -> None:
        """Reset the queue in a forked child process, where the background thread does not exist."""
        self._blocks = QueuedBatchBlocks()
        self._policy = BatchPolicy(
            self._blocks,
            can_batch_items(self._executor, self._max_backups, self._retry_rule.max_retries),
            self._max_in_flight,
            self._max_backups,
            self._executor.faults,
        )
        # The lock prevents a call from being started while another thread cancels it. It is reentrant because
        # the garbage collector may shut down an executor at any time, even in a thread that holds the lock.
        self._lock = self._blocks.lock
        self._counts, self._task_table = CallCounts(), TaskTable(0)
        self._session: Session | None = None
        self._thread: threading.Thread | None = None  # the most recent background thread
        self._is_thread_running = False

    # -- by any thread -------------------------------------------------------------------------

    def submit(self, calls: CallGroup, item_indices: Sequence[int]) -> None:
        """Append calls to the queue. Raises RuntimeError after `shutdown`."""
        with self._lock:
            self.check_open()
            if not item_indices:
                return
            must_wake = not self._policy.has_queued_items  # While items are queued, the thread polls anyway.
            if must_wake and not self._policy.has_items:
                # No other call is pending, so this one starts at once and can no longer be cancelled.
                calls.claim_items([item_indices[0]])
            self._policy.enqueue_items(calls, item_indices)
            if not self._is_thread_running:
                self._thread = threading.Thread(
                    target=self._run_sessions_in_thread, name="polarmap-executor", daemon=True
                )
                self._thread.start()
                self._is_thread_running = True
        if must_wake:
            self._wake_session()

    def is_small_batch(self, calls: CallGroup, n_items: int) -> bool:
        """Return whether a batch of `n_items` calls is expected to run for less than MIN_BATCH_SECONDS."""
        return n_items < self._policy.compute_min_batch_size(calls)

    def limit_in_flight(self, max_in_flight: int) -> None:
        """Submit at most this many calls to the workers at a time, not counting backups."""
        self._max_in_flight = min(self._max_in_flight, max_in_flight)
        self._policy.limit_in_flight(self._max_in_flight)

    def check_open(self) -> None:
        """Raise RuntimeError if the executor has been shut down or the interpreter is exiting."""
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def shutdown(self, cancel_futures: bool = False) -> None:
        """Accept no more calls. With `cancel_futures`, cancel all calls that no worker has received yet."""
        self._is_shut_down = True
        if cancel_futures:
            self.cancel_calls(
                [calls for calls in self._policy.collect_sequences() if isinstance(calls, CallGroup)]
            )
        self._wake_session()
        self._close_if_drained()

    def wait_for_all_calls(self) -> None:
        """Block until all calls have finished."""
        self._wake_session()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def cancel_calls(self, call_groups: Collection[CallGroup]) -> None:
        """Cancel all calls of these groups that no worker has received yet."""

        def select_unclaimed(items: ItemSequence, item_indices: Sequence[int]) -> Collection[int]:
            if items not in call_groups:
                return ()
            return set(item_indices).difference(items.select_claimed_items(item_indices))

        with self._lock:
            for calls in call_groups:
                calls.cancel()
            self._policy.remove_queued_items(select_unclaimed)

    def take_snapshot(self) -> ExecutorSnapshot:
        """Return the numbers of calls in each state, for a live view."""
        from polarmap.live.snapshots import ExecutorSnapshot  # lazy import: only viewers need it

        with self._lock:
            n_pending, n_done, table = self._policy.count_items(), self._counts.n_done, self._task_table
        return ExecutorSnapshot(
            name=self._job_name,
            executor=self._executor.name,
            n_calls=n_done + n_pending,
            n_done=n_done,
            n_running=max(0, len(table.in_flight) - len(table.queued)),
            n_failed=self._counts.n_failed,
        )

    def _wake_session(self) -> None:
        session = self._session
        if session is not None:
            session.wake()

    def _close_if_drained(self) -> None:
        with self._lock:
            if self._is_thread_running or not self._is_shut_down:
                return
            on_close, self._on_close = self._on_close, lambda: None
        on_close()

    # -- on its thread -------------------------------------------------------------------------

    def _run_sessions_in_thread(self) -> None:
        """Run sessions one after another until one ends with no calls left."""
        must_continue = True
        while must_continue:
            self._run_session()
            with self._lock:
                must_continue = self._is_thread_running = self._policy.has_items
        self._close_if_drained()

    def _run_session(self) -> None:
        """Open an executor session and run calls on it until none have been submitted for a while."""
        task_table = self._task_table = TaskTable(0)
        job_spec = JobSpec(execute_pickled_call, self._blocks, name=self._job_name)
        try:
            with closing(self._executor.open(job_spec)) as session:
                self._session = session
                timer = JobTimer(session.now)
                collector = CallCollector(self._policy, self._retry_rule, task_table, timer, self._counts)
                try:
                    for outcomes in schedule_tasks(session, self._policy, self._retry_rule, collector):
                        has_events = bool(outcomes)
                        while outcomes:  # Pop outcomes so as not to keep references to results.
                            collector.add_outcome(outcomes.pop(0))
                        # Keep the session open for a while after the last call, unless the queue was closed.
                        if collector.try_finish() and (self._is_shut_down or not has_events):
                            break
                finally:
                    collector.set_outcomes()
        except BaseException as error:
            self._requeue_or_fail_calls(task_table, error)
        else:
            self._requeue_or_fail_calls(task_table)
        finally:
            self._session = None

    def _requeue_or_fail_calls(self, task_table: TaskTable, error: BaseException | None = None) -> None:
        """Queue the unfinished calls again for the next session.

        If the session failed, fail the calls that were sent to workers, or all calls if none were sent.
        """
        with self._lock:  # Other threads may be submitting calls.
            self._policy.requeue_all_items(task_table)
            if error is None:
                return
            failed = self._policy.remove_queued_items(
                lambda calls, indices: calls.select_claimed_items(indices)
            )
            failed = failed or self._policy.remove_queued_items(lambda calls, indices: indices)
        for calls, item_indices in failed:
            assert isinstance(calls, CallGroup)
            for item_index in calls.claim_items(item_indices):
                self._counts.n_done += 1
                set_call_exception(calls, item_index, error, self._counts)


_queue_ids = itertools.count(1)
_call_queues: weakref.WeakSet[CallQueue] = weakref.WeakSet()
_is_exiting = False


def _wait_for_calls_at_exit() -> None:
    """Wait until all calls have finished, as the executors of `concurrent.futures` do at exit."""
    global _is_exiting
    _is_exiting = True
    for calls in list(_call_queues):
        calls.wait_for_all_calls()


def _reset_call_queues_after_fork() -> None:
    for calls in list(_call_queues):
        calls.after_fork()


def list_executor_snapshots() -> list[ExecutorSnapshot]:
    """Return the calls of each `polarmap.Executor` to which calls have been submitted, for a live view."""
    queues = sorted(_call_queues, key=lambda queue: queue.queue_id)
    return [snapshot for queue in queues if (snapshot := queue.take_snapshot()).n_calls]


activation.executor_sources.append(list_executor_snapshots)
register_before_exit(_wait_for_calls_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_call_queues_after_fork)
