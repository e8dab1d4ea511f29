"""The grid decoder against brute force: the rank of the equations over every pattern of small grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from product_codes import blocks_of, grid

from polarmap import Decoder, PolarCode
from polarmap.code import product_recovery
from polarmap.code.product import ProductCode
from polarmap.errors import CodeError


@settings(max_examples=60)
@given(
    sizes=st.tuples(*[st.tuples(st.integers(1, 6), st.integers(1, 3))] * 2),
    dtype=st.sampled_from(["float64", "float32", "complex128", "int64", "int8"]),
    seed=st.integers(0, 1000),
    by_lines=st.booleans(),
)
def test_data_comes_back(
    sizes: tuple[tuple[int, int], tuple[int, int]], dtype: str, seed: int, by_lines: bool
) -> None:
    exact = dtype.startswith("int")
    code = grid(*[(k + r, k) for k, r in sizes], "arikan" if exact else "rotation")
    data = blocks_of(code, dtype)
    decoder = Decoder(code, exact=exact, max_amplification=300)
    for index in np.random.default_rng(seed).permutation(code.n).tolist():
        if decoder.add(index):
            break
    assert decoder.ready
    rows = {int(index): data[index] for index in np.flatnonzero(decoder.arrived)}
    limit = product_recovery.JOINT_WEIGHTS
    product_recovery.JOINT_WEIGHTS = 0 if by_lines else limit
    try:
        plan = product_recovery.ProductRecovery(code, decoder.arrived, exact)
        found = plan.recover(rows, data.dtype)
        if not exact and len(decoder.missing):
            together = plan.weights @ data[decoder.arrived].astype("complex128")
            np.testing.assert_allclose(together, data[decoder.missing], rtol=1e-2, atol=1e-2)
    finally:
        product_recovery.JOINT_WEIGHTS = limit
    assert found.dtype == data.dtype
    room = {"float64": 1e-9, "complex128": 1e-9, "float32": 1e-2}.get(dtype, 0)
    np.testing.assert_allclose(found, data[decoder.missing], rtol=0, atol=room * np.abs(data).max(initial=1))


def test_grids_that_cannot_be() -> None:
    with pytest.raises(CodeError, match="a grid of 65 x 64 is more than 4096 tasks"):
        grid((65, 64), (64, 60))
    with pytest.raises(CodeError, match="one kernel, not 'rotation' and 'arikan'"):
        ProductCode(PolarCode(3, 2), PolarCode(3, 2, kernel="arikan"))
    with pytest.raises(CodeError, match="decoder='optimal' only"):
        ProductCode(*[PolarCode(3, 2, kernel="arikan", decoder="sequential")] * 2)
    with pytest.raises(CodeError, match="positions run from 0 to 8, not 9"):
        Decoder(grid((3, 2), (3, 2))).add(9)
