"""The loop of a map: starts tasks, waits, tells what ended, starts more. Knows no codes and no results.

Which tasks start at once and which later is a `SchedulingPolicy` of `policies`; what is still needed
is known to whoever makes something of the outcomes, which is a `Collector`; how tasks run to the executor's
`Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf

from polarmap.driver.collector import Collector
from polarmap.driver.policies import RetryRule, SchedulingPolicy
from polarmap.executors.interface import BlockSendingSession, Event, NoWorkers, Outcome, Session

RETRY_IDLE_SECONDS = 1.0  # without news, before failed tasks are started again
# the longest the loop looks away; what is due is known without: this is against mistakes
MAX_POLL_INTERVAL = 5.0


def schedule_tasks(
    session: Session,
    policy: SchedulingPolicy,
    retry_rule: RetryRule,
    collector: Collector,
    poll_interval: float = inf,
    on_started: Callable[[Sequence[int], float], None] = lambda indices, elapsed: None,
) -> Iterator[list[Outcome]]:
    """What ended, as soon as anything did; an empty list when it is time to look at other things.

    Goes on for as long as it is asked: whoever has what it needs stops asking. In between it starts
    what the policy says, then what failed and may be tried again. Raises what `collector` does when the time
    of the watch is over, or what it needs is out of reach.

    poll_interval : seconds after which it is time to look, whatever happens.
    on_started : is told of tasks that were started after the first ones, and in which second.
    """
    task_table, timer = collector.task_table, collector.timer
    last_event_at, polled_at, next_retry_at = 0.0, 0.0, inf
    poll_interval = min(MAX_POLL_INTERVAL, poll_interval)

    def start_tasks(task_indices: Sequence[int]) -> None:
        nonlocal last_event_at
        last_event_at = timer.elapsed_seconds
        session.submit(task_table.start_attempts(task_indices, last_event_at))
        on_started(task_indices, last_event_at)

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
        # of the moment for which it was asked what is due: none between is missed
        if collector.can_use_parity:
            timeout = min(timeout, policy.seconds_until_next_start(task_table, polled_at))
        if next_retry_at < inf:
            timeout = min(timeout, next_retry_at - timer.elapsed_seconds)
        yield record_events(session.wait(max(0.0, timeout)))  # and keeps none of it
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
            task: retry_rule.next_attempt_at(task_table[task])
            for task in sorted(collector.choose_tasks_to_retry(task_table.failed))
            if retry_rule.allows_retry(task_table[task])
        }
        if not retry_times:
            if is_stalled:
                collector.on_tasks_exhausted()
        elif is_stalled or not task_table.held_back:
            # Failed tasks start again as soon as no other may help, or while the others are late.
            earliest_at = 0.0 if is_stalled else last_event_at + RETRY_IDLE_SECONDS
            if retryable_tasks := [
                task for task in retry_times if max(retry_times[task], earliest_at) <= now
            ]:
                start_tasks(retryable_tasks)
                earliest_at = last_event_at + RETRY_IDLE_SECONDS
            next_retry_at = max(min(retry_times.values()), earliest_at)
