"""The pool of remote workers, which starts, replaces, renews, releases and bills them.

The workers are threads of this process that a fake provider starts.
"""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import Queue
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage
from plain import first_ends
from pool_processes import PATIENCE, A, X, check, opened, taken, until
from slow_links import slow_links
from worker_sites import ThreadSite, called, pool_of, serving_by_storage

import polarmap
from polarmap import Pool
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.errors import CodedTimeoutError, ExecutorError, NotDecodableError
from polarmap.executors import remote_workers, worker_pool
from polarmap.executors.block_store import PublishedBlocks
from polarmap.executors.interface import JobSpec, Reach
from polarmap.executors.remote_workers import MAX_BACKOFF_SECONDS, Backoff, RemoteWorkerPool
from polarmap.executors.worker_listener import list_local_addresses
from polarmap.executors.worker_pool import Allocation
from polarmap.worker import storage_channel
from polarmap.worker.locations import BucketLocation
from polarmap.worker.messages import PROTOCOL_VERSION, FrameError, Message, MessageKind
from polarmap.worker.retries import OUTAGE_SECONDS
from polarmap.worker.task_records import OutputSpec, TaskReply
from polarmap.worker.worker_entry import DriverAddress


@pytest.fixture
def site() -> ThreadSite:
    return ThreadSite()


def make_pool(site: ThreadSite, most: int | None = None, listens: bool = True) -> RemoteWorkerPool:
    return RemoteWorkerPool(site, most, listens, 10**6, 1)


@pytest.fixture
def workers(site: ThreadSite) -> Iterator[RemoteWorkerPool]:
    pool_under_test = make_pool(site)
    yield pool_under_test
    pool_under_test.close()
    assert site.is_closed
    assert not any(thread.is_alive() for thread in site.threads.values())
    assert not any(thread.name == "polarmap-listener" for thread in threading.enumerate())


def start_workers(workers: RemoteWorkerPool, count: int) -> None:
    """Request `count` workers and wait until they have joined."""
    workers.request_workers(count)
    assert until(lambda: len(workers) == count)


def poll_now(workers: RemoteWorkerPool) -> bool:
    """Check for exited workers without waiting for the next poll, and return False."""
    workers.maybe_scale_up(Allocation(lambda: None), 0)
    return False


def test_largest_requested_number_of_workers_is_started(workers: RemoteWorkerPool, site: ThreadSite) -> None:
    workers.request_workers(2)
    workers.request_workers(3)
    workers.request_workers(1)
    assert until(lambda: len(workers) == 3)
    assert site.launches == [[0, 1], [2]]
    assert workers.latest_channel_name == "TCP"


def test_map_with_queued_tasks_is_woken_for_each_new_worker(workers: RemoteWorkerPool) -> None:
    wakes: Queue[None] = Queue()
    lease = workers.open_allocation(lambda: wakes.put(None))
    assert workers.acquire_worker(lease, 1) is None
    workers.request_workers(2)
    for _ in range(2):
        wakes.get(timeout=PATIENCE)
    assert taken(workers, lease) is not taken(workers, lease)
    workers.close_allocation(lease)


def test_number_of_workers_is_limited(site: ThreadSite) -> None:
    with closing(make_pool(site, most=2)) as workers:
        workers.request_workers(100)
        assert until(lambda: len(workers) == 2)
        assert site.launches == [[0, 1]]


def test_free_worker_reported_as_exited_is_replaced(workers: RemoteWorkerPool, site: ThreadSite) -> None:
    start_workers(workers, 1)
    site.told[0] = "killed"
    poll_now(workers)
    assert until(lambda: list(workers._workers) == [1])


