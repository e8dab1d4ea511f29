"""Calls and persistent workers on a real Ray cluster on this machine, where some sleep or are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray_clusters
from pool_processes import PATIENCE, A, X, check, runs, until, workers_of
from ray_clusters import CPUS

import polarmap
from polarmap import Pool, coded_map
from polarmap.errors import ExecutorError
from polarmap.executors.ray import (
    RayEngine,
    hide_native_stack_traces,
    remove_native_stack_traces,
)
from polarmap.executors.worker_listener import is_every_host_local
from polarmap.worker.worker_entry import DriverAddress

try:
    import ray
except ImportError:  # `make test-engines` installs it
    ray = None
# Ray leaves files and sockets open for the garbage collector to close.
leaves_open = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.engines, leaves_open]
SLOW = 300.0  # seconds, enough to start a Ray cluster on a busy machine


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    with ray_clusters.ends_with_it(ray):
        yield


@pytest.fixture
def cluster() -> Any:
    """Start a Ray cluster on this machine, and return the module of Ray."""
    ray_clusters.start(ray)
    return ray


@pytest.fixture
def pool(cluster: Any) -> Iterator[Pool]:
    with Pool(cluster, workers=4) as pool:
        yield pool


def first_to_come(folder: Path, count: int) -> bool:
    """Return whether this is one of the first `count` calls with this folder."""
    for number in range(count):
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


def sleeps_or_dies(folder: Path, asleep: int, block: np.ndarray) -> np.ndarray:
    """Return block @ X, but sleep first in `asleep` calls, and kill the process in the call after them."""
    if first_to_come(folder, asleep):
        time.sleep(SLOW)
    return dies(folder, asleep + 1, block)


def dies(folder: Path, count: int, block: np.ndarray) -> np.ndarray:
    """Return block @ X, but kill the process in the first `count` calls."""
    if first_to_come(folder, count):
        os.kill(os.getpid(), signal.SIGKILL)
    return block @ X


@pytest.mark.parametrize("options", [{}, {"num_cpus": 0.5}])
def test_single_maps_run_as_ray_tasks(cluster: Any, options: dict[str, Any]) -> None:
    y = coded_map(
        partial(np.multiply, 2), A, blocks=6, tasks=8, executor=ray.remote(**options) if options else ray
    )
    np.testing.assert_allclose(y.concatenate(), 2 * A)
    assert y.report.executor == "Ray"
    assert until(lambda: ray.available_resources().get("CPU") == CPUS)


@pytest.mark.parametrize("keeps", [False, True])
def test_sleeping_and_killed_tasks_are_not_awaited_and_free_their_slots(
    cluster: Any, keeps: bool, tmp_path: Path
) -> None:
    executor = Pool(cluster, workers=5) if keeps else ray.remote(num_cpus=0.25)
    f = partial(sleeps_or_dies, tmp_path, 2)
    y = coded_map(f, A, blocks=4, tasks=8, executor=executor, verify=False)
    np.testing.assert_allclose(y.concatenate(), A @ X)
    if keeps:
        executor.close()
    assert until(lambda: ray.available_resources().get("CPU") == CPUS)
    assert until(lambda: ray.util.list_named_actors() == [])


def test_all_maps_run_on_named_actors_which_end_with_the_pool(cluster: Any) -> None:
    with Pool(cluster, workers=4) as pool:
        result = check(pool)
        assert result.report.executor == "persistent workers on Ray (TCP)"
        assert workers_of(pool).isdisjoint({os.getpid()})
        with polarmap.CodedOperator(A, blocks=3, tasks=4, executor=pool) as operator:
            np.testing.assert_allclose(operator @ X, A @ X)
        assert list(polarmap.hedged_map(len, [[1], [2, 3]], executor=pool)) == [1, 2]
        names = ray.util.list_named_actors()
        assert names
        assert all(name.startswith("polarmap worker ") for name in names)
        assert ray.get(ray.remote(lambda: 5).remote()) == 5  # the actors occupy no CPU slots of the cluster
    assert until(lambda: ray.util.list_named_actors() == [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray itself causes these warnings
@pytest.mark.parametrize("keeps", [False, True])
def test_rows_of_a_dataset_are_partitioned_on_the_cluster(cluster: Any, keeps: bool) -> None:
    data = pytest.importorskip("ray.data", reason="of ray[data]")
    data.DataContext.get_current().enable_progress_bars = False
    with Pool(cluster, workers=4) if keeps else nullcontext(cluster) as executor:
        y = coded_map(np.negative, data.from_numpy(A).repartition(5), executor=executor)
        np.testing.assert_allclose(y.concatenate(), -A)
        table = data.from_items([{"a": float(row), "b": 1.0} for row in range(10)])
        y = coded_map(np.negative, table, blocks=4, executor=executor)
        np.testing.assert_allclose(y.concatenate(), [[-float(row), -1] for row in range(10)], atol=1e-12)


def test_killed_actor_is_named_and_replaced(pool: Pool, tmp_path: Path) -> None:
    check(pool)
    before = workers_of(pool)
    # With three of eight results missing, the map cannot decode, so it has to notice the lost workers.
    result = check(pool, partial(dies, tmp_path, 3), verify=False, retries=3)
    assert "(Ray actor 'polarmap worker " in str(result.report)
    assert until(lambda: not all(map(runs, before)) or bool(workers_of(pool) - before))
    check(pool)


def test_cluster_that_ends_while_actors_start_is_reported_as_shut_down(cluster: Any) -> None:

    def remote(actor: Any) -> Any:
        ray.shutdown()
        return ray.remote(actor)

    site = RayEngine(remote)
    with pytest.raises(ExecutorError, match="cannot start actors: it was shut down"):
        site.launch_workers(DriverAddress((), b"", None, "", 1, 1), {0: 1.0})
    assert not ray.is_initialized()


def test_shutdown_waits_while_a_task_is_submitted(cluster: Any) -> None:
    engine = RayEngine(ray)
    with ThreadPoolExecutor(1) as threads:
        with engine.prevent_shutdown():
            ending = threads.submit(ray.shutdown)
            assert ray.get(ray.remote(lambda: 5).remote()) == 5
            assert not ending.done()
        ending.result(PATIENCE)
    with pytest.raises(RuntimeError, match="it was shut down"), engine.prevent_shutdown():
        raise AssertionError("it is gone")


def hang(block: Any) -> Any:
    time.sleep(SLOW)


def wait_long(number: int) -> None:
    for _ in range(10 * int(SLOW)):  # Ray does not interrupt one long sleep
        time.sleep(0.1)


def test_no_task_is_cancelled_while_it_ends(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray aborts this process if a task is cancelled while it ends.
    cancelled: list[Any] = []
    calls, cancel, are_left = RayEngine(ray), ray.cancel, threading.Event()
    monkeypatch.setattr(ray, "cancel", lambda reference: cancelled.append(reference) or cancel(reference))
    monkeypatch.setattr("polarmap.executors.ray.time", SimpleNamespace(sleep=lambda _: are_left.wait(SLOW)))
    futures = [calls.submit(call, 1) for call in (lambda number: number, wait_long)]
    assert [future.cancel() for future in futures] == [True, True]
    short, long = calls._abandoned_refs
    assert ray.get(short) == 1
    assert cancelled == []
    are_left.set()
    assert until(lambda: cancelled == [long])
    assert until(lambda: ray.available_resources().get("CPU") == CPUS)


@pytest.mark.parametrize("place", [lambda address: address, Pool])
def test_an_address_connects_unless_this_process_is_connected(
    cluster: Any, place: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "ray://no.such.host.invalid:10001"
    executor = place(address)
    np.testing.assert_allclose(coded_map(np.negative, A, executor=executor).concatenate(), -A)
    addresses: list[str] = []

    def refuse(address: str) -> None:
        addresses.append(address)
        raise ConnectionError("connection timeout")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ExecutorError, match=f"no Ray answers at {address}: connection timeout"):
        coded_map(np.negative, A, executor=place(address))
    assert addresses == [address]


@pytest.mark.parametrize("executor", [lambda: ray, lambda: Pool(ray)])
def test_shutdown_during_a_map_raises_one_clear_error_and_starts_no_cluster(
    cluster: Any, executor: Callable[[], Any]
) -> None:
    began = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        map_on: Any = partial(polarmap.hedged_map, hang, [A] * 2, executor=executor())
        running = threads.submit(lambda: began.set() or map_on())
        assert began.wait(SLOW)
        assert until(lambda: ray.available_resources().get("CPU", 0) < CPUS or ray.util.list_named_actors())
        ray.shutdown()
        shut_down = r"^Ray (cannot start actors|starts no worker|(runs|accepts) no tasks): it was shut down"
        with pytest.raises(ExecutorError, match=shut_down):
            running.result(PATIENCE)
    with pytest.raises(ExecutorError, match=r"ray\.init"):
        coded_map(np.negative, A, executor=ray)
    with pytest.raises(ExecutorError, match=r"ray\.init"):
        RayEngine(ray)
    assert not ray.is_initialized()


def test_native_stack_trace_of_a_raylet_is_not_printed() -> None:
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    message = (
        "[2026-12-01 08:00:00,000 C 71 71] (raylet) node_manager.cc:519: GCS consider this node to be dead."
    )
    trace = [
        "*** StackTrace Information ***",
        "/ray/core/src/ray/raylet/raylet(+0x5c0a2a) [0x55d3a86b5a2a] ray::operator<<()",
        "[2026-12-01 08:00:00,000 E 71 71] logging.cc:474: *** SIGABRT received on cpu 1 ***",
        "[2026-12-01 08:00:00,000 E 71 71] logging.cc:474:     @     0x7f1cb004bd70  (unknown)  (unknown)",
        "PC: @     0x7f1cb0181ad8  (unknown)  (unknown)",
    ]
    printed: list[dict[str, Any]] = []
    dispatcher.add_handler("a test", printed.append)  # runs after earlier handlers, like the one that prints
    try:
        for _ in range(2):
            hide_native_stack_traces()
        dispatcher.emit({"pid": "raylet", "lines": [trace[0], message, *trace[1:]]})
        dispatcher.emit({"pid": 72, "lines": trace})
    finally:
        dispatcher.remove_handler("a test")
    assert [batch["lines"] for batch in printed] == [[message], trace]
    assert sum(handler is remove_native_stack_traces for _, handler in dispatcher.handlers) == 1


def test_workers_first_try_the_address_that_this_node_uses_for_the_head(cluster: Any) -> None:
    with closing(RayEngine(ray)) as site:
        site.discover_machines()
        assert is_every_host_local([site.driver_host])
