"""A call ends with the first attempt that returns or raises, on a session with a script of run times."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any
from unittest.mock import Mock

import pytest

from polarmap.driver.batch_policy import MAX_ITEM_CLASSES
from polarmap.driver.batches import BatchOutcome
from polarmap.driver.call_collector import SESSION_IDLE_SECONDS, CallCollector
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


class Served:
    """Calls, and a run that does them."""

    def __init__(
        self,
        seconds: Mapping[int, float] | None = None,
        faults: Mapping[int, Fault] | None = None,
        max_in_flight: int = 4,
        backups: int = 2,
        retries: int = 1,
        retry_delay: float = 0.0,
    ) -> None:
        self.max_open_calls = 0  # calls that were under way at a time
        self.calls = CallQueue(
            Mock(can_batch=False, faults={}), print, max_in_flight, backups, RetryRule(retries, retry_delay)
        )
        self.calls._is_thread_running = True  # by hand
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
        self.collector = CallCollector(self.policy, calls._retry_rule, self.tasks, JobTimer(self.run.now))
        self._steps = schedule_tasks(self.run, self.policy, calls._retry_rule, self.collector)

    def add(self, count: int) -> list[SubmittedCall]:
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

    def take(self) -> None:
        """Let the run have as many as it may, and start none."""
        self.policy.choose_tasks_to_start(self.tasks, self.collector, 0.0)

    def serve(self) -> Iterator[int]:
        """Run until no call is queued or running."""
        for number in range(2000):
            if not self.policy.has_items:
                next(self._steps)  # This step cancels the remaining attempts.
                return
            self.step()
            yield number
        pytest.fail("it has no end")


def attempts(served: Served, task: int) -> int:
    return served.tasks[task].n_attempts


def test_calls_end_as_the_run_says_in_their_order_and_nothing_of_them_is_kept() -> None:
    served = Served()
    submitted = served.add(10)
    list(served.serve())
    assert served.max_open_calls == 4
    assert [call.future.result(0) for call in submitted] == list(range(10))
    assert len(served.tasks) == 0
    assert not any(kind._running for kind in served.policy._trackers_by_class.values())
    assert served.cancelled_attempts == []


def test_a_late_call_is_started_once_more_and_what_is_left_of_it_is_cancelled() -> None:
    served = Served(faults={3: Fault("sleep", 1000.0)})
    submitted = served.add(4)
    list(served.serve())
    assert submitted[3].future.result(0) == 3
    assert 2.0 < served.run.now() < 100.0
    assert served.cancelled_attempts == [(3, 0)]
    assert len(served.tasks) == 0


def test_there_are_no_backups_while_other_calls_wait_for_a_worker() -> None:
    served = Served({task: 50.0 if task in (3, 4, 5) else 1.0 for task in range(20)})
    served.add(20)
    max_in_flight = {True: 1, False: 1}
    for _ in served.serve():
        count = max((task.n_attempts for task in served.tasks), default=1)
        has_queued_calls = bool(served.policy._queue)
        max_in_flight[has_queued_calls] = max(count, max_in_flight[has_queued_calls])
    assert max_in_flight[True] == 1 < max_in_flight[False]


def test_what_calls_of_a_function_took_is_remembered_from_run_to_run() -> None:
    served = Served()
    served.add(20)
    list(served.serve())
    served.open({20: 50.0})
    served.add(1)
    served.step()
    served.step()  # In this step the collector learns that the call has started.
    served.step()  # it waits for the moment in which that is late, and no longer
    assert 1.0 < served.run.now() < 1.2
    assert attempts(served, 20) == 1
    served.step()
    assert attempts(served, 20) == 2


def test_no_call_is_late_at_once() -> None:
    served = Served(dict.fromkeys(range(20), 1e-6))
    served.add(20)
    list(served.serve())
    served.open({20: 50.0})
    served.add(1)
    served.step()
    served.step()
    assert served.run.now() == pytest.approx(0.1)


def test_no_more_is_remembered_than_tells_what_is_late() -> None:
    served = Served()
    served.add(3 * RUN_TIME_HISTORY_SIZE)
    list(served.serve())
    [kind] = served.policy._trackers_by_class.values()
    assert len(kind._run_times) <= RUN_TIME_HISTORY_SIZE


def test_functions_that_were_called_long_ago_are_forgotten_and_those_under_way_are_not() -> None:
    served = Served(faults={0: Fault("sleep", 1000.0)}, max_in_flight=2)
    kinds = served.policy._trackers_by_class
    served.calls.submit(SubmittedCall(Future(), "asleep", pickle_to_array((int, (), {}))), [0])
    for number in range(3 * MAX_ITEM_CLASSES):
        served.calls.submit(
            SubmittedCall(Future(), number % 2 or number, pickle_to_array((int, (), {}))), [0]
        )
    while len(served.policy.collect_sequences()) > 1:
        served.step()
    assert {"asleep", 1} < set(kinds.keys())
    assert len(kinds) <= MAX_ITEM_CLASSES + 1
    list(served.serve())
    assert "asleep" not in kinds
    assert len(served.policy._backup_policy._late_trackers) <= MAX_ITEM_CLASSES + 1


def test_a_call_that_raises_is_over_whatever_its_other_attempt_does() -> None:
    """The first attempt raises late, while its backup sleeps; neither attempt is replaced."""
    faults = {3: Fault("raise", attempts=1)}
    served = Served({3: 50.0, 4: 200.0}, faults, max_in_flight=5, backups=1, retries=3)
    submitted = served.add(5)
    counts = {}
    for _ in served.serve():
        counts |= {task: attempts(served, task) for task in served.tasks.task_indices()}
    assert submitted[3].future.exception(0) is not None
    assert [call.future.result(0) for call in (*submitted[:3], submitted[4])] == [0, 1, 2, 4]
    assert counts == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    assert set(served.cancelled_attempts) == {(3, 1), (4, 1)}


def test_lost_calls_are_started_again_so_often_and_no_more() -> None:
    faults = {0: Fault("kill"), 1: Fault("kill", attempts=2), 2: Fault("raise"), 3: Fault("garbage")}
    served = Served(faults=faults)
    submitted = served.add(4)
    list(served.serve())
    errors = [call.future.exception(0) for call in submitted]
    assert errors[0] is None
    assert isinstance(errors[1], WorkerLostError)
    assert "lost 2 times" in str(errors[1])
    assert errors[2] is not None


LOST, RAISED = Failure("lost", "WorkerLost", "gone"), Failure("raised", "KeyError", "x", KeyError("x"))


@pytest.mark.parametrize("first", [LOST, RAISED, None])
@pytest.mark.parametrize("second", [LOST, RAISED, None])
def test_two_attempts_of_a_call_may_end_at_once(first: Failure | None, second: Failure | None) -> None:
    served = Served(backups=1)
    [call] = served.add(1)
    tasks, ends = served.tasks, []
    served.take()
    for attempt, failure in enumerate((first, second)):
        tasks.start_attempts([0], 0.0)
        result = ([pickle_to_array(7)], ("array",)) if failure is None else ([], ())
        ends.append(Outcome(0, attempt, *result, failure, 1.0))
    for outcome in ends:
        tasks.record_outcome(outcome, 1.0)
    for outcome in ends:
        served.collector.add_outcome(outcome)
    assert served.collector.try_finish()
    failures = [failure for failure in (first, second) if failure is not LOST]
    error = call.future.exception(0)
    if not failures:
        assert isinstance(error, WorkerLostError)
    elif failures[0] is None:
        assert call.future.result(0) == 7
    else:
        assert isinstance(error, KeyError)
    assert len(tasks) == 0


def test_lost_calls_wait_for_a_delay_that_doubles_while_others_go_on() -> None:
    served = Served(faults={0: Fault("kill", attempts=2)}, retries=2, retry_delay=10.0)
    submitted = served.add(9)
    for _ in served.serve():
        if served.run.now() > 5.0 and not submitted[0].future.done():
            assert all(call.future.done() for call in submitted[1:])
    assert submitted[0].future.result(0) == 0
    assert served.run.now() == pytest.approx(1.0 + 10 + 1 + 20 + 1 + SESSION_IDLE_SECONDS)


def test_a_call_that_is_lost_for_the_last_time_fails_without_a_delay() -> None:
    served = Served(faults={0: Fault("kill", attempts=2)}, retry_delay=10.0)
    [call] = served.add(1)
    list(served.serve())
    assert isinstance(call.future.exception(0), WorkerLostError)
    assert served.run.now() == pytest.approx(1.0 + 10 + 1 + SESSION_IDLE_SECONDS)


def test_the_iterator_of_a_map_wakes_up_once_a_whole_batch_is_stored() -> None:
    class NotedCalls(MappedCalls):
        def set_result(self, item_index: int, value: Any) -> None:
            super().set_result(item_index, value)
            n_stored.append(len(self._outcomes) if item_index == 0 else 0)

    n_stored, calls = list[int](), NotedCalls("f")
    calls.blocks += [b""] * 3
    results = [(index, pickle.dumps([index])) for index in range(3)]
    policy = Mock(split_outcome=lambda table, outcome: BatchOutcome(calls, results))
    CallCollector(policy, RetryRule(1), TaskTable(0), Mock()).add_outcome(
        Outcome(0, 0, [], ("array",), None, 1.0)
    )
    assert max(n_stored) == 3
    assert list(calls.iterate_results(0.0, iter(()), int)) == [0, 1, 2]


def test_questions_change_no_call() -> None:
    served = Served()
    served.add(9)
    served.take()

    def describe() -> tuple[object, ...]:
        policy, tasks = served.policy, served.tasks
        queued, in_tasks = list(policy._queue), dict(served.blocks.batches)
        return queued, in_tasks, sorted(tasks.held_back), sorted(tasks.failed), tasks.task_indices()

    before = describe()
    answers = [
        (
            served.policy.has_items,
            served.policy.has_queued_items,
            served.collector.has_sufficient_results,
            served.collector.poll_interval(),
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert describe() == before
