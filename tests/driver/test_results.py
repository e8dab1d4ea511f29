"""Tests of results as a sequence, and of their report, which is built when it is first read."""

from __future__ import annotations

import gc
import math
import os
import pickle
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask_executors import dask_executor
from plain import assert_same, plain_map, process_pool, states

import polarmap
from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.driver import map_execution
from polarmap.driver.events import PLAIN_CONTEXT
from polarmap.testing import ReplayExecutor
from polarmap.types import CodedResult

DATA = np.random.default_rng(0).standard_normal((60, 4))


def double(block: Any) -> Any:
    return 2 * block


def doubled(**options: Any) -> CodedResult:
    return coded_map(double, DATA, **{"executor": ReplayExecutor()} | options)


def test_the_result_is_a_sequence() -> None:
    result = doubled(blocks=6)
    expected = plain_map(double, DATA, 6)
    assert isinstance(result, Sequence)
    assert len(result) == 6
    assert_same(result, expected)
    assert_same([result[i] for i in range(-6, 6)], 2 * expected)
    assert_same(result[1:-1:2], expected[1:-1:2])
    assert_same(reversed(result), expected[::-1])
    with pytest.raises(IndexError):
        result[6]


def test_the_repr_of_a_result_summarizes_it() -> None:
    late = ReplayExecutor({1: math.inf, 4: math.inf})
    assert (
        repr(doubled(blocks=6, tasks=9, executor=late, timeout=100)) == "<CodedResult of 6 blocks, 2 decoded>"
    )


def test_results_are_writable_and_do_not_share_memory() -> None:
    result = coded_map(
        lambda block: (block, block.sum(axis=0)), DATA, blocks=6, executor=ReplayExecutor({2: 9.0})
    )
    for rows, sums in result:
        rows[...] = 0
        assert sums.any()


