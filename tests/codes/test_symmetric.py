"""Tests of the triangle of products. The oracle solves for all unknowns of the symmetric grid."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from polarmap.codes import ArrivalTracker, PolarCode, error_detection
from polarmap.codes.symmetric import SymmetricProductCode
from polarmap.errors import CodeError

SIDE = 2


def make_product_blocks(code: SymmetricProductCode, dtype: str = "float64") -> dict[int, np.ndarray]:
    """Return the flattened blocks A_i' A_j of a random A, by task index."""
    stream = np.random.default_rng(0)
    data = stream.standard_normal((code.line_code.k, 5, SIDE))
    if dtype == "complex128":
        data = data + 1j * stream.standard_normal(data.shape)
    coded = code.line_code.encode(data)
    return {
        t: (coded[i].conj().T @ coded[j]).reshape(-1)
        for t, (i, j) in enumerate(code.grid_coordinates.tolist())
    }


def build_equations(code: SymmetricProductCode) -> np.ndarray:
    """Return each entry of each block as a sum of upper-triangle entries of A' A, (n, SIDE^2, unknowns)."""
    generator = np.concatenate([np.eye(code.line_code.k), code.line_code.encoding_matrix])
    k = code.line_code.k
    # The unknowns are the entries (p, q) of x_ab with (a, p) <= (b, q) in lexicographic order.
    number = {}
    for first in np.ndindex(k, SIDE):
        for second in np.ndindex(k, SIDE):
            number[first, second] = number.get((second, first), len(set(number.values())))
    rows = []
    count = len(set(number.values()))
    for i, j in code.grid_coordinates.tolist():
        for p, q in np.ndindex(SIDE, SIDE):
            row = np.zeros(count)
            for a, b in np.ndindex(k, k):
                row[number[(a, p), (b, q)]] += generator[i, a] * generator[j, b]
            rows.append(row)
    return np.array(rows).reshape(code.n, SIDE**2, count)


@pytest.mark.parametrize("sizes", [(3, 2), (4, 2)])
def test_every_pattern_of_a_small_triangle(sizes: tuple[int, int]) -> None:
    code = SymmetricProductCode(PolarCode(*sizes))
    data, sums = make_product_blocks(code), build_equations(code)
    for pattern in range(1 << code.n):
        arrived = (pattern >> np.arange(code.n) & 1).astype(bool)
        if arrived.sum() < code.k:
            continue
        plan = code.make_decoder(arrived, modular=False)
        rank = np.linalg.matrix_rank(np.concatenate(sums[arrived]), tol=1e-9)
        assert (plan.rank_deficit == 0 or not len(plan.missing_indices)) == (rank == sums.shape[-1]), arrived
        if plan.rank_deficit == 0:
            rows = {int(index): data[index] for index in np.flatnonzero(arrived)}
            decoded = plan.decode(rows, np.dtype(float))
            for row, index in zip(decoded, plan.missing_indices.tolist()):
                np.testing.assert_allclose(row, data[index], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_random_orders(dtype: str) -> None:
    code = SymmetricProductCode(PolarCode(8, 6))
    data = make_product_blocks(code, dtype)
    counts = []
    for seed in range(20):
        decoder = ArrivalTracker(code, max_amplification=1e4)
        for index in np.random.default_rng(seed).permutation(code.n).tolist():
            if decoder.add(index):
                break
        counts.append(decoder.n_arrived)
        rows = {int(index): data[index] for index in np.flatnonzero(decoder.arrived_mask)}
        decoded = decoder.decoder.decode(rows, np.dtype(dtype))
        assert np.abs(decoded - [data[index] for index in decoder.missing_indices]).max(initial=0) < 1e-9
    assert np.mean(counts) < code.k + 4


def test_amplification_matches_independent_errors() -> None:
    code = SymmetricProductCode(PolarCode(6, 4))
    data, stream = make_product_blocks(code), np.random.default_rng(1)
    arrived = stream.permutation(code.n) < 15
    plan = code.make_decoder(arrived, modular=False)
    assert plan.rank_deficit == 0 and len(plan.missing_indices)
    rows = {int(index): data[index] for index in np.flatnonzero(arrived)}
    exact = plan.decode(rows, np.dtype(float))
    errors = []
    for _ in range(3000):
        noisy = {index: row + stream.standard_normal(row.size) for index, row in rows.items()}
        errors.append(plan.decode(noisy, np.dtype(float)) - exact)
    decoded = np.std(errors, axis=0)
    off_diagonal = [
        index for index, (a, b) in enumerate(code.grid_coordinates[plan.missing_indices].tolist()) if a != b
    ]
    expected = np.linalg.norm(plan.weight_magnitudes, axis=1)
    np.testing.assert_allclose(decoded[off_diagonal].mean(axis=1), expected[off_diagonal], rtol=0.1)


def test_redundant_checks_hold_and_locate_garbage() -> None:
    code = SymmetricProductCode(PolarCode(6, 4))
    for dtype in ("float64", "complex128"):
        rows = make_product_blocks(code, dtype)
        for lost in (0, 2):
            del rows[lost]
        arrived = np.isin(np.arange(code.n), list(rows))
        plan = code.make_decoder(arrived, modular=False)
        assert not len(
            error_detection.evaluate_parity_checks(
                plan, plan.transform_for_parity_checks(rows), np.dtype(dtype)
            ).violations
        )
        rows[5] = rows[5] + 1
        broken = error_detection.evaluate_parity_checks(
            plan, plan.transform_for_parity_checks(rows), np.dtype(dtype)
        ).violations
        assert error_detection.locate_erroneous_blocks(
            plan, plan.transform_for_parity_checks(rows), broken, np.dtype(dtype)
        ) == [5]


def test_integers_are_refused() -> None:
    with pytest.raises(CodeError, match="needs the rotation kernel, not"):
        SymmetricProductCode(PolarCode(3, 2, kernel="arikan"))
    with pytest.raises(CodeError, match="int64 products cannot be decoded exactly"):
        SymmetricProductCode(PolarCode(3, 2)).parity_dtype("int64")
    assert ArrivalTracker(SymmetricProductCode(PolarCode(3, 2)), max_amplification=inf).add(0) is False
