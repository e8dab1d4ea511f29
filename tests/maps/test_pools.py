"""Maps on any concurrent.futures pool: correct results, abandoned stragglers, and a pool that stays usable.

The pools are real threads, processes and Dask workers. The oracle is the plain map.
"""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from mapped_functions import (
    Summary,
    blas_threads,
    both,
    double,
    summary,
    tells_threads,
    wait_for,
    waits_at,
    writes,
)
from plain import assert_same, plain_map, process_pool

from polarmap import CodedOperator, coded_map, encode
from polarmap.errors import CodeError, ExecutorError, NotDecodableError
from polarmap.testing import Fault, FaultyExecutor
from polarmap.types import CodedResult
from polarmap.worker import future_tasks
from polarmap.worker.environment import count_available_cores

N, K, SLOTS = 8, 6, 4
DATA = np.random.default_rng(0).standard_normal((3 * K, 5))
POOLS = ["threads", "processes", "dask"]
PATIENCE = 50.0  # timeout of a test in seconds, far more than any test needs


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = left_behind()
    yield
    assert left_behind() <= before  # files of other tests may disappear meanwhile


def left_behind() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("polarmap-*"))


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(SLOTS) as pool:
        yield pool


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with process_pool(SLOTS) as pool:
        yield pool


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import distributed

    sizes = {"n_workers": 1, "threads_per_worker": SLOTS}
    options = {"processes": True, "dashboard_address": ":0", "memory_limit": 0}
    with distributed.LocalCluster(**sizes, **options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def dask(cluster: Any) -> Iterator[Executor]:
    with cluster.get_client() as client:
        yield client.get_executor()


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> Executor:
    chosen: Executor = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Yield the path of a file that is created when the test ends."""
    path = tmp_path / "open"
    yield path
    path.touch()


def coded(f: Callable[[Any], Any], pool: Any, data: Any = DATA, **options: Any) -> CodedResult:
    defaults = {"blocks": K, "tasks": N, "timeout": PATIENCE, "progress": False}
    return coded_map(f, data, executor=pool, **defaults | options)


def corners_of(*indices: int) -> tuple[float, ...]:
    return tuple(float(DATA[3 * index, 0]) for index in indices)


# --- results -----------------------------------------------------------------------------------


def scaled_by(scale: int) -> Callable[[Any], Any]:
    weights = np.arange(5.0)
    return lambda block: scale * (block @ weights)


BYTES = np.random.default_rng(0).integers(0, 256, (24, 7), dtype=np.uint8)
NESTED = [{"x": row, "pair": Summary(row[:2], float(row[0]))} for row in DATA]


@pytest.mark.parametrize(
    ("f", "data", "sizes"),
    [
        (summary, DATA, {}),
        (scaled_by(3), DATA, {}),
        (double, BYTES, {"tasks": 12}),
        (both, NESTED, {"blocks": None, "tasks": 20}),
    ],
)
def test_results_are_those_of_a_plain_map(
    pool: Executor, f: Callable[[Any], Any], data: Any, sizes: dict[str, Any]
) -> None:
    result = coded(f, pool, data, **sizes)
    assert_same(result, plain_map(f, data, K), 1e-10)
    name = type(pool).__name__
    assert result.report.executor == {"ClientExecutor": "Dask"}.get(name, name)
    assert all(task.seconds is not None and task.seconds >= 0 for task in result.report.tasks if task.arrived)


def test_two_maps_share_a_pool(pool: Executor) -> None:
    with ThreadPoolExecutor(2) as callers:
        results = callers.map(lambda which: coded(partial(np.multiply, which), pool), (2, 3))
        for which, result in zip((2, 3), results, strict=True):
            np.testing.assert_allclose(result.concatenate(), which * DATA)


def test_threads_share_the_data_and_cannot_write_into_it(threads: Executor) -> None:
    data = DATA.copy()

    def f(block: np.ndarray) -> np.ndarray:
        block *= 2
        return block

    with pytest.raises(ValueError, match="read-only"):
        coded(f, threads, data)
    np.testing.assert_array_equal(data, DATA)


# --- cached blocks ------------------------------------------------------------------------------

LARGE = np.random.default_rng(1).standard_normal((1_200, 300))  # blocks of half a megabyte


def test_stored_blocks_are_not_sent_and_read_once_per_process(tmp_path: Path) -> None:
    # A single process has cached all blocks that it needs after the first maps.
    data = encode(LARGE, name="a", blocks=K, tasks=N, storage=tmp_path, progress=False)
    with process_pool(1) as pool, CodedOperator(data, executor=pool) as operator:
        sent: list[int] = []
        submit = pool.submit

        def counted(call: Any, *arguments: Any) -> Any:
            sent.append(len(pickle.dumps(arguments)))
            return submit(call, *arguments)

        pool.submit = counted  # type: ignore[method-assign]
        x = np.ones(300)
        for _ in range(3):
            np.testing.assert_allclose(operator @ x, LARGE @ x, atol=1e-9)
        before = pool.submit(reads).result(PATIENCE)
        for _ in range(5):
            np.testing.assert_allclose(operator @ x, LARGE @ x, atol=1e-9)
        assert pool.submit(reads).result(PATIENCE) - before <= N - K  # blocks that no earlier map needed
        assert max(sent) < 10_000


def reads() -> int:
    """Return how many blocks this process has mapped or read."""
    return future_tasks.get_shared_block_cache().n_reads


@pytest.mark.parametrize("pool", ["processes", "dask"], indirect=True)
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_function_that_modifies_its_block_does_not_affect_the_next_map(
    pool: Executor, kind: str, tmp_path: Path
) -> None:
    data: Any = LARGE
    if kind == "folder":
        data = encode(LARGE, name="a", blocks=K, tasks=N, storage=tmp_path, progress=False)
    for _ in range(3):
        assert_same(coded(writes, pool, data), plain_map(double, LARGE, K), 1e-11)


# --- threads of BLAS ---------------------------------------------------------------------------


def test_each_task_uses_its_share_of_cores_and_restores_the_limit(pool: Executor, gate: Path) -> None:
    # Task 1 is a straggler that continues after the map.
    with threadpoolctl.threadpool_limits(64):
        here = blas_threads()
        result = coded(partial(tells_threads, gate, corners_of(1)), pool, tasks=12, verify=False)
        assert blas_threads() == here
    share = (
        max(1, count_available_cores() // SLOTS) if not type(pool).__module__.startswith("distributed") else 1
    )
    np.testing.assert_allclose(result.concatenate(), share, rtol=1e-6)


# --- stragglers --------------------------------------------------------------------------------


def test_stragglers_are_abandoned_and_their_pool_stays_usable(pool: Executor, gate: Path) -> None:
    # In each of two maps, the stragglers take all slots but one.
    for _ in range(2):
        options = {"tasks": 12, "verify": False}
        result = coded(partial(waits_at, gate, corners_of(0, 1, 2)), pool, **options)
        assert_same(result, plain_map(double, DATA, K), 1e-9)
        assert {0, 1, 2} <= {*result.report.recovered}  # on a busy machine, further tasks may be late
        assert result.report.tasks[1].state == "abandoned"
        assert not gate.exists()
    assert [future.result(PATIENCE) for future in [pool.submit(abs, -i) for i in range(9)]] == [*range(9)]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_the_interpreter_exits_without_waiting_for_a_straggler(kind: str) -> None:
    pool = "ThreadPoolExecutor" if kind == "threads" else "ProcessPoolExecutor"
    script = f"""
import concurrent.futures, time
import numpy as np, polarmap

def main():
    pool = concurrent.futures.{pool}(3)
    faulty = polarmap.testing.FaultyExecutor(pool, {{0: polarmap.testing.Fault("sleep", seconds=600)}})
    result = polarmap.coded_map(np.sum, np.ones((6, 2)), blocks=3, tasks=5, executor=faulty)
    print([round(float(total), 9) for total in result], 0 in result.report.recovered)

if __name__ == "__main__":
    main()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert run.stdout == "[4.0, 4.0, 4.0] True\n", run.stderr
    assert run.returncode == 0


# --- failures ----------------------------------------------------------------------------------


def test_error_says_that_a_killed_process_breaks_its_pool() -> None:
    with process_pool(1) as pool:
        with pytest.raises(
            NotDecodableError, match=r"of 6 needed.*a process died.*breaks a Process.*Leave executor= out"
        ):
            coded(double, FaultyExecutor(pool, {0: Fault("kill")}))
        with pytest.raises(ExecutorError, match=r"ProcessPoolExecutor accepts no tasks: a process died"):
            coded(double, pool)


def test_a_pool_that_is_shut_down_is_refused() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(ExecutorError, match="ThreadPoolExecutor accepts no tasks: cannot schedule"):
        coded(double, pool)


def test_map_completes_without_the_tasks_that_a_shutdown_cancels(tmp_path: Path, gate: Path) -> None:
    pool = CountingThreads(3)
    closing = threading.Thread(target=shut_down, args=(pool, tmp_path, gate))
    closing.start()
    result = coded(partial(begins_and_waits, tmp_path, gate), pool, blocks=3, verify=False)
    closing.join()
    assert_same(result, plain_map(double, DATA, 3), 1e-11)
    assert [task.failures for task in result.report.tasks[3:]] == 5 * [
        ("WorkerLost: CountingThreads was shut down, or cancelled the task before it started",)
    ]


def begins_and_waits(folder: Path, gate: Path, block: Any) -> Any:
    (folder / f"{block[0, 0]}.begun").touch()
    wait_for(gate)
    return double(block)


class CountingThreads(ThreadPoolExecutor):
    """A thread pool that counts the submitted tasks."""

    given = 0

    def submit(self, *call: Any, **named: Any) -> Any:
        future = super().submit(*call, **named)
        self.given += 1
        return future


def shut_down(pool: Any, folder: Path, gate: Path) -> None:
    """Shut down the pool once all tasks are submitted and three have started, then let these three finish."""
    while pool.given < N or len(list(folder.glob("*.begun"))) < 3:
        time.sleep(0.01)
    pool.shutdown(wait=False, cancel_futures=True)
    gate.touch()


def fails_to_begin() -> None:
    raise ValueError("no licence")


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_failing_initializer_raises_one_clear_error(kind: str) -> None:
    pool: Executor = ThreadPoolExecutor(2, initializer=fails_to_begin)
    if kind == "processes":
        context = multiprocessing.get_context("forkserver")
        pool = ProcessPoolExecutor(1, mp_context=context, initializer=fails_to_begin)
    with pool, pytest.raises((NotDecodableError, ExecutorError), match="initializer"):
        coded(double, pool, blocks=2, tasks=3)


class Refusing(ThreadPoolExecutor):
    """A thread pool that refuses tasks after the first four."""

    left = 4

    def submit(self, *call: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("quota exceeded")
        return super().submit(*call, **named)


def test_pool_that_refuses_some_tasks_raises_one_clear_error() -> None:
    with Refusing(4) as pool, pytest.raises(NotDecodableError, match=r"4 tasks: WorkerLost.*quota exceeded"):
        coded(double, pool)


def test_unpicklable_function_is_refused(processes: Executor) -> None:
    lock = threading.Lock()

    def f(block: Any) -> Any:
        with lock:
            return double(block)

    with pytest.raises(CodeError, match=r"f cannot be pickled.*lock"):
        coded(f, processes)
