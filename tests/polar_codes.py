"""Small polar codes for tests, each constructed once, and helpers for arrivals of their blocks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from polarmap.codes import ArrivalTracker, PolarCode

INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
SIZES = [(n, k) for n in range(2, 9) for k in range(1, n)]
SIZES += [(9, 2), (9, 6), (10, 5), (10, 8)]  # The mother code has 16 leaves, which are not all sent.
# The sizes are so small that all arrival patterns are tried.
by_size = pytest.mark.parametrize(("n", "k"), SIZES)
sizes = st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1)))
shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@cache
def arikan(n: int, k: int, decoder: str = "optimal") -> PolarCode:
    return PolarCode(n, k, "arikan", decoder)


@cache
def rotation(n: int, k: int) -> PolarCode:
    return PolarCode(n, k)


def received(coded: np.ndarray, arrived: np.ndarray) -> dict[int, np.ndarray]:
    return {int(index): coded[index] for index in np.flatnonzero(arrived)}


def arrive(code: PolarCode, order: np.ndarray, **options: float) -> ArrivalTracker:
    """Return a tracker to which arrivals in `order` were added until it was ready."""
    decoder = ArrivalTracker(code, **options)
    for index in order.tolist():
        if decoder.add(index):
            break
    return decoder
