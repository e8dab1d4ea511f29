"""Tests that a call ends with its first attempt that returns or raises, on a session with scripted times."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any
from unittest.mock import Mock

import pytest

from polarmap.driver.batch_policy import MAX_ITEM_CLASSES
from polarmap.driver.batches import BatchOutcome
from polarmap.driver.call_collector import SESSION_IDLE_SECONDS, CallCollector, CallCounts
from polarmap.driver.call_queue import CallQueue
from polarmap.driver.calls import MappedCalls, SubmittedCall
from polarmap.driver.collector import JobTimer
from polarmap.driver.lateness import RUN_TIME_HISTORY_SIZE
from polarmap.driver.policies import RetryRule
from polarmap.driver.scheduler import schedule_tasks
from polarmap.driver.task_table import TaskTable
from polarmap.errors import WorkerLostError
from polarmap.executors.interface import (
    Failure,
    JobSpec,
    Outcome,
)
from polarmap.testing import Fault, ReplayExecutor
from polarmap.worker.pickled_values import pickle_to_array
from polarmap.worker.task_functions import execute_pickled_call

PATIENCE = 60.0


class SimulatedCalls:
    """A queue of calls and a replayed session that runs them."""

    def __init__(
        self,
        seconds: Mapping[int, float] | None = None,
        faults: Mapping[int, Fault] | None = None,
        max_in_flight: int = 4,
        backups: int = 2,
        retries: int = 1,
        retry_delay: float = 0.0,
    ) -> None:
        self.max_open_calls = 0  # the largest number of calls that were in flight together
        self.calls = CallQueue(
            Mock(can_batch=False, faults={}), print, max_in_flight, backups, RetryRule(retries, retry_delay)
        )
        self.calls._is_thread_running = True  # The test advances the session itself.
        self.cancelled_attempts: list[tuple[int, int]] = []
        self.open(seconds, faults)

    def open(
        self, seconds: Mapping[int, float] | None = None, faults: Mapping[int, Fault] | None = None
    ) -> None:
        calls = self.calls
        self.blocks, self.policy = calls._blocks, calls._policy
        self.run = ReplayExecutor(seconds).open(JobSpec(execute_pickled_call, self.blocks, faults or {}))
        self.run.cancel = self.cancelled_attempts.extend  # type: ignore[method-assign]
        calls._session, self.tasks = self.run, TaskTable(0)
        self.collector = CallCollector(
            self.policy, calls._retry_rule, self.tasks, JobTimer(self.run.now), calls._counts
        )
        self._steps = schedule_tasks(self.run, self.policy, calls._retry_rule, self.collector)

    def submit_calls(self, count: int) -> list[SubmittedCall]:
        """Queue `count` calls and return them."""
        new_calls = [
            SubmittedCall(Future(), "f", pickle_to_array((abs, (-number,), {}))) for number in range(count)
        ]
        for call in new_calls:
            self.calls.submit(call, [0])
        return new_calls

    def step(self) -> None:
        outcomes = next(self._steps)
        self.max_open_calls = max(self.max_open_calls, len(self.tasks))
        for outcome in outcomes:
            self.collector.add_outcome(outcome)
        self.collector.try_finish()
        self.collector.set_outcomes()

    def admit_calls(self) -> None:
        """Move queued calls to the session, up to its limit, without starting them."""
        self.policy.choose_tasks_to_start(self.tasks, self.collector, 0.0)

    def run_steps(self) -> Iterator[int]:
        """Run until no call is queued or running."""
        for number in range(2000):
            if not self.policy.has_items:
                next(self._steps)  # This step cancels the remaining attempts.
                return
            self.step()
            yield number
        pytest.fail("the calls have not ended after 2000 steps")


def attempts(simulation: SimulatedCalls, task: int) -> int:
    return simulation.tasks[task].n_attempts


def test_calls_end_in_order_and_leave_no_state() -> None:
    simulation = SimulatedCalls()
    submitted = simulation.submit_calls(10)
    list(simulation.run_steps())
    assert simulation.max_open_calls == 4
    assert [call.future.result(0) for call in submitted] == list(range(10))
    assert len(simulation.tasks) == 0
    assert not any(kind._running for kind in simulation.policy._trackers_by_class.values())
    assert simulation.cancelled_attempts == []


def test_calls_are_counted_by_state() -> None:
    faults = {0: Fault("kill", attempts=9), 1: Fault("kill"), 2: Fault("raise"), 3: Fault("garbage")}
    simulation = SimulatedCalls(faults=faults)
    submitted = simulation.submit_calls(10)
    assert simulation.calls.take_snapshot().n_calls == 10
    for _ in simulation.run_steps():
        calls = simulation.calls.take_snapshot()
        is_done = [call.future.done() for call in submitted]
        n_failed = sum(call.future.exception(0) is not None for call in submitted if call.future.done())
        assert (calls.n_calls, calls.n_done, calls.n_failed) == (10, sum(is_done), n_failed)
        assert calls.n_running <= 4
    assert not simulation.calls.take_snapshot().is_running and n_failed >= 2


def test_a_late_call_gets_a_backup_and_its_other_attempt_is_cancelled() -> None:
    simulation = SimulatedCalls(faults={3: Fault("sleep", 1000.0)})
    submitted = simulation.submit_calls(4)
    list(simulation.run_steps())
    assert submitted[3].future.result(0) == 3
    assert 2.0 < simulation.run.now() < 100.0
    assert simulation.cancelled_attempts == [(3, 0)]
    assert len(simulation.tasks) == 0


def test_there_are_no_backups_while_other_calls_wait_for_a_worker() -> None:
    simulation = SimulatedCalls({task: 50.0 if task in (3, 4, 5) else 1.0 for task in range(20)})
    simulation.submit_calls(20)
    max_in_flight = {True: 1, False: 1}
    for _ in simulation.run_steps():
        count = max((task.n_attempts for task in simulation.tasks), default=1)
        has_queued_calls = bool(simulation.policy._queue)
        max_in_flight[has_queued_calls] = max(count, max_in_flight[has_queued_calls])
    assert max_in_flight[True] == 1 < max_in_flight[False]


def test_run_times_of_a_function_are_remembered_across_sessions() -> None:
    simulation = SimulatedCalls()
    simulation.submit_calls(20)
    list(simulation.run_steps())
    simulation.open({20: 50.0})
    simulation.submit_calls(1)
    simulation.step()
    simulation.step()  # In this step the collector learns that the call has started.
    simulation.step()  # The loop waits exactly until the call becomes late.
    assert 1.0 < simulation.run.now() < 1.2
    assert attempts(simulation, 20) == 1
    simulation.step()
    assert attempts(simulation, 20) == 2


def test_no_call_is_late_immediately() -> None:
    simulation = SimulatedCalls(dict.fromkeys(range(20), 1e-6))
    simulation.submit_calls(20)
    list(simulation.run_steps())
    simulation.open({20: 50.0})
    simulation.submit_calls(1)
    simulation.step()
    simulation.step()
    assert simulation.run.now() == pytest.approx(0.1)


def test_only_as_many_run_times_are_kept_as_lateness_needs() -> None:
    simulation = SimulatedCalls()
    simulation.submit_calls(3 * RUN_TIME_HISTORY_SIZE)
    list(simulation.run_steps())
    [kind] = simulation.policy._trackers_by_class.values()
    assert len(kind._run_times) <= RUN_TIME_HISTORY_SIZE


def test_functions_that_were_called_long_ago_are_evicted_unless_they_are_running() -> None:
    simulation = SimulatedCalls(faults={0: Fault("sleep", 1000.0)}, max_in_flight=2)
    kinds = simulation.policy._trackers_by_class
    simulation.calls.submit(SubmittedCall(Future(), "asleep", pickle_to_array((int, (), {}))), [0])
    for number in range(3 * MAX_ITEM_CLASSES):
        simulation.calls.submit(
            SubmittedCall(Future(), number % 2 or number, pickle_to_array((int, (), {}))), [0]
        )
    while len(simulation.policy.collect_sequences()) > 1:
        simulation.step()
    assert {"asleep", 1} < set(kinds.keys())
    assert len(kinds) <= MAX_ITEM_CLASSES + 1
    list(simulation.run_steps())
    assert "asleep" not in kinds
    assert len(simulation.policy._backup_policy._late_trackers) <= MAX_ITEM_CLASSES + 1


def test_a_call_that_raises_ends_regardless_of_its_other_attempt() -> None:
    # The first attempt raises late, while its backup sleeps. Neither attempt is replaced.
    faults = {3: Fault("raise", attempts=1)}
    simulation = SimulatedCalls({3: 50.0, 4: 200.0}, faults, max_in_flight=5, backups=1, retries=3)
    submitted = simulation.submit_calls(5)
    counts = {}
    for _ in simulation.run_steps():
        counts |= {task: attempts(simulation, task) for task in simulation.tasks.task_indices()}
    assert submitted[3].future.exception(0) is not None
    assert [call.future.result(0) for call in (*submitted[:3], submitted[4])] == [0, 1, 2, 4]
    assert counts == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    assert set(simulation.cancelled_attempts) == {(3, 1), (4, 1)}


def test_lost_calls_are_retried_up_to_the_limit() -> None:
    faults = {0: Fault("kill"), 1: Fault("kill", attempts=2), 2: Fault("raise"), 3: Fault("garbage")}
    simulation = SimulatedCalls(faults=faults)
    submitted = simulation.submit_calls(4)
    list(simulation.run_steps())
    errors = [call.future.exception(0) for call in submitted]
    assert errors[0] is None
    assert isinstance(errors[1], WorkerLostError)
    assert "lost 2 times" in str(errors[1])
    assert errors[2] is not None


LOST, RAISED = Failure("lost", "WorkerLost", "gone"), Failure("raised", "KeyError", "x", KeyError("x"))


@pytest.mark.parametrize("first", [LOST, RAISED, None])
@pytest.mark.parametrize("second", [LOST, RAISED, None])
def test_two_attempts_of_a_call_may_end_together(first: Failure | None, second: Failure | None) -> None:
    simulation = SimulatedCalls(backups=1)
    [call] = simulation.submit_calls(1)
    tasks, ends = simulation.tasks, []
    simulation.admit_calls()
    for attempt, failure in enumerate((first, second)):
        tasks.start_attempts([0], 0.0)
        result = ([pickle_to_array(7)], ("array",)) if failure is None else ([], ())
        ends.append(Outcome(0, attempt, *result, failure, 1.0))
    for outcome in ends:
        tasks.record_outcome(outcome, 1.0)
    for outcome in ends:
        simulation.collector.add_outcome(outcome)
    assert simulation.collector.try_finish()
    simulation.collector.set_outcomes()
    failures = [failure for failure in (first, second) if failure is not LOST]
    error = call.future.exception(0)
    if not failures:
        assert isinstance(error, WorkerLostError)
    elif failures[0] is None:
        assert call.future.result(0) == 7
    else:
        assert isinstance(error, KeyError)
    assert len(tasks) == 0


def test_lost_calls_are_retried_after_doubling_delays_while_other_calls_continue() -> None:
    simulation = SimulatedCalls(faults={0: Fault("kill", attempts=2)}, retries=2, retry_delay=10.0)
    submitted = simulation.submit_calls(9)
    for _ in simulation.run_steps():
        if simulation.run.now() > 5.0 and not submitted[0].future.done():
            assert all(call.future.done() for call in submitted[1:])
    assert submitted[0].future.result(0) == 0
    assert simulation.run.now() == pytest.approx(1.0 + 10 + 1 + 20 + 1 + SESSION_IDLE_SECONDS)


def test_a_call_that_is_lost_for_the_last_time_fails_without_a_delay() -> None:
    simulation = SimulatedCalls(faults={0: Fault("kill", attempts=2)}, retry_delay=10.0)
    [call] = simulation.submit_calls(1)
    list(simulation.run_steps())
    assert isinstance(call.future.exception(0), WorkerLostError)
    assert simulation.run.now() == pytest.approx(1.0 + 10 + 1 + SESSION_IDLE_SECONDS)


def test_the_iterator_of_a_map_wakes_up_once_a_whole_batch_is_stored() -> None:
    class RecordedCalls(MappedCalls):
        def set_result(self, item_index: int, value: Any) -> None:
            super().set_result(item_index, value)
            n_stored.append(len(self._outcomes) if item_index == 0 else 0)

    n_stored, calls = list[int](), RecordedCalls("f")
    calls.blocks += [b""] * 3
    results = [(index, pickle.dumps([index])) for index in range(3)]
    policy = Mock(split_outcome=lambda table, outcome: BatchOutcome(calls, results))
    collector = CallCollector(policy, RetryRule(1), TaskTable(0), Mock(), CallCounts())
    collector.add_outcome(Outcome(0, 0, [], ("array",), None, 1.0))
    collector.set_outcomes()
    assert max(n_stored) == 3
    assert list(calls.iterate_results(0.0, iter(()), int)) == [0, 1, 2]


def test_queued_calls_start_before_the_callbacks_of_finished_calls_run() -> None:
    simulation, in_flight = SimulatedCalls(max_in_flight=1), list[list[int]]()
    for call in simulation.submit_calls(3):
        call.future.add_done_callback(lambda _: in_flight.append(list(simulation.tasks.in_flight)))
    while simulation.policy.has_items:
        for outcome in next(simulation._steps):
            simulation.collector.add_outcome(outcome)
        simulation.collector.try_finish()
    next(simulation._steps)
    assert in_flight == [[1], [2], []]


class CancellingSession:
    """A session that returns the result of a call and, when it is woken, a cancelled attempt of that call."""

    now = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._outcomes = [
            Outcome(0, 0, [pickle_to_array(7)], ("array",), None, 1.0),
            Outcome(0, 1, [], (), LOST, 0.0),
        ]
        self._is_woken, self.n_idle_waits, self.can_be_woken = threading.Event(), 0, False

    def submit(self, attempts: Sequence[tuple[int, int]]) -> None:
        if attempts:
            self._is_woken.set()

    def wait(self, timeout: float) -> list[Outcome]:
        self.n_idle_waits += timeout == SESSION_IDLE_SECONDS
        if timeout and self._is_woken.wait(PATIENCE):
            self._is_woken.clear()
            return [self._outcomes.pop(0)]
        return []

    def wake(self) -> None:
        if self.can_be_woken:
            self._is_woken.set()

    def close(self) -> None:
        self._outcomes.clear()


def test_session_ends_at_once_when_the_executor_is_shut_down() -> None:
    session, closed = CancellingSession(), threading.Event()
    executor = Mock(can_batch=False, faults={}, open=lambda job_spec: session)
    queue = CallQueue(executor, closed.set, 4, 2, RetryRule(1))
    call = SubmittedCall(Future(), "f", pickle_to_array((abs, (-7,), {})))
    queue.submit(call, [0])
    assert call.future.result(PATIENCE) == 7
    session.can_be_woken = True  # `submit` may have called `wake` late.
    queue.shutdown()
    queue.wait_for_all_calls()
    assert closed.is_set() and session.n_idle_waits == 1


def test_predicates_do_not_change_calls() -> None:
    simulation = SimulatedCalls()
    simulation.submit_calls(9)
    simulation.admit_calls()

    def describe() -> tuple[object, ...]:
        policy, tasks = simulation.policy, simulation.tasks
        queued, in_tasks = list(policy._queue), dict(simulation.blocks.batches)
        return queued, in_tasks, sorted(tasks.held_back), sorted(tasks.failed), tasks.task_indices()

    before = describe()
    answers = [
        (
            simulation.policy.has_items,
            simulation.policy.has_queued_items,
            simulation.collector.has_sufficient_results,
            simulation.collector.poll_interval(),
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert describe() == before
