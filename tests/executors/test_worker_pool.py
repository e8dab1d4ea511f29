"""WorkerPool: decisions about idle, busy and lost workers, and fair turns of the maps that share them."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_processes import code_of_child, opened, taken
from predicates import assert_only_asks

from polarmap.errors import ExecutorError
from polarmap.executors import local_workers
from polarmap.executors.local_workers import LocalWorkerPool, is_about_to_finish
from polarmap.executors.remote_workers import Backoff, LaunchedWorker
from polarmap.executors.storage_channels import DriverStorageChannel
from polarmap.executors.worker_pool import GRACE_SECONDS, MAX_CACHED_TASKS, WorkerHandle, WorkerPool
from polarmap.worker.messages import Message, MessageKind, encode_frame

FIRST_ORDER, NEXT_ORDER = (
    (3, 1, 0),
    (3, 2, 0),
)  # job, task and attempt of a running task and of one assigned in advance
CORES = 2


class FakeWorkerPool(WorkerPool):
    """A pool of at most `most` fake workers, with channels into which the test puts messages."""

    def __init__(self, most: int = 100) -> None:
        super().__init__(None)
        self.most = most
        self.links: list[DriverStorageChannel] = []
        self.gone: list[int] = []
        self.abandoned: list[list[int]] = []

    def _start_worker(self) -> WorkerHandle | None:
        if len(self) >= self.most:
            return None
        number = next(self._worker_ids)
        link = DriverStorageChannel(number, 0, lambda *_: None)
        self.links.append(link)
        self._workers[number] = WorkerHandle(number, link)
        return self._workers[number]

    def _terminate_worker(self, worker_id: int) -> None:
        self.gone.append(worker_id)

    def _remove_unneeded_workers(self) -> None:
        self.abandoned.append([worker.worker_id for worker in self._get_abandoned_workers()])


class FakeLocalPool(LocalWorkerPool):
    """A pool of local workers without processes."""

    def __init__(self, most: int | None) -> None:
        super().__init__(1, most, [])

    def _start_worker(self) -> WorkerHandle:
        number = next(self._worker_ids)
        worker = WorkerHandle(number, Mock(fileno=lambda: number, has_unsent=False))
        self._workers[worker.worker_id] = worker
        return worker

    def _poll_unallocated_workers(self) -> None: ...


def test_queries_have_no_side_effects(table: FakeWorkerPool) -> None:
    lease, backoff = opened(table), Backoff()
    worker = taken(table, lease)
    launched = LaunchedWorker(0.0, 1.0)
    for is_closed in (False, True):
        assert_only_asks(table, table.has_several_sessions, partial(table.is_allocation_starved, lease))
        assert_only_asks(lease, partial(table.is_allocation_starved, lease))
        assert_only_asks(worker, lambda: worker.has_open_session, partial(is_about_to_finish, worker))
        assert_only_asks(worker.channel, worker.channel.is_stalled)
        assert_only_asks(backoff, backoff.can_retry)
        assert_only_asks(launched, partial(launched.is_overdue, 0.0), partial(launched.is_overdue, 1e9))
        if not is_closed:
            worker.assign_task(FIRST_ORDER, "task")
            table.close_allocation(lease)
        backoff.record_failure("no room")


def table_of(is_here: bool, most: int) -> WorkerPool:
    """Return a pool of local or remote workers that runs at most `most` tasks at a time."""
    return FakeLocalPool(most) if is_here else FakeWorkerPool(most)


def complete_task(worker: Any, order: tuple[int, int, int], task: Hashable) -> None:
    """Assign a task to a worker and deliver the worker's reply."""
    worker.assign_task(order, task)
    worker.channel.deliver_frames(encode_frame(Message(MessageKind.TASK_REPLY, order)))
    worker.receive_messages()


@pytest.fixture
def table() -> Iterator[FakeWorkerPool]:
    table = FakeWorkerPool()
    yield table
    table.close()
    for link in table.links:
        link.close()


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(local_workers, "count_available_cores", lambda: CORES)
        yield


