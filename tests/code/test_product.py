"""The grid decoder against brute force: the rank of the equations over every pattern of small grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap import Decoder, PolarCode
from polarmap.code import product_recovery
from polarmap.code.product import ProductCode
from polarmap.errors import CodeError


def grid(left: tuple[int, int], right: tuple[int, int], kernel: str = "rotation") -> ProductCode:
    return ProductCode(PolarCode(*left, kernel=kernel), PolarCode(*right, kernel=kernel))


def generator(code: PolarCode) -> np.ndarray:
    return np.concatenate([np.eye(code.k, dtype=code.coefficients.dtype), code.coefficients])


def combinations_of(code: ProductCode) -> np.ndarray:
    """Every block as a sum of the data blocks, from Kronecker's product."""
    whole = np.kron(generator(code.left), generator(code.right))
    rows, columns = code.cells.T
    assert (code.cells[: code.k] < [code.left.k, code.right.k]).all()
    return whole[rows * code.right.n + columns]


def blocks_of(code: ProductCode, dtype: str, width: int = 3) -> np.ndarray:
    """All blocks of a random grid."""
    stream = np.random.default_rng(0)
    if dtype.startswith("int"):
        data = stream.integers(-(2**62), 2**62, (code.k, width))
        with np.errstate(over="ignore"):
            return (combinations_of(code) @ data).astype(dtype)
    data = stream.standard_normal((code.k, width))
    if dtype == "complex128":
        data = data + 1j * stream.standard_normal((code.k, width))
    return (combinations_of(code) @ data).astype(dtype)


@settings(max_examples=60, deadline=None)
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
