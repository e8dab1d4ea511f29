"""Schedule the tasks of a job: start them, and yield their outcomes as they arrive.

    SchedulingPolicy --tasks to start--> schedule_tasks --attempts--> Session (workers)
           ^                               |        ^                     |
           |                               |        +------ events -------+
        TaskTable <-- starts, outcomes ----+
                                           +--outcomes--> the caller, which passes them to the Collector

The policy decides which tasks start first and which start later, such as parity tasks and backups. The
collector decides which results are still needed. The session belongs to the executor and runs the tasks. The
scheduler does not depend on the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from polarmap.driver.collector import Collector
from polarmap.driver.events import AttemptsStarted, EventStream
from polarmap.driver.policies import RetryRule, SchedulingPolicy
from polarmap.driver.task_table import TaskTable
from polarmap.executors.interface import (
    AttemptId,
    BlockSendingSession,
    Event,
    NoWorkers,
    Outcome,
    Session,
)

# While other tasks are running, which may make a retry unnecessary, retry failed tasks only after this many
# seconds in which no task was submitted or finished.
RETRY_IDLE_SECONDS = 1.0
MAX_POLL_INTERVAL = 5.0  # wait at most this many seconds for events, in case a wake-up is missed


def schedule_tasks(
    session: Session,
    policy: SchedulingPolicy,
    retry_rule: RetryRule,
    collector: Collector,
    events: EventStream | None = None,
) -> Iterator[list[Outcome]]:
    """Run the tasks of a job and yield lists of outcomes (results and failures) as they arrive.

    An empty list is yielded when a poll is due. The generator runs until the caller stops iterating. After
    each step, it starts the tasks that the policy chooses and retries failed tasks. The collector may raise
    an exception when the timeout has passed, or when the map can no longer succeed.

    Parameters
    ----------
    session : Session
        An open session to which no tasks have been submitted.
    policy : SchedulingPolicy
        Chooses the tasks to start.
    retry_rule : RetryRule
        Decides whether and when a failed task may be retried.
    collector : Collector
        Decides which results are still needed. Its task table and timer are used.
    events : EventStream, optional
        The stream to which `AttemptsStarted` is emitted. Its `poll_interval` is the maximum time between two
        steps.
    """
    task_table, timer = collector.task_table, collector.timer
    poll_interval = MAX_POLL_INTERVAL if events is None else min(MAX_POLL_INTERVAL, events.poll_interval)
    last_event_at, polled_at, next_retry_at = 0.0, 0.0, inf

    def start_tasks(task_indices: Sequence[int]) -> None:
        nonlocal last_event_at
        last_event_at = timer.elapsed_seconds
        attempts = task_table.start_attempts(task_indices, last_event_at)
        session.submit(attempts)
        if events is not None:
            if not policy.initial_tasks:
                # Under this policy, every task starts on demand. Emit events for retries and backups only.
                attempts = [attempt_id for attempt_id in attempts if attempt_id[1] > 0]
            _emit_attempts_started(events, task_table, attempts, last_event_at)

    def record_events(events: Sequence[Event]) -> list[Outcome]:
        nonlocal last_event_at
        now, outcomes, task_table.no_worker_reason = timer.elapsed_seconds, [], ""
        for event in events:
            if isinstance(event, Outcome):
                last_event_at = now
                outcomes.append(event)
                task_table.record_outcome(event, now)
            elif isinstance(event, NoWorkers):
                task_table.no_worker_reason = event.reason
            else:
                started_at = event.started_at - timer.started_at
                task_table.record_start(event.task, event.attempt, started_at, event.is_confirmed, event.host)
        return outcomes

    if timer.timeout < inf and isinstance(session, BlockSendingSession):
        session.deadline = session.now() + timer.remaining_seconds
    session.submit(task_table.start_attempts(policy.initial_tasks, 0.0))
    while True:
        timeout = min(poll_interval, collector.poll_interval(), timer.remaining_seconds)
        # Measure from the previous poll rather than from now, because a task may have become due since then.
        if collector.can_use_parity:
            timeout = min(timeout, policy.seconds_until_next_start(task_table, polled_at))
        if next_retry_at < inf:
            timeout = min(timeout, next_retry_at - timer.elapsed_seconds)
        collector.on_due_tasks_started()
        yield record_events(session.wait(max(0.0, timeout)))
        polled_at = now = timer.elapsed_seconds
        due_tasks = policy.choose_tasks_to_start(task_table, collector, now)
        if due_tasks:
            start_tasks(due_tasks)
        if task_table.attempts_to_cancel:
            session.cancel(task_table.attempts_to_cancel)
            task_table.attempts_to_cancel = []
        if now >= timer.timeout:
            n_receiving = session.count_receiving_workers() if isinstance(session, BlockSendingSession) else 0
            collector.on_timeout(n_receiving)
        next_retry_at = inf
        if collector.has_sufficient_results:
            continue
        has_nothing_pending = not task_table.in_flight
        if has_nothing_pending and task_table.held_back:
            has_nothing_pending = not collector.can_use_parity
        is_stalled = has_nothing_pending
        if task_table.failed:
            collector.raise_if_f_always_fails()
            is_stalled = has_nothing_pending or not collector.can_pending_tasks_suffice()
        retry_times = {
            task: retry_rule.compute_retry_time(task_table[task])
            for task in sorted(collector.choose_tasks_to_retry(task_table.failed))
            if retry_rule.allows_retry(task_table[task])
        }
        if not retry_times:
            if is_stalled:
                collector.on_tasks_exhausted()
        elif is_stalled or not task_table.held_back:
            # Retry immediately if no pending task can help, otherwise only after a quiet period.
            earliest_at = 0.0 if is_stalled else last_event_at + RETRY_IDLE_SECONDS
            if retryable_tasks := [
                task for task in retry_times if max(retry_times[task], earliest_at) <= now
            ]:
                start_tasks(retryable_tasks)
                earliest_at = last_event_at + RETRY_IDLE_SECONDS
            next_retry_at = max(min(retry_times.values()), earliest_at)


def _emit_attempts_started(
    events: EventStream, task_table: TaskTable, attempts: Sequence[AttemptId], elapsed_seconds: float
) -> None:
    if attempts:
        pending_tasks = task_table.in_flight.keys() - {task for task, _ in attempts}
        events.emit(AttemptsStarted(attempts, pending_tasks, elapsed_seconds))
