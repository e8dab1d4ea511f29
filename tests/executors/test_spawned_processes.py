"""Pool(fork=False): workers in new interpreters behave like forked workers, and end in the same ways."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_processes import PATIENCE, A, X, assert_nothing_is_left, check, program, runs, until, workers_of

import polarmap
from polarmap import Pool
from polarmap.errors import CodeError, ExecutorError
from polarmap.executors import spawned_processes


@pytest.fixture(scope="module")
def shared() -> Iterator[Pool]:
    with Pool(fork=False) as pool:
        yield pool


def test_workers_get_the_environment_of_the_driver(shared: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARMAP_TEST", "here")

    def around(block: Any) -> tuple[str, str | None]:
        return os.getcwd(), os.environ.get("POLARMAP_TEST")

    results = list(polarmap.hedged_map(around, [1, 2], executor=shared))
    assert results == [(os.getcwd(), "here")] * 2
    check(shared)
    assert os.getpid() not in workers_of(shared)


def test_killed_worker_is_an_erasure_with_its_exit_reason(shared: Pool, tmp_path: Path) -> None:
    def f(block: np.ndarray) -> np.ndarray:
        for number in range(3):  # with three of six results missing, the map has to notice the lost workers
            try:
                (tmp_path / f"killed {number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return block @ X

    y = polarmap.coded_map(f, A, blocks=4, tasks=6, executor=shared, verify=False, retries=3)
    np.testing.assert_allclose(y.concatenate(), A @ X)
    assert "WorkerLost: its worker process was killed by SIGKILL (9)" in str(y.report)


def test_closing_a_pool_kills_hanging_workers_and_their_children(tmp_path: Path) -> None:
    def f(block: Any) -> Any:
        if block:
            import subprocess

            child = subprocess.Popen(["sleep", "600"])
            (tmp_path / f"{os.getpid()}-{child.pid}").touch()
            time.sleep(600)

    with Pool(workers=2, fork=False) as pool:
        running = polarmap.submit(polarmap.hedged_map, f, [0, 1], executor=pool)
        assert until(lambda: os.listdir(tmp_path) != [])
        process_ids = {int(process_id) for name in os.listdir(tmp_path) for process_id in name.split("-")}
        assert running.cancel()
    assert until(lambda: not any(map(runs, process_ids)))


@pytest.mark.parametrize("hangs", [False, True])
def test_workers_and_folders_of_a_killed_driver_are_removed(hangs: bool) -> None:
    driver = program(
        """
        def f(block):
            return os.getpid()

        def hang(block):
            # Without buffering, `print` would write the line and its end separately.
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(600)

        with polarmap.Pool(workers=2, fork=False) as pool:
            for process_id in polarmap.hedged_map(f, [1, 2], executor=pool):
                print(process_id)
            print("ready", flush=True)
            if sys.argv[1]:
                polarmap.hedged_map(hang, [1, 2], executor=pool)
            time.sleep(600)
        """,
        "hangs" if hangs else "",
    )
    with driver:
        assert driver.stdout is not None
        process_ids = {int(line) for line in iter(driver.stdout.readline, "ready\n")}
        if hangs:
            process_ids |= {int(driver.stdout.readline()) for _ in range(2)}
        driver.kill()
        driver.wait(PATIENCE)
        assert_nothing_is_left(driver.pid, process_ids)


def test_interpreter_that_cannot_be_started_raises_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawned_processes.sys, "executable", "/nowhere/python")
    with Pool(fork=False) as pool, pytest.raises(ExecutorError, match="/nowhere/python cannot be started"):
        check(pool)


def test_invalid_fork_is_refused() -> None:
    with pytest.raises(CodeError, match="fork must be"):
        Pool(fork="spawn")  # type: ignore[arg-type]
