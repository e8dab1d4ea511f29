"""Functions that prepare a map: a call runs it, and they look like what is called."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import pytest

import polarmap
from polarmap.errors import CodeError
from polarmap.run.prepared_map import PreparedMap, verb

VERBS = [
    polarmap.coded_map,
    polarmap.hedged_map,
    polarmap.coded_sum,
    polarmap.coded_gradient,
    polarmap.coded_matmul,
    polarmap.coded_gram,
    polarmap.encode,
]


@verb
def doubled(number: int, *, progress: Any = None) -> PreparedMap[int]:
    """Twice a number."""
    if number < 0:
        raise CodeError("below 0")
    return PreparedMap(lambda observers: 2 * number + isinstance(observers, tuple))


def test_a_call_runs_what_is_prepared() -> None:
    assert doubled(3, progress=False) == 7
    prepared = doubled.prepare(3)  # type: ignore[attr-defined]
    assert prepared.run([]) == 6
    with pytest.raises(TypeError, match=r"doubled\(\) got an unexpected keyword argument 'n'"):
        doubled(3, n=4)  # type: ignore[call-arg]


def test_it_shows_one_frame_with_its_name() -> None:
    with pytest.raises(CodeError) as raised:
        doubled(-1)
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert names[:2] == ["test_it_shows_one_frame_with_its_name", "doubled"]


@pytest.mark.parametrize("function", [*VERBS, doubled])
def test_its_signature_and_text_are_those_that_are_written(function: Any) -> None:
    signature, written = inspect.signature(function), inspect.signature(function.prepare)
    assert signature.parameters == written.parameters
    assert written.return_annotation == f"PreparedMap[{signature.return_annotation}]"
    assert function.__doc__ == function.prepare.__doc__
    assert "progress" in signature.parameters
