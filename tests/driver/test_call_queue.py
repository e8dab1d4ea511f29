"""Tests of the thread that runs calls on sessions, and of calls that are cancelled or fail."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from driver.test_call_collector import SimulatedCalls
from pool_processes import until

from polarmap.driver.batches import QueuedBatchBlocks
from polarmap.driver.call_queue import CallQueue
from polarmap.driver.calls import MappedCalls, SubmittedCall
from polarmap.driver.policies import RetryRule
from polarmap.executors import resolve_executor
from polarmap.executors.block_store import DriverBlockStore
from polarmap.executors.interface import (
    JobSpec,
    TaskBlocks,
    build_block,
)
from polarmap.executors.replay import ReplaySession
from polarmap.testing import ReplayExecutor
from polarmap.worker.pickled_values import pickle_to_array
from polarmap.worker.pytree import count_layout_bytes

PATIENCE = 30.0


class BreakingExecutor(ReplayExecutor):
    """An executor whose first session breaks after two calls have started."""

    blocks: QueuedBatchBlocks | None

    def open(self, job_spec: JobSpec) -> ReplaySession:
        run, blocks = super().open(job_spec), self.blocks

        def submit(attempts: Sequence[tuple[int, int]]) -> None:
            if attempts and blocks is not None:
                for task, _ in attempts[:2]:
                    build_block(blocks, task)
                raise OSError("gone")

        if blocks is not None:
            run.submit, self.blocks = submit, None  # type: ignore[method-assign]
        return run


def test_started_calls_fail_with_their_session_and_queued_calls_continue_in_the_next() -> None:
    simulation = SimulatedCalls()
    submitted, executor = simulation.submit_calls(9), BreakingExecutor()
    executor.blocks = simulation.blocks
    simulation.calls._executor = executor
    simulation.calls._run_session()
    assert [str(call.future.exception(0)) for call in submitted[:2]] == ["gone"] * 2
    assert simulation.policy.has_items
    simulation.calls._run_session()
    assert [call.future.result(0) for call in submitted[2:]] == list(range(2, 9))


def test_the_number_of_calls_at_a_time_may_be_limited_and_stays_so_in_a_forked_process() -> None:
    simulation = SimulatedCalls(max_in_flight=4)
    simulation.calls.limit_in_flight(2)
    submitted = simulation.submit_calls(9)
    list(simulation.run_steps())
    assert simulation.max_open_calls == 2
    assert [call.future.result(0) for call in submitted] == list(range(9))
    simulation.calls.limit_in_flight(3)  # It never grows.
    simulation.calls.after_fork()
    assert simulation.calls._policy._max_in_flight == 2


def test_all_calls_fail_if_no_session_can_be_opened() -> None:
    simulation = SimulatedCalls()
    submitted = simulation.submit_calls(3)
    assert submitted[2].future.cancel()
    simulation.calls._executor = Mock(open=Mock(side_effect=OSError("gone")))
    simulation.calls._run_session()
    assert submitted[0].future.done()  # The queue was empty when this call arrived.
    simulation.calls._run_session()
    assert not simulation.policy.has_items
    assert [str(call.future.exception(0)) for call in submitted[:2]] == ["gone"] * 2
    assert len(wait([submitted[2].future], 0.0).done) == 1


def test_calls_can_be_cancelled_until_they_are_sent_to_a_worker() -> None:
    simulation = SimulatedCalls()
    submitted = simulation.submit_calls(9)
    simulation.admit_calls()
    assert [call.future.running() for call in submitted] == [True] + [False] * 8  # The queue was empty.
    assert build_block(simulation.blocks, 2) is not None
    assert submitted[3].future.cancel()
    with pytest.raises(CancelledError):
        build_block(simulation.blocks, 3)
    simulation.calls.shutdown(cancel_futures=True)
    assert len(wait([call.future for call in submitted], 0.0).done) == 7  # Waiting callers are notified.
    assert [call.future.cancelled() for call in submitted] == [False, True, False] + [True] * 6
    list(simulation.run_steps())
    assert [submitted[task].future.result(0) for task in (0, 2)] == [0, 2]


def test_the_bytes_of_a_call_are_sent_with_its_ticket_unless_it_is_cancelled() -> None:
    simulation = SimulatedCalls()
    for size in (1, 2, 3):
        simulation.calls.submit(SubmittedCall(Future(), "f", np.full(size, size - 1, np.uint8)), [0])
    simulation.admit_calls()
    blocks: TaskBlocks = simulation.blocks
    assert blocks.n == 3
    assert blocks.location is not None
    assert blocks.location.is_inline
    stored = DriverBlockStore("").acquire_blocks(JobSpec(len, blocks))
    for task in range(3):
        assert build_block(blocks, task).tolist() == [task] * (task + 1)
        assert count_layout_bytes(blocks.block_layout(task)) == task + 1
        block = stored.publish_block(blocks, task)
        assert np.frombuffer(block.data, np.uint8).tolist() == [task] * (task + 1)
        assert block.location == blocks.location
    simulation.policy.discard_task(simulation.tasks, 1)
    with pytest.raises(CancelledError):
        stored.publish_block(blocks, 1)


def test_queued_calls_of_a_map_end_when_they_are_cancelled() -> None:
    simulation, mapped = SimulatedCalls(), MappedCalls("f")
    mapped.blocks += [pickle_to_array((abs, (-number,), {})) for number in range(6)]
    simulation.calls.submit(mapped, range(6))
    simulation.admit_calls()
    for _ in range(2):  # The session can request a block twice.
        assert build_block(simulation.blocks, 1) is not None
    simulation.calls.cancel_calls([mapped])
    for _ in range(2):
        with pytest.raises(CancelledError):
            build_block(simulation.blocks, 2)
    list(simulation.run_steps())
    assert (mapped._outcomes, mapped.select_claimed_items(range(6))) == ({0: (True, 0), 1: (True, 1)}, [0, 1])


def test_a_call_may_be_submitted_while_a_session_ends() -> None:
    class InterruptedQueue(deque[Any]):
        """A queue that lets another thread submit a call while it is iterated over."""

        def __iter__(self) -> Iterator[Any]:
            if not threads:
                threads.append(threading.Thread(target=calls.submit, args=(late, [0]), daemon=True))
                threads[0].start()
                threads[0].join(0.1)  # The thread may be blocked by a lock.
            return super().__iter__()

    first, late = (SubmittedCall(Future(), "f", pickle_to_array((abs, (-1,), {}))) for _ in range(2))
    refusing = Mock(open=Mock(side_effect=KeyError("no run")), can_batch=False, faults={})
    threads, calls = list[threading.Thread](), CallQueue(refusing, print, 4, 2, RetryRule(1))
    calls._is_thread_running = True
    calls.submit(first, [0])
    calls._policy._queue = InterruptedQueue(calls._policy._queue)
    calls._run_session()
    threads[0].join(60.0)
    assert not threads[0].is_alive()
    assert isinstance(first.future.exception(0), KeyError)
    assert (list(calls._policy._queue), calls._policy.collect_sequences()) == ([(late, [0])], [late])


# --- the thread that runs the calls --------------------------------------------------------------


class CountingExecutor:
    """An executor that counts its open sessions, or raises `error` instead of opening one."""

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


def make_call_queue(executor: CountingExecutor, close: Callable[[], None] = lambda: None) -> CallQueue:
    return CallQueue(resolve_executor(executor), close, 4, 0, RetryRule(0))


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


def test_a_session_is_open_only_while_there_are_calls(closed: list[bool]) -> None:
    executor = CountingExecutor()
    calls = make_call_queue(executor, lambda: closed.append(True))
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


def test_a_thread_without_calls_ends_and_the_next_call_starts_another() -> None:
    calls = make_call_queue(CountingExecutor())
    for _ in range(3):
        [future] = submit(calls, 1)
        assert future.result(PATIENCE) == 0
        thread = calls._thread
        assert thread is not None
        assert until(lambda thread=thread: not thread.is_alive())


def test_submitted_calls_fail_if_opening_a_session_raises(closed: list[bool]) -> None:
    calls = make_call_queue(CountingExecutor(OSError("gone")), lambda: closed.append(True))
    assert [str(future.exception(PATIENCE)) for future in submit(calls, 10)] == ["gone"] * 10
    calls.shutdown()
    calls.wait_for_all_calls()
    assert closed == [True]


def test_shutdown_cancels_queued_calls_and_waits_for_running_calls(closed: list[bool]) -> None:
    executor = CountingExecutor()
    executor.may_open.clear()
    calls = make_call_queue(executor, lambda: closed.append(True))
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
