"""Tests of functions that prepare a map: calling one runs the map, and its signature is that of the map."""

from __future__ import annotations

import inspect
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap.blocks.code_choice import CodeOptions
from polarmap.driver import prepared_map
from polarmap.driver.events import PLAIN_CONTEXT, JobContext, ResultCallback
from polarmap.driver.observers import ProgressBar
from polarmap.driver.options import MapOptions
from polarmap.driver.prepared_map import PreparedMap, make_observers, map_function, prepare_coded_map
from polarmap.errors import CodeError
from polarmap.executors import resolve_executor
from polarmap.testing import ReplayExecutor

VERBS = [
    polarmap.coded_map,
    polarmap.hedged_map,
    polarmap.coded_sum,
    polarmap.coded_gradient,
    polarmap.coded_matmul,
    polarmap.coded_gram,
    polarmap.encode,
]


@map_function
def doubled(number: int, *, progress: Any = None) -> PreparedMap[int]:
    """Return a map whose result is twice a number."""
    if number < 0:
        raise CodeError("below 0")
    return PreparedMap(lambda context: 2 * number + isinstance(context, JobContext))


def test_a_call_runs_the_prepared_map() -> None:
    assert doubled(3, progress=False) == 7
    prepared = doubled.prepare(3)  # type: ignore[attr-defined]
    assert prepared.execute(None) == 6
    with pytest.raises(TypeError, match=r"doubled\(\) got an unexpected keyword argument 'n'"):
        doubled(3, n=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("function", [*VERBS, doubled])
def test_a_map_function_has_the_signature_and_docstring_of_its_definition(function: Any) -> None:
    signature, written = inspect.signature(function), inspect.signature(function.prepare)
    assert signature.parameters == written.parameters
    assert written.return_annotation == f"PreparedMap[{signature.return_annotation}]"
    assert function.__doc__ == function.prepare.__doc__
    assert "progress" in signature.parameters


# --- maps of coded data -------------------------------------------------------------------------

DATA = np.arange(24.0).reshape(12, 2)


def test_a_prepared_map_can_be_executed_repeatedly() -> None:
    prepared = prepare_coded_map(
        np.negative, DATA, CodeOptions(4, 5), resolve_executor(ReplayExecutor()), MapOptions()
    )
    for _ in range(2):
        np.testing.assert_array_equal(prepared.execute(PLAIN_CONTEXT).concatenate(), -DATA)


# --- observers of a map ---


def test_progress_selects_the_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    python = SimpleNamespace(modules={}, stderr=None)  # This process has not imported OpenTelemetry.
    monkeypatch.setattr(prepared_map, "sys", python)
    assert make_observers(False) == make_observers(None) == ()
    python.stderr = io.StringIO()
    assert make_observers(None) == ()
    [bar] = make_observers(np.True_)
    assert isinstance(bar, ProgressBar)
    [bar, callback] = make_observers(True, print)
    assert isinstance(bar, ProgressBar) and isinstance(callback, ResultCallback)
    [callback] = make_observers(False, print)
    assert isinstance(callback, ResultCallback)
    for progress in ("yes", (1,)):
        with pytest.raises(CodeError, match=r"progress must be True, False, 'live' or None, not .*(yes|1)"):
            make_observers(progress)