def test_one_more_worker_starts_for_a_map_without_a_free_worker(
    workers: RemoteWorkerPool, site: ThreadSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a grace period, a session is starved as soon as none of its tasks start.
    monkeypatch.setattr("polarmap.executors.worker_pool.GRACE_SECONDS", 0.0)
    start_workers(workers, 1)  # The start may take longer than the grace period.
    first, second = opened(workers), opened(workers)
    first.n_queued = 1
    workers.maybe_scale_up(first, 1)
    assert site.launches == [[0]]
    taken(workers, first)
    second.n_queued = 1
    workers.maybe_scale_up(second, 1)
    assert site.launches == [[0], [1]]
    workers.close_allocation(second)
    workers.close_allocation(first)


def test_refused_launch_raises_one_clear_error(workers: RemoteWorkerPool, site: ThreadSite) -> None:
    site.refusal = ExecutorError("threads takes no job: no such runtime")
    with pytest.raises(ExecutorError, match="no such runtime"):
        workers.request_workers(1)
    assert workers.take_billed_usage() is not None


class WorkersOfAnotherVersion:
    """Runs workers of a `ThreadSite` as processes whose polarmap has another version of the protocol."""

    code = """
import sys
from polarmap.worker import messages
messages.PROTOCOL_VERSION += 1
from polarmap.worker.worker_entry import serve_driver_on_thread
serve_driver_on_thread(eval(sys.argv[1], {"inf": float("inf")}), int(sys.argv[2]), 60.0)
"""

    def __init__(self) -> None:
        self.errors = Queue[str]()

    def __call__(self, address: DriverAddress, number: int, seconds: float) -> None:
        command = [sys.executable, "-c", self.code, repr(tuple(address)), str(number)]
        worker = subprocess.run(command, capture_output=True, text=True, timeout=60.0)
        self.errors.put(worker.stderr)


def test_workers_of_another_version_raise_one_clear_error_at_both_ends() -> None:
    life = WorkersOfAnotherVersion()
    with pool_of(ThreadSite(default=life)) as pool:
        with pytest.raises(
            ExecutorError, match="a worker of another version of polarmap has connected"
        ) as error:
            check(pool)
        assert f"version {PROTOCOL_VERSION + 1} of the protocol, this driver {PROTOCOL_VERSION}" in str(
            error.value
        )
        driver_error = life.errors.get(timeout=PATIENCE)
    assert f"its driver has version {PROTOCOL_VERSION} of polarmap's protocol" in driver_error
    assert "rebuild its image" in driver_error and "rebuild its image" in str(error.value)


def test_workers_of_another_version_raise_one_clear_error_over_a_storage(site: ThreadSite) -> None:
    def life(address: DriverAddress, number: int, seconds: float) -> None:
        key = f"{address.prefix}/replies/v{PROTOCOL_VERSION + 1}-{number}-1-1-0-1-5"
        site.storage.put_object("b", key, b"hello")

    site.storage, site.bucket, site.default = DictStorage(), "b", life
    with pool_of(site, listen=False) as pool:
        with pytest.raises(ExecutorError, match="a worker of another version of polarmap has connected"):
            check(pool)
        site.default = serving_by_storage(site.storage)  # the worker is restarted
        check(pool)


def test_map_uses_the_workers_of_its_version(site: ThreadSite) -> None:
    life = WorkersOfAnotherVersion()
    site.lives = {0: life}
    with closing(make_pool(site)) as workers:
        workers.request_workers(2)
        assert until(lambda: len(workers) == 1 and workers._listener.mismatches)
        poll_now(workers)
        assert not workers._listener.mismatches
        assert list(workers._launched) == list(workers._workers) == [1]


def test_refused_launch_is_retried(
    workers: RemoteWorkerPool, site: ThreadSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_workers, "MIN_BACKOFF_SECONDS", 0.01)
    start_workers(workers, 1)
    site.refusal = ExecutorError("threads takes no job: its storage is away")
    workers.request_workers(3)
    assert until(lambda: poll_now(workers) or len(site.launches) >= 4)
    site.refusal = None
    assert until(lambda: poll_now(workers) or len(workers) == 3)
    monkeypatch.setattr(remote_workers, "OUTAGE_SECONDS", 0.0)
    site.refusal = ExecutorError("threads takes no job: its storage is away")
    workers.request_workers(5)
    with pytest.raises(ExecutorError, match="storage is away"):
        until(lambda: poll_now(workers))
    site.refusal = None


def test_failing_workers_soon_raise_one_clear_error(
    workers: RemoteWorkerPool, site: ThreadSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise ImportError("no module named numpy")

    monkeypatch.setattr(remote_workers, "MIN_BACKOFF_SECONDS", 0.01)
    site.default = fails
    workers.request_workers(2)
    with pytest.raises(ExecutorError, match="threads starts: ImportError: no module named numpy"):
        until(lambda: poll_now(workers))
    assert len(site.launches) <= remote_workers.MAX_LAUNCH_FAILURES


def test_workers_that_never_connect_raise_one_clear_error(
    workers: RemoteWorkerPool, site: ThreadSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_workers, "CONNECT_TIMEOUT", 0.05)
    site.default = lambda *arguments: None
    site.collect_exited_workers = lambda may_query=True: {}
    lease = Allocation(lambda: None)
    workers.request_workers(1)
    time.sleep(0.03)
    workers.request_workers(2)  # workers that do not connect are replaced from time to time
    with pytest.raises(ExecutorError, match=r"has connected within [\d.]+ s$"):
        until(lambda: workers.maybe_scale_up(lease, 2))


def test_late_connection_of_a_replaced_worker_is_refused(workers: RemoteWorkerPool, site: ThreadSite) -> None:
    start_workers(workers, 1)
    channel = called(workers._driver_address, 99)
    assert channel.receive(PATIENCE) == ([], False)
    channel.close()
    assert len(workers) == 1


def test_restarted_worker_replaces_its_predecessor(workers: RemoteWorkerPool, site: Any) -> None:
    start_workers(workers, 1)
    first = workers._workers[0]
    channel = called(workers._driver_address, 0)
    assert until(lambda: workers._workers.get(0) not in (first, None))
    assert first.channel.fileno() == -1
    busy = taken(workers, opened(workers))
    again = called(workers._driver_address, 0)
    assert until(lambda: workers._workers.get(0) not in (busy, None))
    assert busy.channel.fileno() >= 0  # the map polls this channel, and finds the worker disconnected
    assert busy.receive_messages() == ([], False)
    workers.remove_worker(busy)
    assert len(workers) == 1
    assert workers._launched[0].expires_at > time.monotonic()
    for each_channel in (channel, again):
        each_channel.close()


def test_billed_time_runs_from_start_to_end_of_each_worker(workers: RemoteWorkerPool, site: Any) -> None:
    began = time.monotonic()
    start_workers(workers, 2)
    time.sleep(0.05)
    since = time.monotonic()
    first = workers.take_billed_usage()
    assert first is not None
    assert first.n_started == 2
    assert 0.1 <= first.worker_seconds <= 2 * (time.monotonic() - began)
    written_seconds = first.n_writes * site.listing_interval
    assert first.worker_seconds / 2 - 1e-3 <= written_seconds <= first.worker_seconds + 1e-3
    workers.remove_worker(taken(workers, opened(workers)))
    workers.take_billed_usage()
    time.sleep(0.05)
    second = workers.take_billed_usage()
    assert second is not None
    assert second.n_started == 0
    assert second.n_writes > 0
    assert 0.04 < second.worker_seconds <= time.monotonic() - since  # seconds of the remaining worker


def test_few_workers_are_renewed_at_a_time(workers: RemoteWorkerPool, site: ThreadSite) -> None:
    site.max_worker_seconds = 1000.0
    start_workers(workers, 8)
    for launched in workers._launched.values():
        launched.expires_at = time.monotonic() + OUTAGE_SECONDS - 1.0
    deadline = time.monotonic() + PATIENCE
    while min(workers._workers, default=0) < 8:  # Wait until all first workers were replaced.
        assert time.monotonic() < deadline
        workers.maintain_workers()
        assert len(workers) <= 9
        time.sleep(0.01)
    assert max(map(len, site.launches[1:])) == 1
    assert len(workers) >= 7


def test_worker_is_replaced_after_a_refused_replacement(
    workers: RemoteWorkerPool, site: ThreadSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_workers, "MIN_BACKOFF_SECONDS", 0.01)
    site.max_worker_seconds = 100.0
    start_workers(workers, 1)
    workers._launched[0].expires_at = time.monotonic() + 5.0  # short compared to max_worker_seconds
    site.refusal = ExecutorError("too many requests")
    workers.maintain_workers()
    assert site.launches == [[0], [1]]
    site.refusal = None
    assert until(lambda: workers.maintain_workers() or set(workers._workers) == {2})


def test_stuck_worker_is_replaced_and_later_removed(
    workers: RemoteWorkerPool, site: ThreadSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_workers, "GRACE_SECONDS", 0.0)
    workers.request_workers(1)
    lease = opened(workers)
    stuck = taken(workers, lease)
    workers.request_workers(1)
    assert len(site.launches) == 1
    workers.close_allocation(lease)
    lease.closed_at = time.monotonic() - 1.0
    workers.request_workers(1)
    assert until(lambda: len(workers) == 2)
    stuck.allocation = None  # Its task has ended.
    workers.maintain_workers()
    assert len(workers) == 1


def test_hanging_removal_of_leftovers_does_not_delay_maps(
    workers: RemoteWorkerPool, site: ThreadSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, go = threading.Event(), threading.Event()
    monkeypatch.setattr(site, "remove_leftover_objects", lambda: hangs.set() or go.wait(60.0))
    with ThreadPoolExecutor(2) as threads:
        tending = threads.submit(workers.maintain_workers)
        assert hangs.wait(60.0)
        try:
            threads.submit(workers.request_workers, 1).result(20.0)
        finally:
            go.set()
        tending.result(60.0)
    assert until(lambda: len(workers) == 1)


def test_closed_pool_starts_no_workers(site: ThreadSite) -> None:
    workers = make_pool(site)
    workers.close()
    with pytest.raises(ExecutorError):
        workers.request_workers(1)
    workers.maintain_workers()
    assert site.launches == []


def test_workers_try_the_address_of_the_connection_to_the_engine_first(site: ThreadSite) -> None:
    for host, expected in {"192.0.2.77": ["192.0.2.77"], "127.0.0.1": [], "unix": [], "": []}.items():
        site.driver_host = host
        with closing(make_pool(site)) as workers:
            assert [host for host, _ in workers._driver_address.endpoints] == [
                *expected,
                *list_local_addresses(),
            ]


class BrokenSocket:
    """A socket whose reads raise an error."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def recv(self, size: int) -> bytes:
        raise self.error

    def shutdown(self, how: int) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "was lost: Connection timed out"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "was lost: No route to host"),
        (
            ConnectionResetError(errno.ECONNRESET, "Reset"),
            "was reset: it has exited or cannot be reached",
        ),
        (FrameError("a message was changed on its way"), ""),
    ],
)
def test_lost_connection_is_distinguished_from_an_exited_process(
    workers: RemoteWorkerPool, error: OSError, said: str
) -> None:
    start_workers(workers, 1)
    worker = taken(workers, opened(workers))
    worker.label = "rack 7"
    channel: Any = worker.channel
    connection, channel._connection = channel._connection, BrokenSocket(error)
    assert worker.receive_messages() == ([], False)
    ended = f"the connection to its worker {said} (rack 7)"
    assert workers.get_exit_reason(worker) == (
        ended if said else "its worker process ended without reporting (rack 7)"
    )
    connection.close()


# --- complete maps -------------------------------------------------------------------------------


@pytest.fixture
def pool(site: ThreadSite) -> Iterator[Pool]:
    with pool_of(site, workers=8) as pool:
        yield pool


def test_maps_run_over_a_storage(site: ThreadSite, monkeypatch: pytest.MonkeyPatch) -> None:
    # Messages and blocks are both objects of the storage.
    site.storage, site.bucket = DictStorage(), "b"
    site.default = serving_by_storage(site.storage)
    monkeypatch.setattr(storage_channel, "MAX_POLL_INTERVAL", 0.05)
    with pool_of(site, workers=8, listen=False) as pool:
        with polarmap.CodedOperator(A, blocks=6, tasks=8, executor=pool) as operator:
            for _ in range(3):
                np.testing.assert_allclose(operator @ X, A @ X)
            assert 6 <= sum("/blocks/" in key for _, key in site.storage.objects) <= 8
        assert pool.name == "persistent workers on threads (objects)"
    assert not any(key.endswith("orders") for _, key in site.storage.objects)


@pytest.mark.parametrize("hangs", ["blocks", "orders"])
def test_a_timeout_is_kept_while_the_storage_hangs(
    site: ThreadSite, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    # The storage hangs either when blocks of new data are stored or when messages to workers are written.
    storage = site.storage = DictStorage()
    site.bucket, site.default = "b", serving_by_storage(storage)
    monkeypatch.setattr(storage_channel, "MAX_POLL_INTERVAL", 0.05)
    goes_on, put = threading.Event(), storage.put_object

    def hanging(bucket: str, key: str, data: bytes) -> None:
        if key.startswith(f"{site.key_prefix}/{hangs}"):
            assert goes_on.wait(60.0)
        put(bucket, key, data)

    with pool_of(site, workers=8, listen=False) as pool:
        check(pool)
        monkeypatch.setattr(storage, "put_object", hanging)
        with pytest.raises(CodedTimeoutError):
            check(pool, timeout=0.3)
        assert not goes_on.is_set()
        goes_on.set()
        check(pool)


def test_map_without_connected_workers_raises_a_clear_error(site: ThreadSite) -> None:
    site.default = lambda *arguments: None
    site.collect_exited_workers = lambda may_query=True: {}  # type: ignore[method-assign]
    hosts = r"[\d.]+:\d+ or 127\.0\.0\.1:\d+"
    message = rf"8 tasks are queued: no worker of threads has connected to this process yet, at {hosts}\. .*"
    with (
        pool_of(site, workers=8) as pool,
        pytest.raises(CodedTimeoutError, match=message + r"Pool\(listen='host:port'\)"),
    ):
        polarmap.coded_map(np.negative, A, blocks=6, tasks=8, executor=pool, timeout=0.1)


def test_each_map_is_billed_since_the_previous_map(pool: Pool) -> None:
    bills, moments = [], []
    for _ in range(2):
        with closing(pool.open(JobSpec(np.negative, UncodedBlocks([[X]] * 2, ("array",))))) as run:
            run.submit([(0, 0), (1, 0)])
            first_ends(run, 2)
            moments.append(time.monotonic())
            bills.append(run.close())
            moments.append(time.monotonic())
    first, second = bills
    assert first is not None
    assert second is not None
    assert (first.n_started, second.n_started) == (2, 0)
    assert second.worker_seconds >= 2 * (moments[2] - moments[1])  # includes the time between the maps


@pytest.mark.parametrize("use", ["the array is stored in", "the results cannot be stored in"])
def test_unreachable_storage_is_refused_before_workers_start(use: str, pool: Pool, site: ThreadSite) -> None:
    far = BucketLocation("b", "far")
    blocks = UncodedBlocks([[X]], ("array",))
    if use == "the array is stored in":
        blocks.location = far  # type: ignore[misc]
    output = OutputSpec(far, "y", 100) if use == "the results cannot be stored in" else None
    site.reach = Reach("", "near")
    message = f"^{use} far bucket 'b', but this executor uses near: use"
    with pytest.raises(ExecutorError, match=message):
        pool.open(JobSpec(np.copy, blocks, output_spec=output))
    assert site.launches == []


def answer(call: Message, kind: bytes = MessageKind.TASK_REPLY, **fields: Any) -> Message:
    """Return the message by which a worker replies to a task message."""
    return Message(kind, call.attempt_key, **fields)


REPLY = tuple(TaskReply(None, 0.0, ("array",), (("<f8", (9,)),)))
# Each function receives a task message and returns an invalid reply to it.
NONSENSE: list[Callable[[Message], Message]] = [
    lambda call: Message(MessageKind.TASK_REPLY),
    lambda call: Message(MessageKind.HELLO, header=b"five"),
    lambda call: answer(call),
    lambda call: answer(call, header=b"no pickle"),
    lambda call: answer(call, header=pickle.dumps(5)),
    lambda call: answer(call, header=pickle.dumps(REPLY)),
    lambda call: answer(call, header=pickle.dumps(REPLY[:5])),
    lambda call: answer(call, header=pickle.dumps((7, *REPLY[1:])), data=bytes(72)),
    lambda call: answer(call, header=pickle.dumps(REPLY), data=bytes(72))._replace(attempt_key=(0, 99, 0)),
    lambda call: answer(call, data=b"0/../../etc/passwd", is_file=True),
    lambda call: answer(call, data=b"7", is_file=True),
    lambda call: answer(call, MessageKind.FETCH, header=b"0 8 x/99999"),
    lambda call: answer(call, MessageKind.FETCH, header=b"0 8 x"),
    lambda call: answer(call, MessageKind.FETCH, header=b"\xff"),
    lambda call: answer(call, MessageKind.CANCELLED)._replace(attempt_key=(99, 0, 0)),
]


@pytest.mark.parametrize("turn", range(len(NONSENSE) + 2))
def test_invalid_message_loses_only_its_worker(site: ThreadSite, pool: Pool, turn: int) -> None:
    def liar(address: Any, number: int, seconds: float) -> None:
        with closing(called(address, number)) as channel:
            while said := channel.receive(PATIENCE)[0]:
                if turn < len(NONSENSE):
                    channel.send(NONSENSE[turn](said[0]))
                elif turn == len(NONSENSE):
                    channel._connection.sendall(b"\x80\x04" * 100)
                else:
                    for _ in range(3):
                        channel.send(answer(said[0]))

    site.lives = {0: liar, 3: liar}
    check(pool)


def test_workers_that_send_only_invalid_messages_raise_one_clear_error(site: ThreadSite, pool: Pool) -> None:
    def liar(address: Any, number: int, seconds: float) -> None:
        with closing(called(address, number)) as channel:
            for call in channel.receive(PATIENCE)[0]:
                channel.send(answer(call))

    site.default = liar
    with pytest.raises((ExecutorError, NotDecodableError)):
        check(pool)


def test_block_is_sent_once_to_each_worker(site: ThreadSite, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    part = PublishedBlocks.read_component

    def counted(self: PublishedBlocks, coded: Any, key: str) -> bytes:
        asked.append(key)
        return part(self, coded, key)

    monkeypatch.setattr(PublishedBlocks, "read_component", counted)
    for module in (
        remote_workers,
        worker_pool,
    ):  # no worker is started in place of one with an abandoned task
        monkeypatch.setattr(module, "GRACE_SECONDS", 600.0)
    blocks = UncodedBlocks([[A[8 * task :][:8]] for task in range(6)], ("array",))
    with pool_of(site, workers=1) as pool:
        for _ in range(5):
            with closing(pool.open(JobSpec(np.negative, blocks))) as run:
                run.submit([(task, 0) for task in range(6)])
                assert [outcome.failure for outcome in first_ends(run, 6)] == 6 * [None]
    assert site.launches == [[0]]
    assert len(asked) == len(set(asked)) == 6


@pytest.mark.parametrize("is_kept", [False, True])
def test_blocks_of_an_unchanged_array_travel_once(site: ThreadSite, is_kept: bool) -> None:
    data = np.random.default_rng(0).standard_normal((6 * 40_000, 1))
    memory_limit = 2 * 8 * data.nbytes // 6 if is_kept else data.nbytes  # of eight blocks, or fewer

    def count_bytes() -> int:
        """Map the data, and return the bytes that all workers have received meanwhile."""
        before = sum(link.bytes_to_caller for link in links)
        y = polarmap.coded_map(np.sum, data, blocks=6, tasks=8, executor=pool, verify=False)
        np.testing.assert_allclose(list(y), data.reshape(6, -1).sum(axis=1), atol=1e-9)
        return sum(link.bytes_to_caller for link in links) - before

    with slow_links() as links, pool_of(site, workers=1, memory_limit=memory_limit) as pool:
        n_first_bytes = count_bytes()
        assert n_first_bytes >= data.nbytes
        # The worker has run the tasks of six blocks. The other two may be sent again, as they may have been
        # on their way when the map returned.
        assert (count_bytes() < 0.4 * data.nbytes) is is_kept
        assert (count_bytes() < 0.4 * data.nbytes) is is_kept
        data[:40_000] += 1.0  # in place: one block of data and the parity are new
        assert count_bytes() >= data.nbytes / 6


def test_backoff_is_at_most_one_minute() -> None:
    backoff = Backoff()
    for _ in range(2_000):
        backoff.record_failure("refused")
    assert not backoff.can_retry()
    assert backoff.n_failures == 2_000
    assert backoff._next_retry_at <= time.monotonic() + MAX_BACKOFF_SECONDS
