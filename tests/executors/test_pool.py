"""Pool: maps on persistent workers, with real processes."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import time
import weakref
from collections import namedtuple
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting_store import Least
from memory_storage import DictStorage
from plain import first_ends
from pool_processes import (
    PATIENCE,
    A,
    X,
    assert_nothing_is_left,
    check,
    descendants,
    folders,
    leave_out_others,
    program,
    runs,
    until,
    workers_of,
)
from slow_links import slow_links
from worker_sites import ThreadSite, pool_of, sent_parts, serving_by_storage

import polarmap
from polarmap import CodedOperator, Pool
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.block_store import MemoryMappedBlockStore
from polarmap.executors.interface import JobSpec
from polarmap.executors.local_workers import MAX_ABANDONED_WORKERS, N_SPARE_WORKERS
from polarmap.linalg.adaptive_parity import AdaptiveParitySchedule
from polarmap.storage.folder import FolderStore
from polarmap.testing import Fault, FaultyExecutor
from polarmap.worker import storage_channel
from polarmap.worker.blas_threads import THREAD_LIMIT_VARIABLES
from polarmap.worker.environment import count_available_cores

MARGIN = 20 << 20  # bytes, the tolerance for the memory of a process


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def shared() -> Iterator[Pool]:
    """Yield one pool for all tests that leave its workers unchanged."""
    with Pool() as shared_pool:
        yield shared_pool


def product(block: Any) -> Any:
    return block @ X


# --- persistent workers ----------------------------------------------------------------------------


def test_workers_persist_between_maps(shared: Pool) -> None:
    first = workers_of(shared)
    assert os.getpid() not in first
    assert check(shared).report.executor == "processes here"
    assert workers_of(shared)
    assert all(map(runs, first))  # the first workers still run, even if not all of them were needed


def test_maps_without_an_executor_share_one_pool_until_it_is_shut_down() -> None:
    first = workers_of(None)
    assert workers_of(None) and all(map(runs, first))
    polarmap.shutdown()
    assert until(lambda: not any(map(runs, first)))
    assert not workers_of(None) & first
    check()


def test_blocks_may_contain_classes_of_no_module(shared: Pool) -> None:
    local = namedtuple("local", "a b")  # type: ignore[misc]
    data = [local(np.full(3, float(number)), np.arange(2)) for number in range(4)]
    result = polarmap.coded_map(lambda block: block._replace(a=2 * block.a), data, tasks=6, executor=shared)
    for number, value in enumerate(result):
        assert type(value) is local
        np.testing.assert_allclose(value.a, 2 * data[number].a)


def test_each_task_gets_its_original_block(shared: Pool) -> None:
    blocks = UncodedBlocks([[np.full(100_000, float(task))] for task in range(4)], ("array",))

    def spoil(block: Any) -> Any:
        before = block.copy()
        block += 1.0
        return before

    for _ in range(3):
        with closing(shared.open(JobSpec(spoil, blocks))) as run:
            run.submit([(task, 0) for task in range(4)])
            for outcome in first_ends(run, 4):
                np.testing.assert_array_equal(outcome.leaves[0], blocks.block_leaves(outcome.task)[0])


def test_blocks_that_exceed_the_memory_are_stored_on_disk() -> None:
    with Pool(memory_limit=100) as pool:
        check(pool)
        data = UncodedBlocks([[np.zeros(4000)], [np.zeros(4000)]], ("array",))
        with closing(pool.open(JobSpec(product, data))) as run:
            run.submit([(0, 0)])
            places = [path for folder in folders(os.getpid()) for path in folder.glob("blocks-*")]
        assert places
        assert not any(path.is_relative_to("/dev/shm") for path in places)


def test_workers_have_the_environment_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def around(block: Any) -> Any:
        return os.getcwd(), os.environ.get("POLARMAP_TEST", ""), os.environ["OPENBLAS_NUM_THREADS"]

    with Pool(threads_per_worker=3) as pool:
        polarmap.hedged_map(around, [X], executor=pool)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("POLARMAP_TEST", "yes")
        [environment] = polarmap.hedged_map(around, [X], executor=pool)
    assert environment == (str(tmp_path), "yes", "3")


def test_workers_do_not_draw_the_same_numbers(shared: Pool) -> None:
    def draw(block: Any) -> Any:
        time.sleep(0.2)
        return float(os.getpid()), float(np.random.random())  # noqa: NPY002

    drawn = dict(polarmap.hedged_map(draw, [X] * 8, executor=shared))
    assert len(drawn) > 1
    assert len(set(drawn.values())) == len(drawn)


def test_tasks_that_sleep_do_not_keep_others_from_starting(shared: Pool, tmp_path: Path) -> None:
    def nap(item: int) -> int:
        """Sleep until more calls sleep than four workers can run at a time."""
        (tmp_path / str(item)).touch()
        deadline = time.monotonic() + PATIENCE
        while len(os.listdir(tmp_path)) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        return len(os.listdir(tmp_path))

    assert min(polarmap.hedged_map(nap, range(32), executor=shared, backups=0)) >= 8


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("cloud.yaml", "the Lithops configuration .cloud.yaml. does not exist"),
        (ThreadPoolExecutor(1), "as executor= of the map"),
        (ThreadPoolExecutor, "is a class: pass an instance"),
        (3, r"executor=3 is a number, not an executor: for 3 workers, use Pool\(workers=3\)"),
    ],
)
def test_executors_without_persistent_workers_are_refused(executor: Any, message: str) -> None:
    with pytest.raises(ExecutorError, match=message):
        Pool(executor)


def test_closed_pool_raises_a_clear_error(pool: Pool) -> None:
    check(pool)
    pool.close()
    pool.close()
    with pytest.raises(ExecutorError, match="closed"):
        check(pool)


def test_unpicklable_f_is_named(shared: Pool) -> None:
    lock = threading.Lock()
    with pytest.raises(CodeError, match="pickled for processes here"):
        polarmap.coded_map(lambda block: (lock, block)[1], A, executor=shared)
    check(shared)


# --- failures, idle pools and locks ----------------------------------------------------------------


def test_tasks_that_hang_are_erasures_and_their_workers_are_replaced(shared: Pool) -> None:
    for _ in range(30):
        check(FaultyExecutor(shared, {1: Fault("sleep", 600), 3: Fault("sleep", 600)}))
    assert len(workers_of(shared)) <= 8
    assert len(descendants(os.getpid())) < 40


def test_pool_survives_the_end_of_its_fork_server(pool: Pool) -> None:
    workers = workers_of(pool)
    parents = {
        int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[1])
        for process_id in workers
    }
    [server] = parents
    os.kill(server, signal.SIGKILL)
    assert until(lambda: not any(map(runs, workers)), 5.0)
    check(pool)


def test_idle_pool_stops_its_workers_and_starts_new_ones() -> None:
    with Pool(idle_timeout=0.2) as pool:
        before = threading.active_count()
        first, kept = workers_of(pool), weakref.ref(pool._executor._resources)  # type: ignore[arg-type]
        assert until(lambda: not any(map(runs, first)))
        assert until(lambda: threading.active_count() <= before)
        check(pool)
        gc.collect()
        assert kept() is None


def test_idle_workers_end_even_if_their_provider_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: object, **options: object) -> dict[int, str]:
        raise ConnectionError("the site is away")

    monkeypatch.setattr("polarmap.executors.persistent_executor.LIVENESS_INTERVAL", 0.05)
    site = ThreadSite()
    with pool_of(site, workers=2, idle_timeout=0.3) as pool:
        check(pool)
        site.collect_exited_workers = site.launch_workers = away  # type: ignore[method-assign]
        assert until(lambda: site.is_closed)


def test_close_waits_until_an_idle_pool_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    others = set(folders(os.getpid()))
    with Pool(idle_timeout=0.1) as pool:
        check(pool)
        assert pool._executor._resources is not None
        begun, go, end = threading.Event(), threading.Event(), pool._executor._resources.worker_pool.close
        monkeypatch.setattr(
            pool._executor._resources.worker_pool, "close", lambda: (begun.set(), go.wait(PATIENCE), end())
        )
        assert begun.wait(PATIENCE)
        closer = threading.Thread(target=pool.close)
        closer.start()
        closer.join(0.2)
        assert closer.is_alive()
        go.set()
        closer.join(PATIENCE)
        assert not closer.is_alive()
        assert set(folders(os.getpid())) <= others


def test_stop_workers_does_not_end_workers_of_a_later_map(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MapsWhenItIsLeft:
        """The lock of a pool that runs a map on another thread when it is first released."""

        def __init__(self) -> None:
            self.lock, self.turns = threading.Lock(), 0

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *error: object) -> None:
            self.lock.release()
            self.turns += 1
            if self.turns == 1:
                with ThreadPoolExecutor(1) as threads:
                    threads.submit(check, pool).result(PATIENCE)

    first = workers_of(pool)
    monkeypatch.setattr(pool._executor, "_lock", MapsWhenItIsLeft())
    pool.stop_workers()
    resources = pool._executor._resources
    assert resources is not None
    assert not resources._is_closed.is_set()
    assert until(lambda: not any(map(runs, first)))


def test_session_can_be_closed_while_all_locks_are_held(pool: Pool) -> None:
    run = pool.open(JobSpec(product, UncodedBlocks([[X]], ("array",))))
    resources = pool._executor._resources
    assert resources is not None

    def close() -> None:
        with resources._lock, resources._block_store.lock, resources.worker_pool._lock:
            run.close()

    closer = threading.Thread(target=close, daemon=True)
    closer.start()
    closer.join(PATIENCE)
    assert not closer.is_alive()


def test_hanging_garbage_collection_does_not_delay_other_maps(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(store: MemoryMappedBlockStore, roots: Sequence[str]) -> None:
        if list(roots) == ["away/"]:
            hangs.set()
            assert go.wait(PATIENCE)
        else:
            usual(store, roots)

    usual, hangs, go = MemoryMappedBlockStore.remove_segments_below, threading.Event(), threading.Event()
    monkeypatch.setattr(MemoryMappedBlockStore, "remove_segments_below", remove)
    check(pool)
    resources = pool._executor._resources
    assert resources is not None
    resources._block_store.garbage_prefixes.append("away/")
    with ThreadPoolExecutor(3) as threads:
        blocked_map = threads.submit(check, pool)
        try:
            assert hangs.wait(PATIENCE)
            threads.submit(check, pool).result(PATIENCE / 2)
            threads.submit(pool.stop_workers).result(PATIENCE / 2)
        finally:
            go.set()
        blocked_map.exception(PATIENCE)  # the map may fail, because its workers were stopped
    assert resources._block_store.garbage_prefixes == []


def test_unneeded_workers_end_before_the_idle_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("polarmap.executors.persistent_executor.LIVENESS_INTERVAL", 0.2)
    monkeypatch.setattr("polarmap.executors.local_workers.SPARE_WORKER_IDLE_SECONDS", 0.2)
    monkeypatch.setattr("polarmap.executors.local_workers.GRACE_SECONDS", 0.0)

    def nap(block: Any) -> Any:
        time.sleep(0.5)
        return float(os.getpid())

    others = set(descendants(os.getpid()))  # the processes of earlier tests
    with Pool(idle_timeout=600) as pool:
        process_ids = polarmap.hedged_map(nap, [X] * 32, executor=pool)
        assert len(set(process_ids)) > 4
        check(FaultyExecutor(pool, {1: Fault("sleep", 600), 3: Fault("sleep", 600)}))
        max_workers = 1 + N_SPARE_WORKERS + count_available_cores()
        assert until(lambda: len(set(descendants(os.getpid())) - others) <= max_workers)
        check(pool)


def test_maps_leak_no_memory_descriptors_or_threads() -> None:
    leave_out_others()
    with Pool() as pool:
        for _ in range(20):
            check(pool)
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        memory = max(map(resident, [os.getpid(), *descendants(os.getpid())]))
        for _ in range(200):
            check(pool)
        assert max(map(resident, [os.getpid(), *descendants(os.getpid())])) < memory + MARGIN
        assert not [
            path for folder in folders(os.getpid()) for path in folder.iterdir() if path.name != "owner"
        ]
        # Each worker has a socket, and workers with abandoned tasks have been replaced by further workers.
        assert len(os.listdir("/proc/self/fd")) <= before[0] + MAX_ABANDONED_WORKERS
        assert until(lambda: threading.active_count() <= before[1])


def resident(process: int) -> int:
    """Return the resident memory of a process in bytes, or 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


