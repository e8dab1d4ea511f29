"""What the left-over equations say: they hold, or name the block that breaks them."""

from __future__ import annotations

from math import inf

import numpy as np

from polarmap import Decoder, PolarCode
from polarmap.code import residual
from polarmap.code.product import ProductCode


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


def decoded(code: ProductCode, arrived: np.ndarray, exact: bool) -> Decoder:
    decoder = Decoder(code, exact=exact, max_amplification=inf)
    for index in np.flatnonzero(arrived):
        decoder.add(int(index))
    return decoder


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


def test_left_over_equations_hold_and_name_garbage() -> None:
    code = grid((6, 4), (6, 4))
    data = blocks_of(code, "float64")
    arrived = np.ones(code.n, bool)
    arrived[[0, 5, 9, 20, 31]] = False
    decoder = decoded(code, arrived, False)
    assert decoder.surplus == 15
    rows = {int(index): data[index].copy() for index in np.flatnonzero(arrived)}
    assert not len(residual.residual(decoder.recovery, rows, data.dtype).broken)
    rows[7] += 1
    broken = residual.residual(decoder.recovery, rows, data.dtype).broken
    assert broken.tolist() == [0, 1, 2]
    assert residual.culprits(decoder.recovery, rows, broken, data.dtype) == [7]
