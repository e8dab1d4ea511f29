"""Maps on persistent workers that are killed or stopped at any moment."""

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
    with Pool() as pool:
        yield pool
    assert until(lambda: not descendants(), 5.0)
    assert not folders()


def workers() -> list[int]:
    """Return the process ids of the workers of this process's only pool, the children of its fork server."""
    return sorted(worker for server in descendants() for worker in descendants(server))


def test_error_says_how_workers_ended(pool: Pool) -> None:
    with pytest.raises(NotDecodableError, match=r"worker process was killed by SIGABRT \(6\)"):
        check(pool, lambda block: os.abort())
    check(pool)


def test_products_go_on_while_workers_are_killed(pool: Pool) -> None:
    matrix, x = np.random.default_rng(1).standard_normal((2400, 50)), np.ones(50)
    stream = np.random.default_rng(2)
    with CodedOperator(matrix, executor=pool) as operator:
        for turn in range(100):
            if turn % 5 == 2:
                with contextlib.suppress(ProcessLookupError):  # the worker killed before may just be exiting
                    os.kill(int(stream.choice(workers())), signal.SIGKILL)
            np.testing.assert_allclose(operator @ x, matrix @ x)
        assert len(workers()) <= 32


def test_worker_killed_while_it_writes_a_result_leaves_no_file(pool: Pool, tmp_path: Path) -> None:
    # The results of the other workers are complete, and the partial file is removed with the map.
    wide, mark = np.ones((5, 50_000)), tmp_path / "killed"

    def is_writing() -> bool:
        try:
            return any("/map-" in os.readlink(path) for path in Path("/proc/self/fd").iterdir())
        except OSError:  # a descriptor was closed meanwhile
            return False

    def kill_once_it_writes() -> None:
        while not is_writing():
            pass
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)

    def f(block: Any) -> Any:
        with contextlib.suppress(FileExistsError):
            (tmp_path / f"{turn}").touch(exist_ok=False)
            threading.Thread(target=kill_once_it_writes, daemon=True).start()
        return block @ wide

    turn = 0
    while not mark.exists():  # the worker may finish writing before the thread notices, so try again
        turn += 1
        result = polarmap.coded_map(f, A, blocks=6, tasks=8, executor=pool)
        np.testing.assert_allclose(result.concatenate(), A @ wide)
    assert not [path for folder in folders() for path in folder.glob("map-*")]
    assert until(lambda: not runs(int(mark.read_text())))


@pytest.mark.parametrize("continued", ["at once", "in the next map", "when its place is taken"])
def test_stopped_worker_is_an_erasure_and_sends_nothing_twice(
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
