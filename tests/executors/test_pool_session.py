"""The session of a map on persistent workers: its messages and events. test_pool.py tests complete maps.

Most workers are threads of this process, which the tests control.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
from plain import ends, first_ends
from pool_processes import until
from slow_links import SlowLinks, slow_links
from worker_sites import ThreadSite, called, honest, pool_of, sent_parts

from polarmap import Pool, coded_map
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.errors import CodedTimeoutError, ExecutorError
from polarmap.executors import block_store, pool_session
from polarmap.executors.interface import AttemptStarted, JobSpec
from polarmap.testing import Fault
from polarmap.worker import worker_entry
from polarmap.worker.messages import Message, MessageKind, encode_frame
from polarmap.worker.socket_channel import SocketChannel
from polarmap.worker.worker_entry import DriverAddress, open_channel

PATIENCE = 30.0
BOTH_STARTED, GATE = threading.Barrier(2, timeout=PATIENCE), threading.Event()


def test_attempt_with_invalid_and_repeated_replies_ends_once() -> None:
    def liar(address: Any, number: int, seconds: float) -> None:
        with closing(called(address, number)) as channel:
            [_, call], _ = channel.receive(PATIENCE)
            both = [
                encode_frame(
                    Message(MessageKind.TASK_REPLY, call.attempt_key, b"no pickle"), channel._authenticator
                )
                for _ in range(2)
            ]
            channel._connection.sendall(b"".join(both))
            channel.receive(PATIENCE)

    with pool_of(ThreadSite({0: liar}), workers=1) as pool:
        blocks = UncodedBlocks([[np.ones(3)]], ("array",))
        with closing(pool.open(JobSpec(np.negative, blocks))) as run:
            run.submit([(0, 0)])
            events: list[Any] = []
            while not ends(events):
                events += run.wait(PATIENCE)
            run.submit([(0, 1)])  # runs on another worker
            while not any(outcome.attempt for outcome in ends(events)):
                events += run.wait(PATIENCE)
    over = [(outcome.attempt, outcome.failure and outcome.failure.kind) for outcome in ends(events)]
    assert over == [(0, "lost"), (1, None)]


@pytest.mark.parametrize("farewell", [MessageKind.FINAL_REPLY, MessageKind.UNUSABLE])
def test_worker_that_announces_its_end_gets_no_task(farewell: bytes) -> None:
    received_later, has_said = list[Message](), threading.Event()

    def leaving(address: Any, number: int, seconds: float) -> None:
        with closing(called(address, number)) as channel:
            received = list[Message]()
            while not any(message.kind == MessageKind.CANCEL for message in received):
                received += channel.receive(PATIENCE)[0]
            channel.send(Message(farewell, received[0].attempt_key))
            has_said.set()
            received_later.extend(channel.receive(PATIENCE)[0])

    with pool_of(ThreadSite({0: leaving}), workers=1) as pool:
        blocks = UncodedBlocks([[np.ones(3)]], ("array",))
        with closing(pool.open(JobSpec(np.negative, blocks))) as run:
            run.submit([(0, 0)])
            while not any(isinstance(event, AttemptStarted) for event in run.wait(0.01)):
                pass
        assert has_said.wait(PATIENCE)
        with closing(pool.open(JobSpec(np.negative, blocks))) as run:
            run.submit([(0, 0)])
            assert first_ends(run, 1, PATIENCE)[0].failure is None
    assert received_later == []


@pytest.mark.parametrize(("seconds", "ahead"), [(1e-6, 4), (10.0, 1)])
def test_tasks_assigned_ahead_run_after_a_cancellation(seconds: float, ahead: int) -> None:
    blocks = UncodedBlocks([[np.full(3, float(task))] for task in range(9)], ("array",))
    with Pool(workers=1) as pool:
        payload = JobSpec(np.negative, blocks, {1: Fault("sleep", 600.0)})
        with closing(pool.open(payload)) as run:
            run.submit([(0, 0)])
            first_ends(run, 1, PATIENCE)  # the worker has received f
            [worker] = run._worker_pool._workers.values()
            worker.last_task_seconds = seconds
            run.submit([(task, 0) for task in range(1, 9)])
            assert [order[1:] for order, _ in worker.assigned] == [(task, 0) for task in range(1, 2 + ahead)]
            run.cancel([(1, 0), (3, 0), (6, 0)])
            outcomes = {outcome.task: outcome.failure for outcome in first_ends(run, 8, PATIENCE)}
            assert run.wait(0.0) == []
    assert {task for task, failure in outcomes.items() if failure is not None} == {1, 3, 6}
    assert set(outcomes) == set(range(1, 9))


def test_tasks_queued_behind_a_slow_task_go_to_other_workers() -> None:
    blocks = UncodedBlocks([[np.full(3, float(task))] for task in range(20)], ("array",))
    with Pool(workers=2) as pool:
        payload = JobSpec(np.negative, blocks, {4: Fault("sleep", 600.0)})
        with closing(pool.open(payload)) as run:
            run.submit([(task, 0) for task in range(4)])
            first_ends(run, 4, PATIENCE)  # both workers have received f
            for worker in run._worker_pool._workers.values():
                worker.last_task_seconds = 1e-6
            run.submit([(task, 0) for task in range(4, 20)])
            assert max(len(worker.assigned) for worker in run._allocation.workers.values()) > 2
            outcomes = first_ends(run, 15, PATIENCE)
    assert {outcome.task for outcome in outcomes} == set(range(5, 20))
    assert all(outcome.failure is None for outcome in outcomes)


def test_stopping_workers_during_submit_raises_a_clear_error() -> None:
    blocks = UncodedBlocks([[np.full(3, float(task))] for task in range(9)], ("array",))
    with Pool(workers=1) as pool, closing(pool.open(JobSpec(np.negative, blocks))) as run:
        run.submit([(0, 0)])
        first_ends(run, 1, PATIENCE)  # the worker has received f
        table: Any = run._worker_pool
        take = table.acquire_worker

        def take_and_end(*given: Any) -> Any:
            worker = take(*given)
            table.close()
            return worker

        table.acquire_worker = take_and_end
        with pytest.raises(ExecutorError, match="ended the workers while a map was running"):
            run.submit([(task, 0) for task in range(1, 9)])


def test_job_is_sent_once_per_map_and_f_only_if_it_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent, send = list[Message](), SocketChannel.send

    def noted(link: SocketChannel, *messages: Message) -> bool:
        sent.extend(messages)
        return send(link, *messages)

    monkeypatch.setattr(SocketChannel, "send", noted)
    blocks = UncodedBlocks([[np.full(3, float(task))] for task in range(3)], ("array",))
    with Pool(workers=1) as pool:
        for f in (np.negative, np.negative, np.positive):
            with closing(pool.open(JobSpec(f, blocks))) as run:
                run.submit([(task, 0) for task in range(3)])
                first_ends(run, 3, PATIENCE)
    assert [message.kind for message in sent] == 3 * [
        MessageKind.JOB,
        MessageKind.TASK,
        MessageKind.TASK,
        MessageKind.TASK,
        MessageKind.CANCEL,
    ]
    assert [bool(message.data) for message in sent if message.kind == MessageKind.JOB] == [True, False, True]
    # The header of a task describes its block, so the headers differ.
    assert len({message.header for message in sent if message.kind == MessageKind.TASK}) == 3


def test_blocks_are_prepared_once_while_workers_start() -> None:
    class Blocks(UncodedBlocks):
        times = 0

        def prepare_encoding(self) -> None:
            Blocks.times += 1

    with Pool(workers=1) as pool:
        for _ in range(2):
            blocks = Blocks([[np.ones(3)]], ("array",))
            with closing(pool.open(JobSpec(np.negative, blocks))) as run:
                run.submit([(0, 0)])
                assert first_ends(run, 1)
    assert Blocks.times == 1


def test_workers_evict_only_released_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_store, "MAX_REMOVED_SETS", 0)  # No equal blocks are kept for later maps.
    # Workers on threads of this process may outlive their tests, so each pool must have a separate cache.
    kept_blocks = UncodedBlocks([[np.zeros(3)]], ("array",))
    keys = list[bytes]()  # the driver key of each worker

    def noting_the_key(address: DriverAddress, number: int, seconds: float) -> None:
        keys.append(address.key)
        honest(address, number, seconds)

    places = [ThreadSite(default=noting_the_key) for _ in range(2)]
    with pool_of(places[0], workers=1) as other, pool_of(places[1], workers=1) as pool:
        with closing(other.open(JobSpec(np.negative, kept_blocks))) as run:
            run.submit([(0, 0)])
            assert first_ends(run, 1)
        for _ in range(4):
            for blocks in (kept_blocks, UncodedBlocks([[np.ones(3)]], ("array",))):
                with closing(pool.open(JobSpec(np.negative, blocks))) as run:
                    run.submit([(0, 0)])
                    assert first_ends(run, 1)
                    cache = worker_entry._shared_caches[keys[1]]
                    assert len(cache) <= 2
        assert cache.n_reads == 5
        del blocks, run  # release the latest blocks
        gc.collect()
        with closing(pool.open(JobSpec(np.negative, kept_blocks))) as run:
            run.submit([(0, 0)])
            assert first_ends(run, 1)
        assert (len(cache), cache.n_reads) == (1, 5)
        assert len(set(keys)) == 2
        assert worker_entry._shared_caches[keys[0]].n_reads == 1


def both_at_once(block: Any) -> Any:
    BOTH_STARTED.wait()
    return block


def behind_the_gate(block: Any) -> Any:
    BOTH_STARTED.wait()  # a worker whose task has not started would be free as soon as its map ends
    if not block[0]:
        GATE.wait(PATIENCE)
    return block


def run_until(pool: Any, f: Any, blocks: UncodedBlocks, enough: int, tasks: int = 2) -> None:
    """Run `tasks` tasks and close the session once `enough` of them have ended."""
    with closing(pool.open(JobSpec(f, blocks))) as run:
        run.submit([(task, 0) for task in range(tasks)])
        ended, until = 0, time.monotonic() + PATIENCE
        while ended < enough:
            ended += len(ends(run.wait(until - time.monotonic())))
            assert time.monotonic() < until


@pytest.mark.parametrize("is_near", [False, True])
def test_block_is_sent_to_another_worker_only_if_faster_than_waiting(
    is_near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = sent_parts(monkeypatch)
    monkeypatch.setattr(block_store, "NETWORK_BYTES_PER_SECOND", 1e12 if is_near else 1e-3)
    blocks = UncodedBlocks([[np.zeros(3)], [np.ones(3)]], ("array",))
    GATE.clear()

    with pool_of(ThreadSite(), workers=2) as pool:
        run_until(pool, both_at_once, blocks, 2)  # each worker caches one block
        run_until(pool, behind_the_gate, blocks, 1)  # the worker with block 0 stays busy
        if is_near:
            run_until(pool, np.negative, blocks, 1, tasks=1)
            GATE.set()
        else:
            with closing(pool.open(JobSpec(np.negative, blocks))) as run:
                run.submit([(0, 0)])
                assert run.wait(0.2) == []
                GATE.set()
                events: list[Any] = []
                while not ends(events):
                    events += run.wait(PATIENCE)
    assert len(sent) == 2


def test_no_worker_waits_for_a_block_while_other_tasks_are_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_session, "LOCALITY_WINDOW", 1)
    monkeypatch.setattr(block_store, "NETWORK_BYTES_PER_SECOND", 1e-3)
    blocks = UncodedBlocks([[np.zeros(3)], [np.ones(3)]], ("array",))
    GATE.clear()
    with pool_of(ThreadSite(), workers=2) as pool:
        run_until(pool, both_at_once, blocks, 2)
        run_until(pool, behind_the_gate, blocks, 1)
        run_until(pool, np.negative, blocks, 2)
        GATE.set()


# --- slow and silent connections ------------------------------------------------------------------

only_linux_cuts = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a cut link acknowledges data")
BLOCK_BYTES, SLOW = 2_000_000, 20_000.0  # a block takes 100 s at this rate, in bytes per second


def large_blocks(count: int) -> UncodedBlocks:
    """Return blocks of one large array each, which have to be sent to the workers."""
    return UncodedBlocks([[np.full(BLOCK_BYTES // 8, float(task))] for task in range(count)], ("array",))


@contextmanager
def slowed_pool(site: ThreadSite, n_workers: int, **options: Any) -> Iterator[tuple[Pool, SlowLinks]]:
    """Yield a pool and the proxies of its links, once all workers have connected and are free."""
    blocks = UncodedBlocks([[np.ones(3)] for _ in range(n_workers)], ("array",))
    with slow_links() as links, pool_of(site, workers=n_workers, **options) as pool:
        with closing(pool.open(JobSpec(np.negative, blocks))) as run:
            run.submit([(task, 0) for task in range(n_workers)])
            first_ends(run, n_workers, PATIENCE)
            table = run._worker_pool
        assert until(lambda: len(table) == n_workers)
        yield pool, links
        links.restore()


def test_slow_connection_delays_no_other_and_sends_no_cancelled_block() -> None:
    with slowed_pool(ThreadSite(), 4) as (pool, links):
        before = [link.bytes_to_caller for link in links]
        for link in links.first(2):
            link.rate = SLOW
        blocks = large_blocks(4)
        with closing(pool.open(JobSpec(lambda block: float(block[0]), blocks))) as run:
            run.submit([(task, 0) for task in range(4)])
            outcomes = first_ends(run, 2, PATIENCE)
            assert [outcome.failure for outcome in outcomes] == [None, None]
            # Messages to workers on slow links are slow, too, so these workers may request their blocks late.
            assert until(lambda: (run.wait(0.01), run.count_receiving_workers())[1] == 2)  # type: ignore[attr-defined]
        for link in links.first(2):  # fast enough for the data in transit and for the cancellation
            link.rate = 50 * SLOW
        with closing(pool.open(JobSpec(np.negative, UncodedBlocks([[np.ones(3)]] * 4, ("array",))))) as run:
            run.submit([(task, 0) for task in range(4)])
            assert [outcome.failure for outcome in first_ends(run, 4, PATIENCE)] == [None] * 4
        carried = [link.bytes_to_caller - start for link, start in zip(links, before)]
        assert len(links) == 4  # no worker was lost
        assert min(carried[2:]) > BLOCK_BYTES > 2 * max(carried[:2])


def test_partly_sent_function_is_sent_again_in_the_next_map() -> None:
    large, blocks = np.zeros(BLOCK_BYTES // 8), UncodedBlocks([[np.ones(3)]] * 4, ("array",))
    payload = JobSpec(lambda block: block + large[0], blocks)
    with slowed_pool(ThreadSite(), 4) as (pool, links):
        before = [link.bytes_to_caller for link in links]
        for link in links.first(2):
            link.rate = SLOW
        with closing(pool.open(payload)) as run:
            run.submit([(task, 0) for task in range(4)])
            assert [outcome.failure for outcome in first_ends(run, 2, PATIENCE)] == [None, None]
        assert 2 * max(link.bytes_to_caller - before[link.index] for link in links.first(2)) < BLOCK_BYTES
        links.restore()
        table = run._worker_pool  # type: ignore[attr-defined]
        assert until(lambda: not table.count_busy_workers())  # All messages to workers were written.
        with closing(pool.open(payload)) as run:
            run.submit([(task, 0) for task in range(4)])
            outcomes = first_ends(run, 4, PATIENCE)
        assert [outcome.failure for outcome in outcomes] == [None] * 4
        assert len(links) == 4
        assert min(link.bytes_to_caller - before[link.index] for link in links) > BLOCK_BYTES


def test_timeout_is_kept_while_all_connections_are_slow() -> None:
    with slowed_pool(ThreadSite(), 4) as (pool, links):
        for link in links:
            link.rate = SLOW
        data, began = np.ones((3, BLOCK_BYTES // 8)), time.monotonic()
        with pytest.raises(CodedTimeoutError, match=r"4 tasks still run \(4 workers were still receiving"):
            coded_map(np.sum, data, blocks=3, tasks=4, executor=pool, timeout=1.0)
        assert time.monotonic() - began < BLOCK_BYTES / SLOW / 2


@only_linux_cuts
def test_driver_detects_a_silent_connection_while_sending_a_block() -> None:
    with slowed_pool(ThreadSite(), 2, tcp_timeout=1.0) as (pool, links):
        for link in links:
            link.rate = SLOW
        with closing(pool.open(JobSpec(lambda block: float(block[0]), large_blocks(2)))) as run:
            run.submit([(0, 0), (1, 0)])
            while run.count_receiving_workers() < 2:  # type: ignore[attr-defined]
                run.wait(0.01)
            for link in links.first(2):
                link.cut()
            assert [outcome.failure.kind for outcome in first_ends(run, 2, PATIENCE) if outcome.failure] == [
                "lost"
            ] * 2


@only_linux_cuts
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_worker_detects_a_silent_connection_while_sending_a_reply(size: int) -> None:
    has_called, is_cut, ended = threading.Event(), threading.Event(), Future[bool]()

    def replying(address: DriverAddress, number: int, seconds: float) -> None:
        with closing(open_channel(address, number, None)) as channel:
            has_called.set()
            is_cut.wait(PATIENCE)
            is_told = channel.send(Message(MessageKind.TASK_REPLY, data=bytes(size)))
            ended.set_result(is_told == (size < 1000) and until(channel.is_peer_closed))

    site, blocks = ThreadSite({0: replying}), UncodedBlocks([[np.ones(3)]], ("array",))
    with (
        slow_links() as links,
        pool_of(site, workers=1, tcp_timeout=1.0) as pool,
        closing(pool.open(JobSpec(np.negative, blocks))) as run,
    ):
        run.submit([(0, 0)])
        assert has_called.wait(PATIENCE)
        links[0].cut()
        is_cut.set()
        assert ended.result(PATIENCE)
