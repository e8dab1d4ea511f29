"""Persistent workers on Lithops, over each kind of channel, with real processes and storage servers."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pool_processes import PATIENCE, A, X, check, descendants, folders, program, runs, until, workers_of
from servers import Server

import polarmap
from polarmap import Pool
from polarmap.arrays.stores import open_store

CHANNELS = {"socket": "TCP", "redis": "objects", "s3": "objects"}


class Place(NamedTuple):
    """The configuration of a pool and the channel over which its workers communicate."""

    channel: str
    yaml: Path | str  # a configuration file, or "localhost"
    server: Server | None

    def pool(self, workers: int = 4, **options: Any) -> Pool:
        return Pool(self.yaml, workers=workers, listen=self.server is None, **options)

    def list_pools(self) -> set[str]:
        """Return the names of the pools and Lithops jobs that have left objects in the storage."""
        return {
            match[0] for key in self.list_objects() if (match := re.search(r"pool-\w+|jobs/[\w-]+?/", key))
        }

    def list_objects(self) -> list[str]:
        """Return the keys of all objects in the storage, without the marker of the server."""
        return (
            [] if self.server is None else [key for key in open_store(self.yaml).keys("") if key != "ready"]
        )


def place_of(channel: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    if channel == "socket":
        return Place("socket", "localhost", None)
    server: Server = request.getfixturevalue(f"{channel}_server")
    return Place(channel, server.config(folder / f"{channel}.yaml"), server)


def over_channels(*channels: str) -> Any:
    """Run a test over these channels only, because its outcome does not depend on the kind of storage."""
    return pytest.mark.parametrize("place", channels, indirect=True, scope="module")


@pytest.fixture(scope="module", params=CHANNELS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return place_of(request.param, request, tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def pool(place: Place) -> Iterator[Pool]:
    """Yield one pool for all tests. A test must not depend on what earlier tests did to the pool."""
    with place.pool() as pool:
        yield pool
    assert until(lambda: not any(map(is_of_lithops, descendants())))
    assert place.list_pools() == set()


def is_of_lithops(process: int) -> bool:
    try:
        return b"lithops" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


# --- maps and channels ---------------------------------------------------------------------------


def test_workers_persist_and_use_the_available_channel(place: Place, pool: Pool) -> None:
    report = check(pool).report
    name = "localhost" if place.server is None else "lithops/localhost"
    assert report.executor == f"persistent workers on {name} ({CHANNELS[place.channel]})" == pool.name
    first = workers_of(pool)
    assert os.getpid() not in first
    assert until(lambda: bool(workers_of(pool) & first))  # some workers may still run abandoned tasks


@over_channels("socket", "s3")
def test_large_functions_and_results_are_sent(pool: Pool) -> None:
    big, x = np.random.default_rng(1).standard_normal(2_500_000), X

    def f(block: Any) -> Any:
        return {"y": block @ x, "big": big * block[0, 0]}

    results = polarmap.hedged_map(f, [A[:8], A[8:16]], executor=pool, timeout=PATIENCE)
    for result, block in zip(results, (A[:8], A[8:16])):
        np.testing.assert_allclose(result["y"], block @ X)
        np.testing.assert_array_equal(result["big"], big * block[0, 0])
    check(pool)


@over_channels("socket", "redis")
def test_modules_that_workers_lack_are_sent_as_source(pool: Pool, tmp_path: Path, monkeypatch: Any) -> None:
    check(pool)  # start the workers before the modules are on the driver's path
    monkeypatch.syspath_prepend(tmp_path)
    for text in ("0", "100"):
        (tmp_path / "far_away.py").write_text(
            f"import near_by\ndef f(block): return near_by.add(block) + {text}"
        )
        (tmp_path / "near_by.py").write_text("def add(block): return block + 1")
        for name in ("far_away", "near_by"):
            sys.modules.pop(name, None)
        import far_away

        results = polarmap.hedged_map(far_away.f, [X, 2 * X], executor=pool, timeout=PATIENCE)
        np.testing.assert_array_equal(results[1], 2 * X + 1 + float(text))
    for name in ("far_away", "near_by"):
        sys.modules.pop(name, None)


# --- failures of workers, drivers and storage ----------------------------------------------------


@over_channels("socket", "redis")
def test_killed_worker_is_replaced(pool: Pool) -> None:
    for _ in range(2):
        victim = next(iter(workers_of(pool)))
        os.kill(victim, signal.SIGKILL)
        check(pool)
    assert until(lambda: not runs(victim))
    assert victim not in workers_of(pool)


@over_channels("redis")
def test_forked_child_uses_separate_workers(place: Place) -> None:
    other_pools = place.list_pools()
    driver = program(DRIVER + "\nshare()", str(place.yaml), str(place.server is None))
    with driver:
        assert driver.wait(PATIENCE) == 0
    assert not folders(driver.pid)
    assert until(lambda: place.list_pools() <= other_pools)


# The driver shortens the intervals of heartbeats. Workers get the same values with the driver's modules.
DRIVER = """
import numpy as np, os, sys, tempfile, threading, time, polarmap
from polarmap.executors import storage_channels as drivers_side
from polarmap.worker import storage_channel
for side in (storage_channel, drivers_side):
    side.HEARTBEAT_SECONDS, side.OUTAGE_SECONDS = 1.0, 8.0
