"""Tracebacks of failed maps: they show the caller's lines, the public call, and f's lines on the worker."""

from __future__ import annotations

import math
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mapped_functions import looks_up
from plain import executor_of_kind, frames_of_ours

import polarmap
from polarmap import CodedOperator
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

PATIENCE = 100.0
ROWS = np.arange(24.0).reshape(8, 3)
SIZES: dict[str, Any] = {"blocks": 4, "tasks": 6}


@pytest.fixture(scope="module", params=["replay", "default", "threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    with executor_of_kind(request.param, 2) as executor:
        yield executor


# A call of each public function, with f and an executor as parameters.
VERBS: dict[str, Callable[..., Any]] = {
    "coded_map": lambda f, executor: polarmap.coded_map(f, ROWS, executor=executor, **SIZES),
    "hedged_map": lambda f, executor: polarmap.hedged_map(f, [1, 2, 3], executor=executor),
    "coded_sum": lambda f, executor: polarmap.coded_sum(f, ROWS, tasks=4, executor=executor),
    "coded_gradient": lambda f, executor: polarmap.coded_gradient(f, np.ones(3), executor=executor),
    "submit": lambda f, executor: polarmap.submit(
        polarmap.coded_map, f, ROWS, executor=executor, **SIZES
    ).result(PATIENCE),
    "submit, a block": lambda f, executor: (
        polarmap.submit(polarmap.coded_map, f, ROWS, executor=executor, **SIZES).blocks[0].result(PATIENCE)
    ),
    "xr.apply": lambda f, executor: labelled(f, executor),
}


def labelled(f: Any, executor: Any) -> None:
    xr = pytest.importorskip("xarray")
    polarmap.xr.apply(f, xr.DataArray(ROWS, dims=("day", "hour")), "hour", executor=executor, **SIZES)


@pytest.mark.parametrize("verb", VERBS)
def test_exception_of_f_shows_one_frame_of_polarmap(verb: str, executor: Any) -> None:
    with pytest.raises(KeyError, match="column") as caught:
        VERBS[verb](looks_up, executor)
    assert frames_of_ours(caught.value) <= 1
    lines = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert lines[0] == "test_exception_of_f_shows_one_frame_of_polarmap"


@pytest.mark.parametrize("executor", ["threads", "processes"], indirect=True)
def test_exception_of_an_executor_call_shows_no_internal_frames(executor: Any) -> None:
    with polarmap.Executor(executor) as calls, pytest.raises(KeyError) as caught:
        calls.submit(looks_up, 1).result(PATIENCE)
    assert frames_of_ours(caught.value) <= 1
    assert "in there" in "".join(traceback.format_exception(caught.value))


def failing() -> FaultyExecutor:
    return FaultyExecutor(ReplayExecutor(), dict.fromkeys(range(3, 6), Fault("raise", attempts=9)))


def losing_first_task() -> FaultyExecutor:
    return FaultyExecutor(ReplayExecutor(), {0: Fault("kill", attempts=9)})


def late() -> ReplayExecutor:
    return ReplayExecutor(dict.fromkeys(range(3), math.inf))


def operated(executor: Any, **options: Any) -> None:
    with CodedOperator(ROWS, executor=executor, **SIZES, **options) as operator:
        operator @ np.ones(3)


MISTAKES: dict[str, Callable[[], Any]] = {
    "too few results": lambda: polarmap.coded_map(np.negative, ROWS, executor=failing(), **SIZES),
    "a timeout": lambda: polarmap.coded_map(np.negative, ROWS, executor=late(), timeout=5, **SIZES),
    "not linear": lambda: polarmap.coded_map(np.exp, ROWS, executor=losing_first_task(), **SIZES),
    "not linear, a future": lambda: polarmap.submit(
        polarmap.coded_map, np.exp, ROWS, executor=losing_first_task(), **SIZES
    ).result(PATIENCE),
    "not smooth": lambda: polarmap.coded_gradient(
        lambda x: float(np.abs(x).sum() + x[0] ** 0.5), np.zeros(6), executor=late(), timeout=5
    ),
    "a product": lambda: polarmap.coded_matmul(ROWS, ROWS.T, executor=late(), timeout=5, **SIZES),
    "a product of an operator": lambda: operated(late(), timeout=5),
    "a Gram matrix": lambda: polarmap.coded_gram(ROWS, executor=late(), timeout=5, blocks=2),
    "a sketch": lambda: list(polarmap.linalg.sketched_gram(ROWS, tasks=4, executor=late(), timeout=5)),
    "a file that is missing": lambda: polarmap.coded_map(np.negative, "/no/such.npy"),
    "a configuration that is missing": lambda: polarmap.coded_map(np.negative, ROWS, executor="no.yaml"),
    "an array that is missing": lambda: polarmap.open_coded("nothing", "."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_argument_shows_at_most_two_frames_of_polarmap(mistake: str) -> None:
    with pytest.raises(polarmap.errors.PolarmapError) as caught:
        MISTAKES[mistake]()
    assert frames_of_ours(caught.value) <= 2


def test_internal_error_keeps_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("nobody meant this")

    monkeypatch.setattr("polarmap.driver.map_execution.TaskTable", broken)
    with pytest.raises(RuntimeError, match="nobody meant this") as caught:
        polarmap.coded_map(np.negative, ROWS, executor=ReplayExecutor())
    assert frames_of_ours(caught.value) > 3


def test_circular_causes_are_supported() -> None:
    def circular(block: Any) -> Any:
        error = ValueError("I am why")
        raise error from error

    with pytest.raises(ValueError, match="I am why"):
        polarmap.coded_map(circular, ROWS, executor=ReplayExecutor(), **SIZES)


def test_exception_whose_str_raises_is_raised_itself() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

        __repr__ = __str__

    def f(block: Any) -> Any:
        raise MuteError

    with pytest.raises(MuteError):
        polarmap.coded_map(f, ROWS, executor=ReplayExecutor(), **SIZES)


PROGRAM = """
import numpy as np
import polarmap

def f(block):
    raise KeyError("column")

if __name__ == "__main__":
    polarmap.coded_map(f, np.ones((8, 3)), blocks=4, tasks=6)
"""


@pytest.mark.parametrize("how", ["python", "IPython"])
def test_failing_program_prints_a_short_traceback(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script)]
    if how == "IPython":
        pytest.importorskip("IPython")
        command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, env=None)
    output = run.stdout + run.stderr
    assert run.returncode == 1
    assert "KeyError" in output and "polarmap.coded_map(f" in output
    assert output.count("/polarmap/") <= 2
    assert len(output.splitlines()) < 60
