"""Tests that lost blocks are weighted sums of the available blocks."""

from __future__ import annotations

import pickle

import cloudpickle
import numpy as np
import pytest
from array_data import random_array

from polarmap.arrays.weighted_sums import (
    compute_recovery_weights,
    make_parity_function,
    make_weighted_sum_function,
)
from polarmap.codes import PolarCode


@pytest.mark.parametrize("n_k_kernel", [(9, 6, "rotation"), (12, 6, "arikan"), (2600, 2330, "rotation")])
def test_lost_blocks_are_weighted_sums_of_the_remaining_blocks(n_k_kernel):
    # Decoding with the last and largest code does not form P.
    n, k, kernel = n_k_kernel
    code = PolarCode(n, k, kernel)
    blocks = random_array((k, 3), "i8" if kernel == "arikan" else "f8")
    lost = [1, k, n - 1]
    everything = code.encode(blocks)
    others = np.delete(everything, lost, axis=0)
    weights = compute_recovery_weights(code, blocks.dtype, lost)
    recovered = weights @ (others.view(np.uint64) if kernel == "arikan" else others)
    np.testing.assert_allclose(recovered.view(others.dtype), everything[lost], rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", ["f2", "f4", "c8", "c16", "u1", "i4", "u8"])
def test_parity_is_recovered_from_complete_data(monkeypatch, dtype):
    # The sums are computed tile by tile with a narrower last tile. The oracle is the encoder of the code.
    monkeypatch.setattr("polarmap.arrays.weighted_sums.TILE_ELEMENTS", 1)
    code, data = PolarCode(7, 4, "arikan" if dtype[0] in "iu" else "rotation"), random_array((4, 150), dtype)
    expected = code.encode_parity(data)
    sums = make_weighted_sum_function(
        compute_recovery_weights(code, data.dtype, range(4, 7)), [expected.dtype] * 3
    )
    tolerance = 0 if dtype[0] in "iu" else 8 * np.finfo(dtype).eps
    for actual, parity in zip(sums(list(data)), expected, strict=True):
        assert actual.dtype == parity.dtype
        np.testing.assert_allclose(actual, parity, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["f4", "c16", "u1", "i8"])
@pytest.mark.parametrize("groups", [None, 3])
def test_workers_compute_the_parity_of_all_groups(monkeypatch, dtype, groups):
    # The oracle is the encoder of the code. The matrix of all groups is not formed.
    kernel = "arikan" if dtype[0] in "iu" else "rotation"
    code, data = PolarCode(40, 30, kernel, groups=groups), random_array((30, 50), dtype)
    expected = code.encode_parity(data)
    if groups:
        monkeypatch.setattr(type(code), "encoding_matrix", property(lambda code: pytest.fail("P is formed")))
    compute_parity = pickle.loads(cloudpickle.dumps(make_parity_function(code, data.dtype)))
    tolerance = 0 if dtype[0] in "iu" else 64 * np.finfo(dtype).eps
    for actual, parity in zip(compute_parity(list(data)), expected, strict=True):
        assert actual.dtype == parity.dtype
        np.testing.assert_allclose(actual, parity, rtol=0, atol=tolerance)