def test_task_goes_to_the_worker_that_has_its_block(table: FakeWorkerPool) -> None:
    lease = opened(table)
    workers = [taken(table, lease) for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.pid = number
        complete_task(worker, (0, number, 0), ("blocks", number))
        table.release_worker(worker)
    for number in (1, 0, 2):
        assert taken(table, lease, ("blocks", number)) is workers[number]


def test_worker_with_a_cached_block_of_a_queued_task_is_preferred(
    table: FakeWorkerPool,
) -> None:
    first, second = opened(table), opened(table)
    _, able = taken(table, first), taken(table, first, "b")
    complete_task(able, (0, 0, 0), "b")
    for worker in list(first.workers.values()):
        table.release_worker(worker)
    table.close_allocation(first)
    assert table.acquire_worker(second, 2, lambda: ["a", "b"]) is able
    table.close_allocation(second)


def test_oldest_cached_tasks_are_forgotten() -> None:
    worker = WorkerHandle(0, DriverStorageChannel(0, 0, lambda *_: None))
    for task in range(MAX_CACHED_TASKS + 10):
        complete_task(worker, (0, task, 0), task)
        complete_task(worker, (0, task, 1), 0)
    assert len(worker.cached_tasks) == MAX_CACHED_TASKS
    assert 0 in worker.cached_tasks
    assert 1 not in worker.cached_tasks
    worker.channel.close()


@pytest.mark.parametrize(
    "kind", [MessageKind.TASK_REPLY, MessageKind.CANCELLED, MessageKind.UNUSABLE, MessageKind.FINAL_REPLY]
)
def test_worker_is_free_after_an_abandoned_task_unless_it_exits(table: FakeWorkerPool, kind: bytes) -> None:
    lease = opened(table)
    worker = taken(table, lease)
    worker.assign_task(FIRST_ORDER, "task")
    assert table.find_tasks_cached_on_abandoned_workers(lambda: ["task", "other"]) == set()
    table.close_allocation(lease)
    assert table.find_tasks_cached_on_abandoned_workers(lambda: ["task", "other"]) == {"task"}
    table.links[0].deliver_frames(encode_frame(Message(kind, FIRST_ORDER)))
    assert table.find_tasks_cached_on_abandoned_workers(lambda: ["task", "other"]) == set()
    assert (taken(table, opened(table)) is worker) == (
        kind in (MessageKind.TASK_REPLY, MessageKind.CANCELLED)
    )


def test_blocks_of_free_workers_are_not_on_abandoned_workers(table: FakeWorkerPool) -> None:
    lease, other = opened(table), opened(table)
    taken(table, lease).assign_task(FIRST_ORDER, "task")
    free = taken(table, other)
    for task in ("task", "other"):
        complete_task(free, FIRST_ORDER, task)
    table.close_allocation(lease)
    assert table.find_tasks_cached_on_abandoned_workers(lambda: ["task"]) == {"task"}
    table.release_worker(free)
    assert table.find_tasks_cached_on_abandoned_workers(lambda: ["task", "other"]) == set()


def test_worker_does_not_cache_blocks_of_tasks_not_started(table: FakeWorkerPool) -> None:
    lease = opened(table)
    worker = taken(table, lease)
    complete_task(worker, FIRST_ORDER, "done")
    worker.assign_task(FIRST_ORDER, "task")
    worker.assign_task(NEXT_ORDER, "ahead")
    table.close_allocation(lease)
    assert table.find_tasks_cached_on_abandoned_workers(lambda: ["done", "task", "ahead"]) == {"done", "task"}
    for order in (FIRST_ORDER, NEXT_ORDER):
        table.links[0].deliver_frames(encode_frame(Message(MessageKind.CANCELLED, order)))
    assert taken(table, opened(table)) is worker
    assert list(worker.cached_tasks) == ["done"]


@pytest.mark.parametrize(
    "said", [Message(MessageKind.FETCH, FIRST_ORDER, b"x/1"), Message(MessageKind.HELLO, header=b"5")]
)
def test_worker_that_reports_progress_stays_abandoned(table: FakeWorkerPool, said: Message) -> None:
    lease = opened(table)
    worker = taken(table, lease)
    worker.assign_task(FIRST_ORDER, "task")
    table.close_allocation(lease)
    table.links[0].deliver_frames(encode_frame(said))
    assert table.find_tasks_cached_on_abandoned_workers(lambda: ["task", "other"]) == {"task"}
    assert worker.allocation is lease
    assert table.abandoned[-1] == [0]


def test_worker_that_dies_in_an_abandoned_task_is_removed(table: FakeWorkerPool) -> None:
    lease = opened(table)
    taken(table, lease)
    table.close_allocation(lease)
    table.links[0].disconnect()
    table.find_tasks_cached_on_abandoned_workers(lambda: ["task", "other"])
    assert len(table) == 0
    assert table.gone == [0]


def test_disconnected_free_workers_are_removed_together(table: FakeWorkerPool) -> None:
    lease = opened(table)
    gone, *free = (taken(table, lease) for _ in range(3))
    for worker in free:
        table.release_worker(worker)
    for link in table.links:
        link.disconnect()
    table.remove_worker(gone)
    assert len(table) == 0
    assert sorted(table.gone) == [0, 1, 2]


def test_longest_abandoned_workers_come_first(table: FakeWorkerPool) -> None:
    leases = [opened(table) for _ in range(3)]
    for lease in leases:
        taken(table, lease)
    for turn in (2, 0, 1):
        table.close_allocation(leases[turn])
        table.find_tasks_cached_on_abandoned_workers(lambda: ["task", "other"])
    assert table.abandoned[-1] == [2, 0, 1]


@pytest.mark.parametrize(
    "said",
    [
        Message(MessageKind.HELLO, header=b"x"),
        Message(MessageKind.TASK_REPLY, (2, *FIRST_ORDER[1:])),  # a reply of another job
        Message(MessageKind.TASK_REPLY, (FIRST_ORDER[0], 5, 0)),
        Message(MessageKind.CANCELLED, (*FIRST_ORDER[:2], 7)),
        Message(MessageKind.FETCH, (2, *FIRST_ORDER[1:]), b"x/1"),
    ],
)
def test_worker_that_replies_for_another_attempt_is_disconnected(
    table: FakeWorkerPool, said: Message
) -> None:
    worker = taken(table, opened(table))
    worker.assign_task(FIRST_ORDER, "task")
    table.links[0].deliver_frames(
        encode_frame(said) + encode_frame(Message(MessageKind.TASK_REPLY, FIRST_ORDER))
    )
    assert worker.receive_messages() == ([], False)
    assert worker.receive_messages() == ([], False)  # later readers also find the worker disconnected


def test_worker_that_replies_twice_is_disconnected(table: FakeWorkerPool) -> None:
    worker = taken(table, opened(table))
    worker.assign_task(FIRST_ORDER, "task")
    table.links[0].deliver_frames(2 * encode_frame(Message(MessageKind.TASK_REPLY, FIRST_ORDER)))
    assert worker.receive_messages() == ([Message(MessageKind.TASK_REPLY, FIRST_ORDER)], False)


def test_close_ends_all_workers_and_running_maps(table: FakeWorkerPool) -> None:
    lease, another = opened(table), opened(table)
    busy, abandoned, free = taken(table, lease), taken(table, another), taken(table, lease)
    table.release_worker(free)
    table.close_allocation(another)
    table.close()
    assert sorted(table.gone) == [0, 1, 2]
    assert busy.channel.fileno() >= 0  # stays open because a map polls this channel
    assert not busy.receive_messages()[1]
    assert abandoned.channel.fileno() == free.channel.fileno() == -1
    with pytest.raises(ExecutorError, match="ended the workers while a map was running"):
        table.remove_worker(busy)
    with pytest.raises(ExecutorError, match="ended the workers while a map was running"):
        table.get_exit_reason(busy)


def test_closing_an_allocation_after_the_pool_closes_its_channels(table: FakeWorkerPool) -> None:
    lease = opened(table)
    worker = taken(table, lease)
    table.close()
    table.close_allocation(lease)
    assert worker.channel.fileno() == -1


# --- turns of maps that share a pool ---------------------------------------------------------------


class FakeMap:
    """A session that starts tasks whenever the pool allows it."""

    def __init__(self, pool: WorkerPool, tasks: int) -> None:
        self.waiting, self.calls = tasks, 0
        self.workers: list[WorkerHandle] = []
        self.pool, self.lease = pool, pool.open_allocation(self.call)

    def call(self) -> None:
        self.calls += 1

    def start(self, most: int = sys.maxsize) -> int:
        """Start up to `most` tasks, and return how many were started."""
        started = 0
        while started < most and (worker := self.pool.acquire_worker(self.lease, self.waiting)) is not None:
            worker.assign_task(FIRST_ORDER, None)
            self.workers.append(worker)
            self.waiting -= 1
            started += 1
        return started

    def end(self) -> None:
        """Release the worker of the oldest task."""
        self.pool.release_worker(self.workers.pop(0))

    def listen(self) -> None:
        self.lease.can_be_woken = True

    def pause(self) -> None:
        self.pool.stop_waking_session(self.lease)

    def close(self) -> None:
        self.pool.close_allocation(self.lease)


def listening(pool: WorkerPool, *tasks: int) -> list[FakeMap]:
    maps = [FakeMap(pool, count) for count in tasks]
    for map_ in maps:
        map_.listen()
        map_.lease.n_queued = map_.waiting
    return maps


@pytest.mark.parametrize(
    ("most", "is_here", "expected"),
    [(None, True, CORES + 1), (2, True, 2), (24, True, 24), (60, False, 60), (1000, False, 100)],
)
def test_single_map_uses_all_slots(most: Any, is_here: bool, expected: int) -> None:
    map_ = FakeMap(table_of(is_here, most), 100)
    assert not map_.pool.has_several_sessions()
    assert map_.start() == expected
    map_.waiting += 1
    map_.end()
    assert map_.start() == 1


@pytest.mark.parametrize("is_here", [True, False])
def test_slot_goes_to_the_map_with_fewest_tasks_then_longest_wait(
    is_here: bool,
) -> None:
    pool = table_of(is_here, 3)
    first = FakeMap(pool, 9)
    assert first.start(3) == 3
    first.listen()
    second, third = listening(pool, 9, 9)
    first.end()
    assert second.calls > 0
    assert first.start() == third.start(1) == 0
    assert second.start(1) == 1
    first.end()
    assert (first.start(), second.start(), third.start(1)) == (0, 0, 1)
    first.end()  # now the second and the third map run one task each
    assert (second.start(), third.start(), first.start(1)) == (0, 0, 1)
    for map_ in (third, first, second):
        map_.end()
    assert (first.start(), second.start()) == (0, 0)  # the third map has waited longest
    assert third.start(1) == 1


@pytest.mark.parametrize("is_here", [True, False])
def test_paused_and_idle_maps_do_not_block_other_maps(is_here: bool) -> None:
    pool = table_of(is_here, 2)
    first = FakeMap(pool, 9)
    first.start(2)
    first.listen()
    away, idle, ended = listening(pool, 9, 0, 9)
    away.pause()
    ended.close()
    first.end()
    assert first.start(1) == 1
    away.listen()
    first.end()
    assert (first.start(), away.start(1)) == (0, 1)
    assert idle.start() == 0


def test_next_map_is_woken_when_another_one_pauses() -> None:
    pool = FakeLocalPool(2)
    first = FakeMap(pool, 9)
    first.start()
    second, third = listening(pool, 9, 9)
    first.end()
    calls = third.calls
    second.pause()
    assert third.calls > calls
    calls = third.calls
    assert pool.acquire_worker(third.lease, 0) is None
    second.listen()
    first.end()
    assert second.calls > 0
    assert third.calls == calls


def test_closed_map_frees_its_slots_once() -> None:
    pool = FakeLocalPool(None)
    first = FakeMap(pool, 9)
    first.start()
    [second] = listening(pool, 9)
    assert second.start() == 0
    first.close()
    first.close()
    assert second.calls > 0
    assert not pool.has_several_sessions()
    assert second.start() == CORES + 1
    pool.release_worker(first.workers[0])  # Its task was abandoned.
    assert second.start() == 0


def test_deleted_map_gets_no_slots() -> None:
    pool = FakeLocalPool(None)
    first = FakeMap(pool, 9)
    FakeMap(pool, 9)
    gc.collect()
    assert not pool.has_several_sessions()
    first.close()


def test_tasks_that_never_end_do_not_starve_other_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for most, more in {None: 1, CORES + 1: 0}.items():
        pool = FakeLocalPool(most)
        first = FakeMap(pool, 9)
        first.start()
        [second] = listening(pool, 9)
        assert second.start() == 0
        now += GRACE_SECONDS + 0.1
        assert pool.is_allocation_starved(second.lease)
        assert not pool.is_allocation_starved(first.lease)
        assert (first.start(), second.start()) == (0, more)
        now += GRACE_SECONDS + 0.1
        assert second.start() == 0  # It already has a worker.


def test_more_tasks_start_while_cores_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(local_workers, "is_process_idle", lambda process: process == 1)
    for processes, grows in {(1, 1, 1): True, (1, 2, 2): False}.items():
        pool = FakeLocalPool(None)
        first = FakeMap(pool, 9)
        first.start()
        [second] = listening(pool, 9)
        for worker, process in zip(first.workers, processes, strict=True):
            worker.pid = process
        assert second.start() == 0
        for _ in range(2):  # idle cores count after two consecutive polls
            now += 0.1
            pool.maybe_scale_up(second.lease, 9)
            pool.maybe_scale_up(second.lease, 9)  # too soon after the last poll, so it has no effect
        assert (second.start() > 0) == grows
        first.close()
        assert second.start() >= 1


@given(
    st.integers(1, 4),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["end", "wake", "pause", "listen"])), max_size=60),
)
def test_maps_share_slots_fairly_and_all_finish(
    most: int, is_here: bool, events: list[tuple[int, str]]
) -> None:
    # Each session starts tasks whenever it is woken, and each task ends, so all sessions must finish.
    pool = table_of(is_here, most)
    maps = listening(pool, 7, 7, 7, 7)

    def free() -> int:
        return most - sum(len(map_.workers) for map_ in maps)

    def settle() -> None:
        """Let sessions that were woken start tasks, until none is woken."""
        while called := [map_ for map_ in maps if map_.calls and map_.lease.can_be_woken]:
            for map_ in called:
                map_.calls = 0
                while free() and map_.start(1):
                    pass

    def end(map_: FakeMap) -> None:
        map_.end()
        map_.call()  # the thread of the session also continues when its task ends
        settle()

    for map_ in maps:
        map_.call()
    settle()
    assert free() == 0
    shares = [len(map_.workers) for map_ in maps]
    assert max(shares) - min(shares) <= 1
    for number, event in events:
        map_ = maps[number]
        if event == "end" and map_.workers:
            end(map_)
        elif event == "pause":
            map_.pause()
        elif event == "listen":
            map_.listen()
            map_.call()
        settle()
    for map_ in maps:
        map_.listen()
        map_.call()
    settle()
    started = Counter[int]()
    while running := [map_ for map_ in maps if map_.workers]:
        end(max(running, key=lambda map_: len(map_.workers)))
        started.update(range(len(running)))
        assert started[0] < 100
    assert not any(map_.waiting for map_ in maps)


def test_forked_child_has_no_workers_even_if_locks_are_held(table: FakeWorkerPool) -> None:
    leases = [opened(table), opened(table)]
    taken(table, leases[0])
    [link] = table.links

    def forget() -> None:
        table.after_fork()
        assert not table.has_several_sessions()
        assert len(table) == 0
        for lease in leases:
            table.close_allocation(lease)

    assert code_of_child(forget, [table._lock]) == 0
    assert len(table) == 1
    assert link.fileno() >= 0
