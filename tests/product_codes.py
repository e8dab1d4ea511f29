"""Product codes for tests, and their blocks by the Kronecker product."""

from __future__ import annotations

from math import inf

import numpy as np

from polarmap.codes import ArrivalTracker, PolarCode, modular_linalg
from polarmap.codes.product import ProductCode


def grid(left: tuple[int, int], right: tuple[int, int], kernel: str = "rotation") -> ProductCode:
    return ProductCode(PolarCode(*left, kernel=kernel), PolarCode(*right, kernel=kernel))


def generator(code: PolarCode) -> np.ndarray:
    return np.concatenate([np.eye(code.k, dtype=code.encoding_matrix.dtype), code.encoding_matrix])


def combinations_of(code: ProductCode) -> np.ndarray:
    """Return the coefficients of every block in the data blocks, from the Kronecker product."""
    whole = np.kron(generator(code.column_code), generator(code.row_code))
    rows, columns = code.grid_coordinates.T
    assert (code.grid_coordinates[: code.k] < [code.column_code.k, code.row_code.k]).all()
    return whole[rows * code.row_code.n + columns]


def blocks_of(code: ProductCode, dtype: str, width: int = 3) -> np.ndarray:
    """Return all blocks of a random grid."""
    stream = np.random.default_rng(0)
    if dtype.startswith("int"):
        data = stream.integers(-(2**62), 2**62, (code.k, width))
        with np.errstate(over="ignore"):
            return (combinations_of(code) @ data).astype(dtype)
    data = stream.standard_normal((code.k, width))
    if dtype == "complex128":
        data = data + 1j * stream.standard_normal((code.k, width))
    return (combinations_of(code) @ data).astype(dtype)


def rank(rows: np.ndarray, exact: bool) -> int:
    return (
        len(modular_linalg.find_independent_rows_gf2(rows))
        if exact
        else int(np.linalg.matrix_rank(rows, tol=1e-9))
    )


def decoded(code: ProductCode, arrived: np.ndarray, exact: bool) -> ArrivalTracker:
    decoder = ArrivalTracker(code, modular=exact, max_amplification=inf)
    for index in np.flatnonzero(arrived):
        decoder.add(int(index))
    return decoder
