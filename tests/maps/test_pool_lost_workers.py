"""Workers that are killed or stopped, whatever they do just then."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_processes import PATIENCE, A, X, check, descendants, folders, leave_out_others, runs, until

import polarmap
from polarmap import CodedOperator, Pool
from polarmap.errors import NotDecodableError


@pytest.fixture
def pool() -> Iterator[Pool]:
    leave_out_others()
    with Pool() as one:
        yield one
    assert until(lambda: not descendants(), 5.0)
    assert not folders()


def workers() -> list[int]:
    """Of the one pool of this process: its fork server's children."""
    return sorted(one for server in descendants() for one in descendants(server))


def test_how_workers_ended_is_told(pool: Pool) -> None:
    with pytest.raises(NotDecodableError, match=r"worker process was killed by SIGABRT \(6\)"):
        check(pool, lambda block: os.abort())
    check(pool)


def test_products_go_on_while_workers_are_killed(pool: Pool) -> None:
    matrix, x = np.random.default_rng(1).standard_normal((2400, 50)), np.ones(50)
    stream = np.random.default_rng(2)
    with CodedOperator(matrix, executor=pool) as operator:
        for turn in range(100):
            if turn % 5 == 2:
                with contextlib.suppress(ProcessLookupError):  # the one before may go just now
                    os.kill(int(stream.choice(workers())), signal.SIGKILL)
            np.testing.assert_allclose(operator @ x, matrix @ x)
        assert len(workers()) <= 32


def test_one_that_is_killed_while_it_writes_a_result_leaves_none_of_it(pool: Pool) -> None:
    """The others' results are whole, and what it has written goes with the map."""
    wide, killed = np.ones((5, 200_000)), []
    expected = A @ wide

    def kill_who_writes() -> None:
        while not killed:
            for worker in workers():
                if writes(worker):
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
                    return
            time.sleep(0.001)  # the driver and its workers have the cores meanwhile

    check(pool)  # there are workers
    with ThreadPoolExecutor(1) as watcher:
        watched = watcher.submit(kill_who_writes)
        while not killed:
            found = polarmap.coded_map(lambda block: block @ wide, A, blocks=6, tasks=8, executor=pool)
            np.testing.assert_allclose(found.concatenate(), expected)
        watched.result(PATIENCE)
    assert not [path for folder in folders() for path in folder.glob("map-*")]
    assert until(lambda: not runs(killed[0]))


def writes(worker: int) -> bool:
    """Whether it has a file open for its result."""
    try:
        return any("/map-" in os.readlink(path) for path in Path(f"/proc/{worker}/fd").iterdir())
    except OSError:
        return False


@pytest.mark.parametrize("continued", ["at once", "in the next map", "when its place is taken"])
def test_one_that_is_stopped_in_a_task_is_an_erasure_and_says_nothing_twice(
    continued: str, pool: Pool, tmp_path: Path
) -> None:
    def wait(block: Any) -> Any:
        (tmp_path / str(os.getpid())).touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return block @ X

    with ThreadPoolExecutor(1) as other:
        running = other.submit(check, pool, wait)
        assert until(lambda: len(list(tmp_path.iterdir())) > 1)
        stopped = int(min(path.name for path in tmp_path.iterdir()))
        os.kill(stopped, signal.SIGSTOP)
        (tmp_path / "go").touch()
        running.result(PATIENCE)
    if continued == "in the next map":
        threading.Timer(0.01, os.kill, (stopped, signal.SIGCONT)).start()
    elif continued == "at once":
        os.kill(stopped, signal.SIGCONT)
    factor = 1.0

    def is_its_place_taken() -> bool:
        nonlocal factor
        factor += 1.0
        check(pool, factor=factor)
        return not runs(stopped)

    if continued == "when its place is taken":
        assert until(is_its_place_taken)
    for _ in range(20):
        is_its_place_taken()