def test_type_checkers_know_what_f_returns_and_find_misspelt_options(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mypy")
    source = tmp_path / "typed.py"
    source.write_text(
        "import polarmap\n"
        "from polarmap import *\n"
        "def f(block: object) -> float: return 1.0\n"
        "reveal_type(coded_map(f, [1])[0])\n"
        "reveal_type(coded_map(f, [1], out=polarmap.arrays.Stored('a')))\n"
        "coded_map(f, [1], schedule='on demand')\n"
        "coded_map(f, [1], deadline=3)\n"
        "polarmap.coded_mop\n"
    )
    # The dependencies of polarmap do not matter here and would take most of the time, so imports are skipped.
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nfollow_imports = skip\n[mypy-polarmap.*]\nfollow_imports = silent\n")
    # With this path polarmap counts as installed, so mypy does not check its functions. mypy runs in a
    # separate process, because freeing its objects in this process would take as long as the check.
    command = [sys.executable, "-m", "mypy", str(source), "--config-file", str(config)]
    path = {"PYTHONPATH": str(Path(polarmap.__file__).parents[1])}
    output = subprocess.run(
        [*command, "--cache-dir", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | path,
        capture_output=True,
        text=True,
    ).stdout
    lines = [line.partition(": ")[2] for line in output.splitlines() if "overload variants" not in line]
    assert 'note: Revealed type is "float"' in lines
    assert 'note: Revealed type is "polarmap.arrays.stored_result.StoredResult[float]"' in lines
    assert any("Unexpected keyword argument" in line for line in lines)
    assert any('Module has no attribute "coded_mop"' in line for line in lines)
    assert {line.split(":")[1] for line in output.splitlines() if ": error:" in line} == {"6", "7", "8"}


# --- reports are built when they are read, and contain only strings and numbers ------------------------


class Held:
    """An object that a local variable of f refers to when f raises."""


def test_a_report_is_built_when_it_is_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    final_report = map_execution.build_final_report
    monkeypatch.setattr(
        map_execution, "build_final_report", lambda *args: built.append(args) or final_report(*args)
    )
    options: dict[str, Any] = {"executor": ReplayExecutor(), "blocks": 3, "tasks": 4}
    result = polarmap.coded_map.prepare(np.negative, np.eye(6), **options).execute(PLAIN_CONTEXT)
    assert list(map(len, result)) == [2, 2, 2]
    assert not built
    assert result.report is result.report
    assert len(built) == 1
    assert states(result.report)["surplus"] == [3]


def test_an_unread_report_does_not_keep_exceptions_of_f_alive() -> None:
    references = []

    def f(block: np.ndarray) -> np.ndarray:
        mine = Held()
        if block[0, 0] == 1:
            references.append(weakref.ref(mine))
            raise KeyError("lost")
        return block

    options: dict[str, Any] = {"executor": ReplayExecutor({0: 0.5}), "blocks": 3, "tasks": 4, "verify": False}
    result = polarmap.coded_map.prepare(f, np.eye(6), **options).execute(PLAIN_CONTEXT)
    gc.collect()
    assert [reference() for reference in references] == [None]
    assert result.report.tasks[0].failures == ("KeyError: 'lost'",)
    assert result.report.recovered == (0,)


def test_results_are_pickled_with_their_report_whether_or_not_it_was_read() -> None:
    late = ReplayExecutor({1: 7.0})
    result = polarmap.coded_map(np.negative, np.eye(6), blocks=3, tasks=4, executor=late)
    copy = pickle.loads(pickle.dumps(result))
    assert copy.report == result.report
    assert (pickle.loads(pickle.dumps(result)).report, list(map(len, copy))) == (copy.report, [2, 2, 2])


# --- states, compared with the log that f itself writes -----------------------------------------

K, N = 4, 12
BLOCKS = 1.0 + np.random.default_rng(0).random((K, 1))
CODE = PolarCode(N, K)
PATIENCE = 60.0
FREE_WORKERS = 3  # the largest number of idle workers at the end of a map
PLACES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "threads": lambda: ThreadPoolExecutor(2),
    "processes": lambda: process_pool(2),
    "default": lambda: nullcontext(None),
    "pool": lambda: polarmap.Pool(workers=2),
    "new interpreters": lambda: polarmap.Pool(workers=2, fork=False),
    "dask": lambda: dask_executor(2),
    "localhost": lambda: nullcontext("localhost"),
}


class LoggingFunction:
    """A function that appends its argument to a file when it starts, and never returns for parity blocks.

    It returns for block 0 once five tasks have started.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._gate = str(folder / "diary"), str(folder / "gate")

    def __call__(self, block: np.ndarray) -> np.ndarray:
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{float(block.ravel()[0])!r}\n".encode())
        os.close(descriptor)
        is_data = any(abs(block.ravel()[0] - value) < 1e-12 for value in BLOCKS.ravel())
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not os.path.exists(self._gate):
            if is_data and (block.ravel()[0] != BLOCKS[0, 0] or len(self.lines()) > K):
                break
            time.sleep(0.005)
        return block

    def lines(self) -> list[float]:
        with open(self._file, encoding="ascii") as file:
            return [float(line) for line in file.read().split()]

    def find_started_tasks(self) -> set[int]:
        """Return the tasks that have started, identified by the values of their blocks."""
        values = np.concatenate([BLOCKS, CODE.encode(BLOCKS)[-(N - K) :]]).ravel()
        return {int(np.abs(values - value).argmin()) for value in self.lines()}

    def open(self) -> None:
        Path(self._gate).touch()


@pytest.mark.parametrize("place", PLACES)
def test_task_states_match_the_tasks_that_have_started(place: str, tmp_path: Path) -> None:
    logging_function = LoggingFunction(tmp_path)
    options: dict[str, Any] = {"blocks": K, "tasks": N, "code": CODE, "verify": False, "retries": 0}
    with PLACES[place]() as executor:
        report = polarmap.coded_map(
            logging_function, BLOCKS, executor=executor, timeout=PATIENCE, **options
        ).report
        time.sleep(0.3)  # A task wrongly reported as cancelled would begin in this time.
        begun = logging_function.find_started_tasks()
        logging_function.open()
    tasks_by_state = {state: set(indices) for state, indices in states(report).items()}
    assert tasks_by_state["arrived"] == set(range(K))
    assert tasks_by_state.keys() <= {"arrived", "abandoned", "cancelled"}
    assert not begun & tasks_by_state.get("cancelled", set())
    # A task counts as started when an idle worker receives it, but a slow worker may be stopped before it
    # runs f.
    assert len(tasks_by_state["abandoned"] - begun) <= {"threads": 0, "dask": N, "localhost": N}.get(
        place, FREE_WORKERS
    )
    assert begun - set(range(K)) <= tasks_by_state["abandoned"]
    if place != "localhost":  # Lithops on localhost starts a process for each task.
        assert tasks_by_state["cancelled"]


@pytest.mark.parametrize("place", ["threads", "processes", "default", "pool"])
def test_a_future_reports_which_tasks_are_queued(place: str, tmp_path: Path) -> None:
    logging_function = LoggingFunction(tmp_path)
    options: dict[str, Any] = {"blocks": K, "tasks": N, "code": CODE, "retries": 0}
    with PLACES[place]() as executor:
        future = polarmap.submit(
            polarmap.coded_map, logging_function, BLOCKS[::-1] * 3, executor=executor, **options
        )
        until, running = time.monotonic() + PATIENCE, set[int]()
        while not running or running != find_started_tasks(logging_function):
            assert time.monotonic() < until
            time.sleep(0.01)
            report = future.report
            assert report is not None
            running = set(report.tasks_in_state("running"))
        assert set(report.tasks_in_state("queued")) == set(range(N)) - running
        logging_function.open()
        future.exception(PATIENCE)  # The map ends before its executor is closed.


def find_started_tasks(logging_function: LoggingFunction) -> set[int]:
    """Return the tasks that have started in the map of other blocks, which never return."""
    blocks = BLOCKS[::-1] * 3
    values = np.concatenate([blocks, CODE.encode(blocks)[-(N - K) :]]).ravel()
    try:
        return {int(np.abs(values - value).argmin()) for value in logging_function.lines()}
    except FileNotFoundError:
        return set()
