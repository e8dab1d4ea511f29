"""Maps on Dask workers whose network links are slow, late, silent or closed.

Proxies on real sockets slow down or cut the links.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
from pool_processes import PATIENCE, until
from slow_links import SlowLinks, slow_links

import polarmap
from polarmap import Pool
from polarmap.errors import CodedTimeoutError, PolarmapError

# The sizes model four machines with 8 threads each: 24 of 32 results suffice, so one machine may be missing.
TASKS, BLOCKS, MISSING = 32, 24, 8
RESULT_BYTES = 400_000
SLOW = 20_000.0  # bytes per second, so that a result takes 20 s
BLOCK_BYTES = 2_000_000  # size of a large block, which takes 100 s on a slow link
A = np.random.default_rng(0).standard_normal((BLOCKS * 4, 100))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    sizes = {"n_workers": 4, "threads_per_worker": TASKS // 4, "processes": True, "memory_limit": 0}
    with distributed.LocalCluster(**sizes, dashboard_address=":0") as cluster, cluster.get_client() as client:
        yield client


@pytest.fixture
def links() -> Iterator[SlowLinks]:
    with slow_links() as network:
        yield network


@pytest.fixture
def pool(client: Any, links: SlowLinks) -> Iterator[Pool]:
    """Yield a pool after all its workers have connected."""
    with Pool(client, workers=TASKS) as pool:
        check_map(pool)
        assert until(lambda: len(links.first(TASKS)) == TASKS)
        yield pool


def check_map(pool: Pool, factor: float = 2.0, f: Any = None, data: np.ndarray = A, **options: Any) -> Any:
    """Run a map, check its result, and return its report. `f` must multiply a block by `factor`."""
    f = f or (lambda block: factor * block)
    options = {"blocks": BLOCKS, "tasks": TASKS, "timeout": PATIENCE, **options}
    result = polarmap.coded_map(f, data, executor=pool, **options)
    np.testing.assert_allclose(result.concatenate(), factor * data, atol=1e-9)
    return result.report


def large_result(block: Any) -> Any:
    return np.tile(2.0 * block, (1, RESULT_BYTES // 3200))


def test_late_links_change_no_result(pool: Pool, links: SlowLinks) -> None:
    for link in links:
        link.delay = 0.02
    for factor in (2.0, 3.0):
        check_map(pool, factor)


def test_workers_may_connect_slowly(client: Any, links: SlowLinks) -> None:
    links.on_connect = lambda link: setattr(link, "delay", 0.1)
    with Pool(client, workers=TASKS) as pool:
        check_map(pool)


def test_large_results_on_slow_links_are_not_awaited(pool: Pool, links: SlowLinks) -> None:
    slow = links.first(MISSING)
    for link in slow:
        link.rate = SLOW
    before = [link.bytes_to_target for link in slow]
    result = polarmap.coded_map(large_result, A, executor=pool, blocks=BLOCKS, tasks=TASKS, timeout=PATIENCE)
    n_bytes = [link.bytes_to_target - count for link, count in zip(slow, before)]
    np.testing.assert_allclose(result.concatenate(), large_result(A), atol=1e-9)
    assert max(n_bytes) < RESULT_BYTES


def test_links_cut_between_maps_are_not_awaited(pool: Pool, links: SlowLinks) -> None:
    for link in links.first(MISSING):
        link.cut()
    for factor in (2.0, 3.0):
        check_map(pool, factor)


def test_links_cut_while_tasks_run_are_not_awaited(pool: Pool, links: SlowLinks, tmp_path: Path) -> None:
    def wait_for_cut(block: Any) -> Any:
        (tmp_path / f"began-{os.getpid()}-{threading.get_ident()}").touch()
        while not (tmp_path / "is-cut").exists():
            time.sleep(0.01)
        return 2.0 * block

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(check_map, pool, f=wait_for_cut)
        assert until(lambda: len(list(tmp_path.glob("began-*"))) == TASKS)
        for link in links.first(MISSING):
            link.cut()
        (tmp_path / "is-cut").touch()
        future.result()


def test_restored_links_carry_maps_again(pool: Pool, links: SlowLinks) -> None:
    silent = links.first(MISSING)
    for link in silent:
        link.cut()
    check_map(pool)
    links.restore()
    before = [link.bytes_to_target for link in silent]

    def send_again() -> bool:
        check_map(pool)
        return all(link.bytes_to_target > count for link, count in zip(silent, before))

    assert until(send_again)


def test_closed_links_are_not_awaited_and_their_workers_replaced(pool: Pool, links: SlowLinks) -> None:
    for link in links.first(MISSING):
        link.close()
    check_map(pool)
    assert until(lambda: len(links.first(TASKS)) == TASKS)
    check_map(pool, 3.0)


def test_too_many_cut_links_raise_an_error_in_time(pool: Pool, links: SlowLinks) -> None:
    for link in links:
        link.cut()
    with pytest.raises(PolarmapError):
        check_map(pool, timeout=1.0)


# --- while large blocks are sent ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((BLOCKS * 10, BLOCK_BYTES // 80))


def map_large(pool: Pool, large: np.ndarray, **options: Any) -> None:
    options = {"blocks": BLOCKS, "tasks": TASKS, "timeout": PATIENCE, **options}
    result = polarmap.coded_map(lambda block: block.sum(axis=1), large, executor=pool, **options)
    np.testing.assert_allclose(result.concatenate(), large.sum(axis=1), atol=1e-6)


def test_large_blocks_on_slow_links_are_not_awaited(pool: Pool, links: SlowLinks, large: np.ndarray) -> None:
    slow = links.first(MISSING)
    for link in slow:
        link.rate = SLOW
    before = [link.bytes_to_caller for link in slow]
    map_large(pool, large)
    assert max(link.bytes_to_caller - n for link, n in zip(slow, before)) < BLOCK_BYTES / 2


def test_links_cut_while_blocks_are_sent_are_not_awaited(
    pool: Pool, links: SlowLinks, large: np.ndarray
) -> None:
    silent = links.first(MISSING)
    for link in silent:  # slow down the links first, so that they are cut while blocks are being sent
        link.rate = SLOW
    before = [link.bytes_to_caller for link in silent]
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(map_large, pool, large)
        assert until(lambda: any(link.bytes_to_caller - n > 10_000 for link, n in zip(silent, before)))
        for link in silent:
            link.cut()
        future.result()
    assert all(link.is_cut or link.is_closed for link in silent)


def test_timeout_is_kept_while_no_block_arrives(pool: Pool, links: SlowLinks, large: np.ndarray) -> None:
    for link in links:
        link.rate = SLOW
    before = [link.bytes_to_caller for link in links]
    with pytest.raises(CodedTimeoutError, match="32 workers were still receiving a block"):
        map_large(pool, large, timeout=1.0)
    assert max(link.bytes_to_caller - n for link, n in zip(links, before)) < BLOCK_BYTES / 2
