"""Calls on a run, by a script of when they end; what tells calls of one function from others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pool_processes import until

from polarmap.driver.batches import MAX_ITEM_CLASSES
from polarmap.driver.call_queue import CallQueue, MappedCalls, SubmittedCall, get_function_key
from polarmap.driver.collector import JobTimer
from polarmap.driver.lateness import RUN_TIME_HISTORY_SIZE
from polarmap.driver.policies import RetryRule
from polarmap.driver.scheduler import schedule_tasks
from polarmap.errors import WorkerLostError
from polarmap.executors import resolve_executor
from polarmap.executors.block_store import BlockStore
from polarmap.executors.interface import (
    Failure,
    JobSpec,
    Outcome,
    TaskBlocks,
    build_block,
    check_location_reachable,
)
from polarmap.executors.replay import ReplaySession
from polarmap.testing import Fault, ReplayExecutor
from polarmap.worker.pickled_values import pickle_to_array
from polarmap.worker.pytree import count_layout_bytes
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
    ) -> None:
        self.max_open_calls = 0  # calls that were under way at a time
        self.calls = CallQueue(Mock(can_batch=False, faults={}), print, max_in_flight, backups, retries)
        self.calls._is_thread_running = True  # by hand
        self.cancelled_attempts: list[tuple[int, int]] = []
        self.open(seconds, faults)

    def open(
        self, seconds: Mapping[int, float] | None = None, faults: Mapping[int, Fault] | None = None
    ) -> None:
        calls = self.calls
        self.run = ReplayExecutor(seconds).open(JobSpec(execute_pickled_call, calls, faults or {}))
        self.run.cancel = self.cancelled_attempts.extend  # type: ignore[method-assign]
        calls._session, calls.timer = self.run, JobTimer(self.run.now)
        self._steps = schedule_tasks(self.run, calls, RetryRule(calls._max_retries), calls)

    def add(self, count: int) -> list[SubmittedCall]:
        """So many calls, which wait from now on."""
        new_calls = [
            SubmittedCall(Future(), "f", pickle_to_array((abs, (-number,), {}))) for number in range(count)
        ]
        for call in new_calls:
            self.calls.submit(call, [0])
        return new_calls

    def step(self) -> None:
        outcomes = next(self._steps)
        self.max_open_calls = max(self.max_open_calls, len(self.calls.task_table))
        for outcome in outcomes:
            self.calls.add_outcome(outcome)
        self.calls.try_finish()

    def take(self) -> None:
        """Let the run have as many as it may, and start none."""
        self.calls.choose_tasks_to_start(self.calls.task_table, self.calls, 0.0)

    def serve(self) -> Iterator[int]:
        """Until no call waits or is under way."""
        for number in range(2000):
            if not self.calls._n_unfinished:
                next(self._steps)  # it cancels what is left of them
                return
            self.step()
            yield number
        pytest.fail("it has no end")


def attempts(served: Served, task: int) -> int:
    return served.calls.task_table[task].n_attempts


def test_calls_end_as_the_run_says_in_their_order_and_nothing_of_them_is_kept() -> None:
    served = Served()
    submitted = served.add(10)
    list(served.serve())
    assert served.max_open_calls == 4
    assert [call.future.result(0) for call in submitted] == list(range(10))
    assert len(served.calls.task_table) == 0
    assert not any(kind._running for kind in served.calls._trackers_by_class.values())
    assert served.cancelled_attempts == []


def test_a_late_call_is_started_once_more_and_what_is_left_of_it_is_cancelled() -> None:
    served = Served(faults={3: Fault("sleep", 1000.0)})
    submitted = served.add(4)
    list(served.serve())
    assert submitted[3].future.result(0) == 3
    assert 2.0 < served.run.now() < 100.0
    assert served.cancelled_attempts == [(3, 0)]
    assert len(served.calls.task_table) == 0


def test_there_are_no_backups_while_other_calls_wait_for_a_worker() -> None:
    served = Served({task: 50.0 if task in (3, 4, 5) else 1.0 for task in range(20)})
    served.add(20)
    max_in_flight = {True: 1, False: 1}
    for _ in served.serve():
        count = max((task.n_attempts for task in served.calls.task_table), default=1)
        has_queued_calls = bool(served.calls._queue)
        max_in_flight[has_queued_calls] = max(count, max_in_flight[has_queued_calls])
    assert max_in_flight[True] == 1 < max_in_flight[False]


def test_what_calls_of_a_function_took_is_remembered_from_run_to_run() -> None:
    served = Served()
    served.add(20)
    list(served.serve())
    served.open({20: 50.0})
    served.add(1)
    served.step()
    served.step()  # a moment, in which it is told that the call has begun
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
    [kind] = served.calls._trackers_by_class.values()
    assert len(kind._run_times) <= RUN_TIME_HISTORY_SIZE


def test_functions_that_were_called_long_ago_are_forgotten_and_those_under_way_are_not() -> None:
    served = Served(faults={0: Fault("sleep", 1000.0)}, max_in_flight=2)
    kinds = served.calls._trackers_by_class
    served.calls.submit(SubmittedCall(Future(), "asleep", pickle_to_array((int, (), {}))), [0])
    for number in range(3 * MAX_ITEM_CLASSES):
        served.calls.submit(
            SubmittedCall(Future(), number % 2 or number, pickle_to_array((int, (), {}))), [0]
        )
    while len(served.calls._n_unfinished) > 1:
        served.step()
    assert {"asleep", 1} < set(kinds.keys())
    assert len(kinds) <= MAX_ITEM_CLASSES + 1
    list(served.serve())
    assert "asleep" not in kinds
    assert len(served.calls._backup_policy._late_trackers) <= MAX_ITEM_CLASSES + 1


def test_a_call_that_raises_is_over_whatever_its_other_attempt_does() -> None:
    """The first attempt raises late, while its backup sleeps; nothing is started in the place of either."""
    faults = {3: Fault("raise", attempts=1)}
    served = Served({3: 50.0, 4: 200.0}, faults, max_in_flight=5, backups=1, retries=3)
    submitted = served.add(5)
    counts = {}
    for _ in served.serve():
        counts |= {task: attempts(served, task) for task in served.calls.task_table.task_indices()}
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


PATIENCE = 30.0

LOST, RAISED = Failure("lost", "WorkerLost", "gone"), Failure("raised", "KeyError", "x", KeyError("x"))


@pytest.mark.parametrize("first", [LOST, RAISED, None])
@pytest.mark.parametrize("second", [LOST, RAISED, None])
def test_two_attempts_of_a_call_may_end_at_once(first: Failure | None, second: Failure | None) -> None:
    served = Served(backups=1)
    [call] = served.add(1)
    calls = served.calls
    tasks, ends = calls.task_table, []
    served.take()
    for attempt, failure in enumerate((first, second)):
        tasks.start_attempts([0], 0.0)
        result = ([pickle_to_array(7)], ("array",)) if failure is None else ([], ())
        ends.append(Outcome(0, attempt, *result, failure, 1.0))
    for outcome in ends:
        tasks.record_outcome(outcome, 1.0)
    for outcome in ends:
        calls.add_outcome(outcome)
    assert calls.try_finish()
    failures = [failure for failure in (first, second) if failure is not LOST]
    error = call.future.exception(0)
    if not failures:
        assert isinstance(error, WorkerLostError)
    elif failures[0] is None:
        assert call.future.result(0) == 7
    else:
        assert isinstance(error, KeyError)
    assert len(tasks) == 0


class Breaks(ReplayExecutor):
    """Its first run breaks when two calls have begun."""

    calls: CallQueue | None

    def open(self, job_spec: JobSpec) -> ReplaySession:
        run, calls = super().open(job_spec), self.calls

        def submit(attempts: Sequence[tuple[int, int]]) -> None:
            if attempts and calls is not None:
                for task, _ in attempts[:2]:
                    build_block(calls, task)
                raise OSError("gone")

        if calls is not None:
            run.submit, self.calls = submit, None  # type: ignore[method-assign]
        return run


def test_calls_that_have_begun_fail_with_their_run_and_others_go_on_in_the_next() -> None:
    served = Served()
    submitted, executor = served.add(9), Breaks()
    executor.calls = served.calls
    served.calls._executor = executor
    served.calls._run_session()
    assert [str(call.future.exception(0)) for call in submitted[:2]] == ["gone"] * 2
    assert served.calls._n_unfinished
    served.calls._run_session()
    assert [call.future.result(0) for call in submitted[2:]] == list(range(2, 9))


def test_all_fail_where_none_is_opened() -> None:
    served = Served()
    submitted = served.add(3)
    assert submitted[2].future.cancel()
    served.calls._executor = Mock(open=Mock(side_effect=OSError("gone")))
    served.calls._run_session()
    assert submitted[0].future.done()  # nothing else was there when it came
    served.calls._run_session()
    assert not served.calls._n_unfinished
    assert [str(call.future.exception(0)) for call in submitted[:2]] == ["gone"] * 2
    assert len(wait([submitted[2].future], 0.0).done) == 1


def test_calls_can_be_cancelled_until_a_worker_is_given_them() -> None:
    served = Served()
    submitted = served.add(9)
    served.take()
    assert [call.future.running() for call in submitted] == [True] + [False] * 8  # nothing else was there
    assert build_block(served.calls, 2) is not None
    assert submitted[3].future.cancel()
    with pytest.raises(CancelledError):
        build_block(served.calls, 3)
    served.calls.shutdown(cancel_futures=True)
    assert len(wait([call.future for call in submitted], 0.0).done) == 7  # who waits for them is told
    assert [call.future.cancelled() for call in submitted] == [False, True, False] + [True] * 6
    list(served.serve())
    assert [submitted[task].future.result(0) for task in (0, 2)] == [0, 2]


def test_the_bytes_of_a_call_travel_with_its_ticket_while_anybody_waits_for_it() -> None:
    served = Served()
    for size in (1, 2, 3):
        served.calls.submit(SubmittedCall(Future(), "f", np.full(size, size - 1, np.uint8)), [0])
    served.take()
    blocks: TaskBlocks = served.calls
    assert blocks.n == 3
    assert blocks.location is not None
    check_location_reachable(blocks.location)
    stored = BlockStore("").acquire_blocks(JobSpec(len, blocks))
    for task in range(3):
        assert build_block(blocks, task).tolist() == [task] * (task + 1)
        assert count_layout_bytes(blocks.block_layout(task)) == task + 1
        block = stored.publish_block(blocks, task)
        assert np.frombuffer(block.data, np.uint8).tolist() == [task] * (task + 1)
        assert block.location == blocks.location
    served.calls.discard_task(served.calls.task_table, 1)
    with pytest.raises(CancelledError):
        stored.publish_block(blocks, 1)


def test_calls_of_a_map_that_are_cancelled_while_they_wait_for_a_worker_are_over() -> None:
    served, mapped = Served(), MappedCalls("f")
    mapped.blocks += [pickle_to_array((abs, (-number,), {})) for number in range(6)]
    served.calls.submit(mapped, range(6))
    served.take()
    for _ in range(2):  # of a run that looks twice
        assert build_block(served.calls, 1) is not None
    served.calls.cancel_calls([mapped])
    for _ in range(2):
        with pytest.raises(CancelledError):
            build_block(served.calls, 2)
    list(served.serve())
    assert (mapped._outcomes, mapped.select_claimed_items(range(6))) == ({0: (True, 0), 1: (True, 1)}, [0, 1])


def test_a_call_is_told_once() -> None:
    call = SubmittedCall(Future(), "f", np.zeros(3, np.uint8))
    call.set_exception(0, ValueError("first"))
    call.set_exception(0, ValueError("second"))
    assert str(call.future.exception()) == "first"


class Thing:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


def test_a_function_is_the_same_whoever_calls_it() -> None:
    functions: list[Any] = [
        lambda: 1,
        lambda: 2,
        Thing().method,
        Thing(),
        min,
        np.sum,
        "".join,
        test_a_call_is_told_once,
    ]
    assert len({get_function_key(function) for function in functions}) == len(functions)
    assert get_function_key(Thing().method) == get_function_key(Thing.method)
    assert get_function_key(Thing()) == get_function_key(Thing())
    assert get_function_key(partial(min, 1)) == get_function_key(min)
    # each is gone before the next
    keys = {get_function_key(eval(f"lambda: {number}")) for number in range(20)}
    assert len(keys) == 20


def test_a_call_may_come_while_a_run_ends() -> None:
    class Interrupted(deque[Any]):
        """Another thread comes while what waits is looked through."""

        def __iter__(self) -> Iterator[Any]:
            if not threads:
                threads.append(threading.Thread(target=calls.submit, args=(late, [0]), daemon=True))
                threads[0].start()
                threads[0].join(0.1)  # it may have to wait
            return super().__iter__()

    first, late = (SubmittedCall(Future(), "f", pickle_to_array((abs, (-1,), {}))) for _ in range(2))
    refusing = Mock(open=Mock(side_effect=KeyError("no run")), can_batch=False, faults={})
    threads, calls = list[threading.Thread](), CallQueue(refusing, print, 4, 2, 1)
    calls._is_thread_running = True
    calls.submit(first, [0])
    calls._queue = Interrupted(calls._queue)
    calls._run_session()
    threads[0].join(60.0)
    assert not threads[0].is_alive()
    assert isinstance(first.future.exception(0), KeyError)
    assert (list(calls._queue), calls._n_unfinished) == ([(late, [0])], {late: 1})


# --- the thread that drives them -----------------------------------------------------------------


class Counting:
    """An executor that counts the runs that are open; it may have none to give."""

    name, worker_spec = "counting", None

    def __init__(self, error: Exception | None = None) -> None:
        self.opened = self.open_now = 0
        self.error = error
        self.may_open = threading.Event()
        self.may_open.set()

    def open(self, job_spec: JobSpec) -> Any:
        self.may_open.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        run = ReplayExecutor().open(job_spec)
        self.opened += 1
        self.open_now += 1
        close = run.close

        def closing() -> None:
            self.open_now -= 1
            close()

        run.close = closing  # type: ignore[method-assign]
        return run


def calls_on(executor: Counting, close: Callable[[], None] = lambda: None) -> CallQueue:
    return CallQueue(resolve_executor(executor), close, 4, 0, 0)


def call() -> SubmittedCall:
    return SubmittedCall(Future(), "f", pickle_to_array((int, (), {})))


def submit(calls: CallQueue, count: int) -> list[Future[Any]]:
    submitted = [call() for _ in range(count)]
    for submitted_call in submitted:
        calls.submit(submitted_call, [0])
    return [submitted_call.future for submitted_call in submitted]


@pytest.fixture
def closed() -> list[bool]:
    return []


def test_a_run_is_open_while_there_are_calls_and_no_longer(closed: list[bool]) -> None:
    executor = Counting()
    calls = calls_on(executor, lambda: closed.append(True))
    for turn in (1, 2):
        executor.may_open.clear()
        futures = submit(calls, 10)
        executor.may_open.set()
        assert [future.result(PATIENCE) for future in futures] == [0] * 10
        assert executor.opened == turn
        assert until(lambda: executor.open_now == 0)
    assert not closed
    calls.shutdown()
    calls.wait_for_all_calls()
    assert closed == [True]
    calls.shutdown()
    assert closed == [True]


def test_a_thread_without_calls_ends_and_another_one_takes_the_next() -> None:
    calls = calls_on(Counting())
    for _ in range(3):
        [future] = submit(calls, 1)
        assert future.result(PATIENCE) == 0
        thread = calls._thread
        assert thread is not None
        assert until(lambda thread=thread: not thread.is_alive())


def test_calls_fail_where_no_run_can_be_opened(closed: list[bool]) -> None:
    calls = calls_on(Counting(OSError("gone")), lambda: closed.append(True))
    assert [str(future.exception(PATIENCE)) for future in submit(calls, 10)] == ["gone"] * 10
    calls.shutdown()
    calls.wait_for_all_calls()
    assert closed == [True]


def test_calls_that_no_run_was_given_are_cancelled_and_those_under_way_end_first(closed: list[bool]) -> None:
    executor = Counting()
    executor.may_open.clear()
    calls = calls_on(executor, lambda: closed.append(True))
    futures = submit(calls, 20)
    calls.shutdown(cancel_futures=True)
    assert [future for future in futures if future.running()] == futures[:1]
    assert len(wait(futures, 0.0).done) == 19
    assert all(future.cancelled() for future in futures[1:])
    with pytest.raises(RuntimeError, match="after shutdown"):
        calls.submit(call(), [0])
    assert not closed
    executor.may_open.set()
    assert futures[0].result(PATIENCE) == 0
    calls.wait_for_all_calls()
    assert closed == [True]