yaml, listen = sys.argv[1], sys.argv[2] == "True"
A, x = np.random.default_rng(0).standard_normal((48, 5)), np.arange(5.0)
pool = polarmap.Pool(yaml, workers=4, listen=listen)

def check(pool=pool):
    y = polarmap.coded_map(lambda block: block @ x, A, blocks=6, tasks=8, executor=pool, timeout=60)
    assert np.allclose(y.concatenate(), A @ x)

def find_workers():
    process_ids = polarmap.hedged_map(lambda block: float(os.getpid()), [x] * 8, executor=pool, timeout=60)
    return {int(process_id) for process_id in process_ids}

def share():
    check()
    mine = find_workers()
    child = os.fork()
    if not child:
        check()
        assert not find_workers() & mine
        pool.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    for worker in mine:
        os.kill(worker, 0)  # fails if the worker has ended
    deadline = time.monotonic() + 60.0
    while not find_workers() & mine:  # some workers may still run abandoned tasks
        assert time.monotonic() < deadline
    check()
    pool.close()

def stay():
    check()
    print(*find_workers(), flush=True)
    check()
    name = os.path.join(tempfile.mkdtemp(), "pipe")
    os.mkfifo(name)
    def f(block):
        with open(name, "wb") as pipe:
            pipe.write(b".")
        time.sleep(600)
    def tell():
        with open(name, "rb") as pipe:
            pipe.read(1)
        print("busy", flush=True)
    threading.Thread(target=tell, daemon=True).start()
    polarmap.hedged_map(f, [x] * 2, executor=pool)
"""


def test_workers_of_a_killed_driver_end(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    # One driver uses sockets and one uses objects, where workers wait for a missing heartbeat. Half of the
    # workers are busy when the drivers are killed.
    places = [place_of(channel, request, tmp_path) for channel in ("socket", "redis")]
    before = [place.list_pools() for place in places]
    drivers, processes = [], set[int]()
    for place in places:  # start one driver at a time: Lithops copies itself to a folder that they share
        driver = program(DRIVER + "\nstay()", str(place.yaml), str(place.server is None))
        drivers.append(driver)
        assert driver.stdout is not None
        processes |= {int(process_id) for process_id in driver.stdout.readline().split()}
        assert driver.stdout.readline() == "busy\n"
        processes |= descendants(driver.pid)
    for driver in drivers:
        driver.kill()
        driver.communicate(timeout=PATIENCE)
    assert until(lambda: not any(map(runs, processes)), 45.0)
    with Pool() as another:  # starting a pool removes the files of dead processes
        check(another)
    assert not any(folders(driver.pid) for driver in drivers)
    for place, pools in zip(places, before):
        forget(place, place.list_pools() - pools)


def forget(place: Place, pools: set[str]) -> None:
    """Delete the objects of these pools, which killed drivers leave in the storage."""
    store = open_store(place.yaml)
    store.delete([key for key in store.keys("") if any(pool in key for pool in pools)])


@over_channels("redis")
def test_map_survives_a_restart_of_the_storage(place: Place, pool: Pool) -> None:
    assert place.server is not None
    check(pool)
    for seconds in (0.0, 2.0):
        place.server.kill()
        timer = threading.Timer(seconds, place.server.launch)
        timer.start()
        check(pool)
        timer.join()
        place.server.wait()
        check(pool)


# --- pools that cannot start ---------------------------------------------------------------------


@pytest.mark.parametrize("server", ["s3", "redis"], indirect=True)
def test_wrong_credentials_soon_raise_one_clear_error(server: Server, tmp_path: Path) -> None:
    before = threading.active_count()
    yaml = server.config(tmp_path / "wrong.yaml", secret="wrong")
    began = time.monotonic()
    with Pool(yaml, workers=8) as pool, pytest.raises(polarmap.errors.PolarmapError):
        check(pool)
    assert time.monotonic() < began + 30.0
    assert until(lambda: threading.active_count() <= before)
