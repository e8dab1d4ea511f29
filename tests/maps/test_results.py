"""Results of f: values that a map returns, and values and exceptions that it must report."""

from __future__ import annotations

import math
import traceback
from typing import Any

import numpy as np
import pytest
from coded_maps import losing
from own_class import Mine
from plain import assert_same, executor_of_kind, plain_map

from polarmap import coded_map, hedged_map
from polarmap.errors import CodeError, FunctionExitError
from polarmap.testing import ReplayExecutor

STREAM = np.random.default_rng(0)


MATRIX = STREAM.standard_normal((26, 5))


@pytest.mark.parametrize("lost", [(), (5,), (0,)])
@pytest.mark.parametrize(
    ("f", "dtype"),
    [
        (lambda block: block > 0, "bool"),
        (lambda block: (block, bool(block[0, 0] > 0)), "bool"),
        (lambda block: block.astype(np.longdouble), str(np.dtype(np.longdouble))),
        (lambda block: "text", "<U4"),
        (lambda block: np.datetime64("2020-01-01"), "datetime64"),
    ],
)
def test_error_for_results_that_cannot_be_encoded_names_dtype_and_alternative(
    f: Any, dtype: str, lost: tuple[int, ...]
) -> None:
    text = f"the result of f has dtype {dtype}.*convert it first.*, or use hedged_map"
    with pytest.raises(CodeError, match=text):
        coded_map(f, MATRIX, blocks=4, executor=losing(*lost))
    assert len(hedged_map(f, MATRIX, blocks=4, executor=losing())) == 4


def test_ragged_lists_are_returned() -> None:
    def f(block: np.ndarray) -> list[Any]:
        return [block.sum(), [block[0, 0], [block[1, 1]]]]

    result = coded_map(f, MATRIX, blocks=13, executor=ReplayExecutor({1: math.inf}), timeout=100)
    assert_same(result, plain_map(f, MATRIX, 13), 1e-9)


@pytest.mark.parametrize("kind", ["default", "threads", "processes", "dask", "replay"])
def test_exception_of_f_is_raised_unchanged(kind: str) -> None:
    class Local(Mine):
        pass

    def caught(error: BaseException, expected: type[BaseException]) -> Any:
        def f(block: Any) -> Any:
            raise error

        with pytest.raises(expected) as raised:
            coded_map(f, MATRIX, blocks=2, tasks=3, executor=executor, retries=0, timeout=60)
        return raised.value

    with executor_of_kind(kind, 2) as executor:
        for error in (Mine("a", 3), Local("b"), KeyError("c"), StopIteration(4)):
            would_end_generators = isinstance(error, StopIteration)
            raised_error = caught(error, FunctionExitError if would_end_generators else type(error))
            cause = raised_error.__cause__ if would_end_generators else raised_error
            assert type(cause) is type(error)
            assert cause.args == error.args
            assert getattr(cause, "more", None) == getattr(error, "more", None)
            if not would_end_generators:
                assert "of 3 tasks to end raised this" in cause.__notes__[-1]
            assert "in f\n" in "".join(traceback.format_exception(cause))
            if kind not in ("threads", "replay"):  # f ran in another process
                assert "in f\n" in str(cause.__cause__)
