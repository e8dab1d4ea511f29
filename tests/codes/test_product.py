"""Tests of product codes against brute force: decoding line by line and by joint equations."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from product_codes import blocks_of, combinations_of, decoded, grid, rank

from polarmap.codes import ArrivalTracker, PolarCode, product
from polarmap.codes.product import IterativeDecoder, ProductCode
from polarmap.errors import CodeError


@settings(max_examples=60)
@given(
    sizes=st.tuples(*[st.tuples(st.integers(1, 6), st.integers(1, 3))] * 2),
    dtype=st.sampled_from(["float64", "float32", "complex128", "int64", "int8"]),
    seed=st.integers(0, 1000),
    by_lines=st.booleans(),
)
def test_data_is_decoded(
    sizes: tuple[tuple[int, int], tuple[int, int]], dtype: str, seed: int, by_lines: bool
) -> None:
    exact = dtype.startswith("int")
    code = grid(*[(k + r, k) for k, r in sizes], "arikan" if exact else "rotation")
    data = blocks_of(code, dtype)
    decoder = ArrivalTracker(code, modular=exact, max_amplification=300)
    for index in np.random.default_rng(seed).permutation(code.n).tolist():
        if decoder.add(index):
            break
    assert decoder.is_ready
    rows = {int(index): data[index] for index in np.flatnonzero(decoder.arrived_mask)}
    limit = product.MAX_JOINT_WEIGHTS
    product.MAX_JOINT_WEIGHTS = 0 if by_lines else limit
    try:
        plan = code.make_decoder(decoder.arrived_mask, exact)
        recovered = plan.decode(rows, data.dtype)
        if not exact and len(decoder.missing_indices):
            together = plan.weights @ data[decoder.arrived_mask].astype("complex128")
            np.testing.assert_allclose(together, data[decoder.missing_indices], rtol=1e-2, atol=1e-2)
    finally:
        product.MAX_JOINT_WEIGHTS = limit
    assert recovered.dtype == data.dtype
    room = {"float64": 1e-9, "complex128": 1e-9, "float32": 1e-2}.get(dtype, 0)
    np.testing.assert_allclose(
        recovered, data[decoder.missing_indices], rtol=0, atol=room * np.abs(data).max(initial=1)
    )


def test_invalid_grids_are_refused() -> None:
    with pytest.raises(CodeError, match="a grid of 65 x 64 has more than 4096 tasks"):
        grid((65, 64), (64, 60))
    with pytest.raises(CodeError, match="same kernel, not 'rotation' and 'arikan'"):
        ProductCode(PolarCode(3, 2), PolarCode(3, 2, kernel="arikan"))
    with pytest.raises(CodeError, match="requires decoder='optimal'"):
        ProductCode(*[PolarCode(3, 2, kernel="arikan", decoder="sequential")] * 2)
    with pytest.raises(CodeError, match="must be an integer from 0 to 8, not 9"):
        ArrivalTracker(grid((3, 2), (3, 2))).add(9)


KERNELS = ["rotation", "arikan"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [((3, 2), (3, 2)), ((4, 2), (2, 1)), ((2, 1), (4, 3))])
def test_every_pattern_of_a_small_grid(kernel: str, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    code, exact = grid(*sizes, kernel), kernel == "arikan"
    combinations = combinations_of(code)
    data = blocks_of(code, "int64" if exact else "float64")
    for pattern in range(1 << code.n):
        arrived = (pattern >> np.arange(code.n) & 1).astype(bool)
        if arrived.sum() < code.k:
            continue
        decoder = decoded(code, arrived, exact)
        is_determined = rank(combinations[arrived], exact) == code.k
        assert decoder.is_ready == is_determined, arrived
        if is_determined:
            rows = {int(index): data[index] for index in np.flatnonzero(arrived)}
            recovered = decoder.decoder.decode(rows, data.dtype)
            np.testing.assert_allclose(
                recovered, data[decoder.missing_indices], rtol=0 if exact else 1e-7, atol=1e-7
            )


@pytest.mark.parametrize("kernel", KERNELS)
def test_joint_equations_decode_where_line_by_line_stalls(kernel: str) -> None:
    code, exact = grid((12, 10), (12, 10), kernel), kernel == "arikan"
    combinations, stream = combinations_of(code), np.random.default_rng(0)
    data = blocks_of(code, "int64" if exact else "float64")
    only_jointly = 0
    for _ in range(15):
        decoder = ArrivalTracker(code, modular=exact, max_amplification=inf)
        by_lines = IterativeDecoder(code, exact)
        for index in stream.permutation(code.n).tolist():
            by_lines.add_arrivals([index])
            if decoder.add(index):
                break
        assert rank(combinations[decoder.arrived_mask], exact) == code.k
        before = decoder.arrived_mask & (np.arange(code.n) != index)
        # Hence no smaller set of arrivals has full rank, either.
        assert rank(combinations[before], exact) < code.k
        only_jointly += not by_lines.is_complete
        rows = {int(index): data[index] for index in np.flatnonzero(decoder.arrived_mask)}
        recovered = decoder.decoder.decode(rows, data.dtype)
        np.testing.assert_allclose(
            recovered, data[decoder.missing_indices], rtol=0 if exact else 1e-6, atol=1e-6
        )
    assert only_jointly > 1


def test_amplification_is_awaited() -> None:
    code = grid((8, 6), (8, 6))
    order = np.random.default_rng(1).permutation(code.n).tolist()
    counts = []
    for limit in (inf, 20.0, 2.0):
        decoder = ArrivalTracker(code, modular=False, max_amplification=limit)
        assert any(decoder.add(index) for index in order)
        assert decoder.amplification <= limit
        counts.append(decoder.n_arrived)
    assert counts == sorted(counts) and counts[0] < counts[2]


def test_large_grids_are_decoded_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "MAX_JOINT_WEIGHTS", 1000)
    code = grid((40, 36), (40, 36))
    data = blocks_of(code, "float64", 2)
    decoder = ArrivalTracker(code, modular=False, max_amplification=1e5)
    for index in np.random.default_rng(3).permutation(code.n)[:1490].tolist():
        decoder.add(index)
    assert decoder.is_ready and len(decoder.missing_indices) > 50
    assert decoder.decoder.line_decodings
    rows = {int(index): data[index] for index in np.flatnonzero(decoder.arrived_mask)}
    recovered = decoder.decoder.decode(rows, data.dtype)
    assert np.abs(recovered - data[decoder.missing_indices]).max() < 1e-8 * np.abs(data).max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_line_by_line_decoding_is_never_wrong_and_stalls_at_stopping_sets_only(kernel: str) -> None:
    code, exact = grid((3, 2), (4, 3), kernel), kernel == "arikan"
    combinations = combinations_of(code)
    for pattern in range(0, 1 << code.n, 5):
        arrived = (pattern >> np.arange(code.n) & 1).astype(bool)
        by_lines = IterativeDecoder(code, exact)
        by_lines.add_arrivals(np.flatnonzero(arrived))
        if by_lines.is_complete:
            assert rank(combinations[arrived], exact) == code.k
        # Any k blocks of a line decode it, so each line with unknown blocks lacks more than its redundancy.
        if not exact:
            unknown = ~by_lines.known_mask
            assert all(count > 1 for count in unknown.sum(axis=0) if count)
            assert all(count > 1 for count in unknown.sum(axis=1) if count)
