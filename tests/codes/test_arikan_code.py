"""Tests of the Arikan kernel: exact integers, parity dtypes, unequal workers and fewer levels."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polar_codes import INTEGERS, shapes, sizes

from polarmap import dtypes
from polarmap.codes.polar import PolarCode
from polarmap.codes.polar_construction import compute_input_erasure_probabilities
from polarmap.errors import CodeError


@settings(max_examples=100)
@given(sizes, shapes, st.sampled_from(INTEGERS), st.sampled_from(["optimal", "sequential"]), st.data())
def test_integers_are_decoded_exactly(size, shape, dtype, decoder, draw) -> None:
    code = PolarCode(*size, "arikan", decoder)
    limits = np.iinfo(dtype)
    stream = np.random.default_rng(draw.draw(st.integers(0, 999)))
    data = stream.integers(limits.min, limits.max, (code.k, *shape), dtype, endpoint=True)
    coded = code.encode(data)
    arrived = stream.random(code.n) < 0.9
    received = {int(i): coded[i] for i in np.flatnonzero(arrived)}
    received |= {i: data[i] for i in received if i < code.k}
    if code.is_decodable(arrived):
        decoded = code.decode(received)
        assert decoded.astype(dtype).tobytes() == data.tobytes()
        assert decoded.dtype == (dtype if min(received) < code.k else coded.dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(("n", "k"), [(8, 5), (64, 48), (20, 3)])
def test_parity_of_integers_matches_python_integers(dtype: str, n: int, k: int) -> None:
    code, limits = PolarCode(n, k, "arikan"), np.iinfo(dtype)
    data = np.random.default_rng(n).integers(limits.min, limits.max, (k, 5), dtype, endpoint=True)
    data[:, 0], data[:, 1] = limits.min, limits.max
    exact = code.encoding_matrix.astype(object) @ data.astype(object)
    parity = code.encode(data)[k:]
    assert (parity.astype(object) - exact).tolist() == (
        (parity.astype(object) - exact) // 2**64 * 2**64
    ).tolist()
    if parity.itemsize < 8:
        assert parity.tolist() == exact.tolist()


def test_parity_dtype_widens_integers_and_keeps_the_rest() -> None:
    code = PolarCode(64, 48, "arikan")
    widened = {"i1": "i2", "u1": "i2", "i2": "i4", "u4": "i8", "u8": "u8", "f2": "f2", "c8": "c8"}
    assert {d: code.parity_dtype(d).str[1:] for d in widened} == widened


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4"])
@pytest.mark.parametrize(("n", "k", "decoder"), [(2048, 1792, "optimal"), (2100, 300, "sequential")])
def test_the_parity_dtype_is_the_same_if_p_is_not_formed(n: int, k: int, decoder: str, dtype: str) -> None:
    # Otherwise large arrays that earlier versions have stored could not be opened.
    code = PolarCode(n, k, "arikan", decoder)
    exact = int(np.abs(code.encoding_matrix).sum(axis=1).max())
    assert code.parity_dtype(dtype) == dtypes.choose_parity_dtype(np.dtype(dtype), exact)


@pytest.mark.parametrize(("n", "k"), [(2048, 1536), (2100, 300)])
def test_growth_is_correct_if_p_is_not_formed(n: int, k: int) -> None:
    for code in (PolarCode(n, k, "arikan"), PolarCode(n, k, "arikan", "sequential", levels=5)):
        assert code.norm_inf == np.abs(code.encoding_matrix).sum(axis=1).max()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_wrapped_sums_are_decoded_exactly(dtype: str) -> None:
    # f sums in the dtype of the blocks and overflows, but its results are still linear in the blocks.
    code, limits = PolarCode(16, 9, "arikan"), np.iinfo(dtype)
    stream = np.random.default_rng(1)
    data = stream.integers(limits.min, limits.max, (9, 50), dtype, endpoint=True)
    results = [block.sum(dtype=block.dtype, keepdims=True) for block in data]
    parity = code.encode_parity(data)
    received = dict(enumerate(results[2:], 2))
    received |= {9 + i: row.sum(dtype=row.dtype, keepdims=True) for i, row in enumerate(parity)}
    assert code.decode(received).tolist() == np.array(results).tolist()


@pytest.mark.parametrize(("n", "k"), [(4, 2), (7, 4), (8, 5), (10, 6)])
def test_with_unequal_workers_the_least_reliable_inputs_are_frozen(n: int, k: int) -> None:
    # The oracle applies the recursion of the genie to all 2^n patterns of workers with unequal probabilities.
    erasure = np.random.default_rng(n).uniform(0.01, 0.6, n)
    code = PolarCode(n, k, "arikan", "sequential", erasure)
    length = oracles.power_of_two(n)
    lost, fails = np.zeros(length), 0.0
    unfrozen = np.setdiff1d(np.arange(length - n, length), code.frozen_set)
    for back in oracles.patterns(n):
        probability = np.where(back, 1 - erasure, erasure).prod()
        known = np.zeros(length, bool)
        known[code.codeword_positions] = back[code.worker_indices]
        undetermined = ~np.array(oracles.genie_determined(known.tolist()))
        lost += probability * undetermined
        fails += probability * undetermined[unfrozen].any()
    assert lost[code.frozen_set].min() >= lost[unfrozen].max() - 1e-12
    leaves = np.ones(length)
    leaves[code.codeword_positions] = erasure[code.worker_indices]
    polarized = compute_input_erasure_probabilities(leaves)
    np.testing.assert_allclose(polarized, lost, atol=1e-12)
    assert polarized[unfrozen].max() - 1e-12 <= fails <= polarized[unfrozen].sum() + 1e-12


def draw_levels(size: tuple[int, int]) -> st.SearchStrategy[int]:
    """Draw a number of levels that leaves each butterfly a data block and a parity block."""
    n, k = size
    max_levels = (n - 1).bit_length()
    min_levels = next(levels for levels in range(1, max_levels + 1) if -(-n // 2**levels) <= min(k, n - k))
    return st.integers(min_levels, max_levels)


partial = sizes.flatmap(lambda size: st.tuples(st.just(size), draw_levels(size)))


@settings(max_examples=60)
@given(partial, st.sampled_from(["optimal", "sequential"]), st.data())
def test_codes_with_fewer_levels_decode(sized: tuple, decoder: str, draw) -> None:
    (n, k), levels = sized
    code = PolarCode(n, k, "arikan", decoder, levels=levels)
    count = -(-n // 2**levels)
    # Each butterfly contains parity.
    assert sorted({index % count for index in code.frozen_set.tolist()}) == list(range(count))
    # Each butterfly contains data.
    assert sorted({leaf % count for leaf in code.codeword_positions[:k].tolist()}) == list(range(count))
    assert not code.parity_check_matrix.sum(axis=1).any()
    lost = draw.draw(st.integers(0, n - 1))
    coded = code.encode(np.arange(2 * k).reshape(k, 2))
    if code.is_decodable(np.arange(n) != lost):
        assert (code.decode({i: coded[i] for i in range(n) if i != lost}) == coded[:k]).all()


@pytest.mark.parametrize(("n", "k"), [(2, 1), (30, 17), (64, 48), (100, 70)])
def test_all_levels_are_the_default(n: int, k: int) -> None:
    default, full = PolarCode(n, k, "arikan"), PolarCode(n, k, "arikan", levels=(n - 1).bit_length())
    assert full.codeword_positions.tolist() == default.codeword_positions.tolist()
    assert (full.encoding_matrix == default.encoding_matrix).all()
    assert repr(full) == repr(default)


def test_unequal_workers_with_fewer_levels() -> None:
    erasure = np.random.default_rng(0).uniform(0, 0.5, 48)
    code = PolarCode(48, 32, "arikan", "sequential", erasure, levels=4)
    leaves = np.empty(48)
    leaves[code.codeword_positions] = erasure[code.worker_indices]
    z = compute_input_erasure_probabilities(leaves.reshape(16, 3)).ravel()
    # Every butterfly keeps one of the last inputs.
    free = np.setdiff1d(np.arange(48), [*code.frozen_set, 45, 46, 47])
    inside = np.setdiff1d(code.frozen_set, [0, 1, 2])
    assert z[inside].min() >= z[free].max() - 1e-12
    coded = code.encode(np.arange(64.0).reshape(32, 2))
    np.testing.assert_allclose(code.decode({i: coded[i] for i in range(1, 48)}), coded[:32])


def test_the_error_for_too_few_levels_gives_the_minimum() -> None:
    says = (
        r"levels=2 makes 10 butterflies of 4 blocks.* only 35 data blocks and 5 parity blocks\. "
        r"Use levels=3 or more"
    )
    with pytest.raises(CodeError, match=says):
        PolarCode(40, 35, "arikan", levels=2)
    assert PolarCode(40, 35, "arikan", levels=3).transform_shape == (8, 5)


def test_p_is_computed_by_rows_if_there_are_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # For 10,000 blocks with 100 parity blocks, this takes a hundredth of the time.
    code = PolarCode(100, 70, "arikan")
    expected = code.compute_encoding_matrix_columns(np.arange(70))
    monkeypatch.setattr(
        type(code), "compute_encoding_matrix_columns", lambda *_: pytest.fail("column by column")
    )
    assert code.encoding_matrix.dtype == np.int64 and code.encoding_matrix.flags.c_contiguous
    assert (code.encoding_matrix == expected).all()
