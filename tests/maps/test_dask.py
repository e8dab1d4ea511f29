"""Coded maps on dask.distributed, with real worker processes that are killed during the map."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

from polarmap import coded_map
from polarmap.errors import ExecutorError, NotDecodableError

N, K = 8, 6
DATA = np.random.default_rng(0).standard_normal((3 * K, 5))
PATIENCE = 50.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Yield a Dask cluster of two worker processes, which Dask restarts when they are killed."""
    sizes = {"n_workers": 2, "threads_per_worker": 4, "processes": True, "memory_limit": 0}
    with distributed.LocalCluster(**sizes, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def executor(request: pytest.FixtureRequest, cluster: Any) -> Iterator[Any]:
    """Yield a Dask executor.

    The parameter is the number of lost workers after which Dask fails a task (`allowed_failures`).
    """
    cluster.scheduler.allowed_failures = getattr(request, "param", 3)
    with cluster.get_client() as client:
        client.wait_for_workers(2)
        yield client.get_executor(pure=False)


def waits_once(folder: Path, corners: tuple[float, ...], block: np.ndarray) -> np.ndarray:
    """Return 2 * block, but hang in the first process that receives a block starting with one of `corners`.

    The process that hangs writes a file with its process id into `folder`.
    """
    if block[0, 0] in corners:
        try:
            with open(folder / f"{os.getpid()}-{corners.index(block[0, 0])}", "x"):
                pass
            hang = len(list(folder.glob(f"*-{corners.index(block[0, 0])}"))) == 1
        except FileExistsError:
            hang = True
        while hang:
            time.sleep(0.05)
    return 2 * block


def kill_whoever_hangs(folder: Path, count: int) -> set[int]:
    """Wait until `count` tasks hang, then kill their processes and return the process ids."""
    deadline = time.monotonic() + PATIENCE
    while len(paths := list(folder.iterdir())) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    victims = {int(path.name.partition("-")[0]) for path in paths}
    for process in victims:
        os.kill(process, signal.SIGKILL)
    return victims


def run_and_kill(executor: Any, folder: Path, tasks: tuple[int, ...], **options: Any) -> Any:
    corners = tuple(float(DATA[3 * task, 0]) for task in tasks)
    killer = threading.Thread(target=kill_whoever_hangs, args=(folder, len(tasks)))
    killer.start()
    try:
        f = partial(waits_once, folder, corners)
        defaults = {"blocks": K, "tasks": N, "timeout": PATIENCE, "verify": False}
        return coded_map(f, DATA, executor=executor, **defaults | options)
    finally:
        killer.join()


def test_killed_workers_change_no_result(executor: Any, tmp_path: Path) -> None:
    y = run_and_kill(executor, tmp_path, (0, 4))
    np.testing.assert_allclose(y.concatenate(), 2 * DATA, rtol=1e-11)
    again = coded_map(np.negative, DATA, blocks=K, tasks=N, executor=executor, timeout=PATIENCE)
    np.testing.assert_allclose(again.concatenate(), -DATA, rtol=1e-11)


@pytest.mark.parametrize("executor", [0], indirect=True)
def test_tasks_that_dask_gives_up_are_erasures(executor: Any, tmp_path: Path) -> None:
    # With allowed_failures=0, Dask fails every task of a dead worker. polarmap restarts or decodes these
    # tasks.
    y = run_and_kill(executor, tmp_path, (1,), retries=3)
    np.testing.assert_allclose(y.concatenate(), 2 * DATA, rtol=1e-11)

    def deadly(block: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        return block

    with pytest.raises(NotDecodableError, match="KilledWorker"):
        coded_map(deadly, DATA, blocks=2, tasks=3, executor=executor, timeout=PATIENCE, retries=0)


def test_abandoned_tasks_print_no_tracebacks(executor: Any, caplog: pytest.LogCaptureFixture) -> None:
    # Results may arrive while their tasks are being cancelled. Dask must not log these as errors.
    for _ in range(10):
        y = coded_map(np.negative, DATA, blocks=K, tasks=24, executor=executor, verify=False)
        np.testing.assert_allclose(y.concatenate(), -DATA, rtol=1e-9)
    executor.submit(int).result()  # runs after all abandoned tasks, which were queued earlier
    assert [record for record in caplog.records if record.name.startswith("tornado")] == []


def test_tasks_cancelled_by_others_are_lost_and_a_shut_down_executor_is_refused(
    executor: Any, tmp_path: Path
) -> None:
    def cancel_all() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.01)
        executor._client.cancel(
            [distributed.Future(key) for key in list(executor._client.futures)], force=True
        )

    def f(block: np.ndarray) -> np.ndarray:
        (tmp_path / "began").touch()
        while True:
            time.sleep(0.05)

    canceller = threading.Thread(target=cancel_all)
    canceller.start()
    with pytest.raises(NotDecodableError, match="CancelledError"):
        coded_map(f, DATA, blocks=2, tasks=3, executor=executor, timeout=PATIENCE, retries=0)
    canceller.join()
    executor.shutdown()
    with pytest.raises(ExecutorError, match="accepts no tasks: its client was closed, or it was shut down"):
        coded_map(f, DATA, executor=executor)


def test_client_can_be_passed_as_executor(executor: Any) -> None:
    y = coded_map(np.negative, DATA, blocks=K, tasks=N, executor=executor._client, timeout=PATIENCE)
    np.testing.assert_allclose(y.concatenate(), -DATA, rtol=1e-11)
    assert y.report.executor == "Dask"


def test_asynchronous_client_is_refused() -> None:
    async def called() -> None:
        async with distributed.Client(asynchronous=True, processes=False, dashboard_address=":0") as client:
            with pytest.raises(ExecutorError, match="asynchronous=False"):
                coded_map(np.negative, DATA, executor=client)

    asyncio.run(called())
