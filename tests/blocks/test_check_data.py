"""Arrays that cannot be coded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from polarmap import CodedResult, ReplayExecutor, coded_map
from polarmap.errors import CodeError

STREAM = np.random.default_rng(0)


MATRIX = STREAM.standard_normal((26, 5))


def halved(data: Any, k: int | None = None, lost: int = 1, **options: Any) -> CodedResult:
    """0.5 * block for all blocks, the first of which never arrive."""
    never = ReplayExecutor(dict.fromkeys(range(lost), math.inf))
    return coded_map(lambda block: block * 0.5, data, blocks=k, executor=never, timeout=100, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 3)), r"shape \(0, 3\) has no rows"),
        (np.float64(3), r"shape \(\) has no rows"),
        (np.array(["a", "b"]), "the data has dtype <U1"),
        (np.array([1, None]), "the data has dtype object"),
        (np.ones(3, bool), "the data has dtype bool"),
        (np.zeros(3, "M8[s]"), r"the data has dtype datetime64\[s\]"),
        (np.zeros(3, [("x", "f8")]), "the data has dtype "),
        (np.ma.masked_less(MATRIX, 0), "masked array"),
        (scipy.sparse.csr_array(MATRIX), "sparse csr_array"),
        (scipy.sparse.coo_matrix(MATRIX), "sparse coo_matrix"),
    ],
)
def test_arrays_that_cannot_be_coded(data: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        halved(data)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant == 52, reason="long double is float64 here")
def test_long_double_is_refused_by_name() -> None:
    with pytest.raises(CodeError, match=r"dtype float\d+: linear codes carry"):
        halved(MATRIX.astype(np.longdouble))
