"""Coded maps on a virtual clock, with the small problem that tests of a codeword share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from plain import assert_same, plain_map

from polarmap import coded_map
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import CodedResult

N, K = 12, 8
DATA = np.random.default_rng(0).standard_normal((3 * K, 5))
WHOLE = np.random.default_rng(0).integers(-99, 99, (3 * K, 5))
FLOATS = np.random.default_rng(0).standard_normal((48, 3))
WEIGHTS = np.random.default_rng(1).standard_normal(5)
VIRTUAL_SECONDS = 200.0  # A time limit on the virtual clock, so that a missing arrival fails the test.
LOST_DATA = dict.fromkeys([1, 4], math.inf)


def product(block: np.ndarray) -> np.ndarray:
    return block @ WEIGHTS


def failing_on(*indices: int, error: Exception | None = None) -> Callable[[Any], Any]:
    """Return `product`, except that it raises on these blocks of DATA."""
    corners = [DATA[3 * index, 0] for index in indices]

    def f(block: np.ndarray) -> np.ndarray:
        if block[0, 0] in corners:
            raise error or ValueError("no such block")
        return product(block)

    return f


def coded(f: Callable[[Any], Any] = product, data: Any = DATA, **options: Any) -> CodedResult:
    defaults = {"blocks": K, "tasks": N, "timeout": VIRTUAL_SECONDS}
    return coded_map(f, data, **defaults | options)


def losing(*lost: int) -> ReplayExecutor:
    """Return an executor on which these tasks never report; all other tasks report after a second."""
    return ReplayExecutor(dict.fromkeys(lost, math.inf))


def faulty(faults: Mapping[int, Fault], seconds: Mapping[int, float] | None = None) -> FaultyExecutor:
    return FaultyExecutor(ReplayExecutor(seconds), faults)


def assert_right(result: CodedResult, f: Callable[[Any], Any] = product, data: Any = DATA) -> None:
    assert_same(result, plain_map(f, data, K), 1e-11)