LEAVE = """
import threading
A, x = np.random.rand(48, 5), np.ones(5)
def hang():
    polarmap.coded_map(lambda block: time.sleep(600), A, blocks=6, tasks=8)
def leave_while(other):
    threading.Thread(target=other, daemon=True).start()
    time.sleep(0.2)
    sys.exit(3)
ways = {
    "exception": lambda: 1 / 0,
    "exit beside a map": lambda: leave_while(hang),
    "os._exit in a map": lambda: (threading.Timer(0.2, os._exit, [3]).start(), hang()),
}
polarmap.coded_map(lambda block: block @ x, A, blocks=6, tasks=8)
print("ready", flush=True)
ways.get(sys.argv[1], hang)()
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("exception", 1),
        ("exit beside a map", 3),
        ("os._exit in a map", 3),
        (signal.SIGINT, -signal.SIGINT),
        # SIGTERM ends Python without any cleanup, like an abort or a closed terminal.
        (signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_workers_and_files_end_with_their_driver(ending: str | signal.Signals, code: int) -> None:
    with program(LEAVE, str(ending)) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        others = descendants(driver.pid)
        if isinstance(ending, signal.Signals):
            driver.send_signal(ending)
        assert driver.wait(PATIENCE) == code
        assert_nothing_is_left(driver.pid, others)


def test_localhost_means_lithops_and_the_default_means_local_processes() -> None:
    def has_lithops(block: Any) -> bool:
        import sys

        return any(name.startswith("lith") for name in sys.modules)

    for choice, is_here in ((None, True), ("localhost", False), (YAML, False)):
        with Pool(choice, workers=1) as pool:
            (has_imported,) = polarmap.hedged_map(has_lithops, [X], executor=pool)
            assert (pool.executor, pool.is_local, bool(has_imported)) == (choice, is_here, not is_here)


@pytest.mark.parametrize("is_here", [False, True])
def test_folders_are_made_only_for_workers_that_share_files(
    is_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> Any:
        raise ExecutorError("no room")

    site = ThreadSite()
    site.shares_files = is_here
    monkeypatch.setattr("polarmap.executors.persistent_executor.make_temp_folder", full)
    with pool_of(site, workers=2) as pool:
        if is_here:
            with pytest.raises(ExecutorError, match="no room"):
                check(pool)
            assert site.is_closed
        else:
            check(pool)


@pytest.mark.parametrize("is_where_they_are", [True, False])
def test_blocks_are_mapped_by_local_workers_and_sent_to_remote_ones(
    is_where_they_are: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = sent_parts(monkeypatch)
    if not is_where_they_are:
        monkeypatch.setattr("polarmap.worker.persistent_worker.is_in_private_folder", lambda path: False)
    site = ThreadSite()
    site.shares_host = True
    A = np.random.default_rng(0).standard_normal((4000, 20))
    with pool_of(site, workers=2) as pool, CodedOperator(A, blocks=4, tasks=6, executor=pool) as operator:
        for _ in range(3):
            np.testing.assert_allclose(operator @ np.ones(20), A.sum(axis=1), atol=1e-12)
            np.testing.assert_allclose(operator.T @ np.ones(4000), A.sum(axis=0), atol=1e-11)
    assert bool(sent) != is_where_they_are
    assert len(sent) == len(set(sent))  # workers cache the blocks that they receive


@pytest.mark.parametrize("is_where_they_are", [True, False])
def test_workers_that_are_near_map_a_large_operand_and_others_are_sent_it(
    is_where_they_are: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_where_they_are:
        monkeypatch.setattr("polarmap.worker.persistent_worker.is_in_private_folder", lambda path: False)
    site = ThreadSite()
    site.shares_host = True
    A, columns = np.random.default_rng(0).standard_normal((60, 500)), np.eye(500)
    with (
        slow_links() as links,
        pool_of(site, workers=2) as pool,
        CodedOperator(A, blocks=2, tasks=3, executor=pool) as operator,
    ):
        for factor in (1.0, 2.0):
            before = sum(link.bytes_to_caller for link in links)
            np.testing.assert_allclose(operator @ (factor * columns), factor * A, atol=1e-12)
            n_received = sum(link.bytes_to_caller for link in links) - before
            assert (n_received < columns.nbytes) is is_where_they_are
        folders = pool._executor._resources._folders  # type: ignore[union-attr]
        assert not [path for folder in folders for path in folder.rglob("function")]  # removed with its map


@pytest.mark.parametrize("is_here", [True, False])
def test_parity_of_products_waits_for_late_data_where_all_workers_are_on_this_machine(
    is_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = list[float]()
    monkeypatch.setattr(
        AdaptiveParitySchedule,
        "record_product",
        lambda self, seconds, needed: observed.append(seconds),
    )
    site = ThreadSite()
    site.shares_host = is_here
    A = np.random.default_rng(0).standard_normal((60, 20))
    with pool_of(site, workers=2) as pool:
        faulty = FaultyExecutor(pool, {})
        with CodedOperator(A, blocks=4, tasks=6, executor=faulty) as operator:
            for count in range(1, 4):
                np.testing.assert_allclose(operator @ np.ones(20), A.sum(axis=1), atol=1e-12)
                assert len(observed) == (count if is_here else 0)


# --- workers with limited run time -----------------------------------------------------------------

YAML = Path(__file__).resolve().parents[2] / "config" / "localhost.yaml"


def test_workers_are_replaced_before_their_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def nap(block: Any) -> Any:
        """Sleep, so that the driver does not run maps in a busy loop, and return the process id."""
        time.sleep(0.1)
        return os.getpid(), block

    monkeypatch.setattr("polarmap.executors.lithops.LOCAL_WORKER_SECONDS", 5.0)
    monkeypatch.setattr("polarmap.executors.persistent_executor.LIVENESS_INTERVAL", 0.1)
    seen: list[set[int]] = []
    with Pool(YAML, workers=2) as pool:
        deadline = time.monotonic() + 60.0
        while not seen or seen[0] & seen[-1]:  # Wait until all first workers were replaced.
            assert time.monotonic() < deadline
            results = polarmap.hedged_map(nap, [X] * 2, executor=pool)
            seen.append({process for process, _ in results})
            for _, block in results:
                np.testing.assert_array_equal(block, X)
    assert max(map(len, seen)) <= 2


@pytest.mark.parametrize("threads", [1, 2])
def test_remote_workers_limit_their_blas_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers of earlier tests that were threads of this process have set these variables.
    for name in THREAD_LIMIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def threads_of_blas(block: Any) -> Any:
        import threadpoolctl

        return [
            library["num_threads"]
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"
        ]

    with Pool(YAML, workers=2, threads_per_worker=threads) as pool:
        thread_counts = polarmap.hedged_map(threads_of_blas, [X] * 2, executor=pool)
    assert {number for numbers in thread_counts for number in numbers} == {min(threads, os.cpu_count() or 1)}


def test_a_pool_prints_where_its_workers_are_and_how_many() -> None:
    with Pool(workers=2) as pool:
        assert repr(pool) == "<Pool: processes here, no workers running, at most 2>"
        polarmap.hedged_map(abs, [1, 2, 3], executor=pool)
        match = re.fullmatch(
            r"<Pool: processes here, (\d) workers running, (\d) busy, at most 2>", repr(pool)
        )
        assert match is not None
        assert 1 <= int(match[1]) <= 2
        assert int(match[2]) <= int(match[1])
    assert repr(pool) == "<Pool: processes here, closed, at most 2>"
    assert repr(Pool()) == "<Pool: processes here, no workers running>"


@pytest.mark.parametrize("option", ["tcp_timeout", "fetch_timeout"])
@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), "11", None])
def test_timeouts_must_be_positive(option: str, seconds: Any) -> None:
    options: Any = {option: seconds}
    with pytest.raises(CodeError, match=f"{option} must be a number above 0"):
        Pool(**options)


@pytest.mark.parametrize("storage", [None, DictStorage()], ids=["TCP", "objects"])
def test_remote_workers_read_a_user_store_through_the_driver(
    storage: DictStorage | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, store = np.arange(80.0).reshape(40, 2), Least(FolderStore(tmp_path))
    coded = polarmap.encode(A, blocks=4, tasks=6, name="a", storage=store, memory=1 << 20)
    site = ThreadSite()
    if storage is not None:
        site.storage, site.bucket, site.default = storage, "b", serving_by_storage(storage)
        monkeypatch.setattr(storage_channel, "MAX_POLL_INTERVAL", 0.05)
    with pool_of(site, workers=2, listen=storage is None) as pool:
        for _ in range(2):
            y = polarmap.coded_map(np.copy, coded, executor=pool)
            np.testing.assert_allclose(y.concatenate(), A, atol=1e-9)
