"""Products of blocks against numpy's, for every dtype that a block may have, and how they are pickled."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
from scipy.sparse import csr_array

from polarmap.worker.block_products import compute_gram_block, multiply_block, multiply_block_pair

STREAM = np.random.default_rng(0)
LEFT, RIGHT = STREAM.integers(0, 9, (4, 6)), STREAM.integers(0, 9, (3, 6))


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "complex64"])
def test_a_product_has_the_dtype_that_it_is_told(dtype: str, is_sparse: bool) -> None:
    wanted, operand = np.dtype(dtype), RIGHT.T.astype(dtype)
    block = csr_array(LEFT) if is_sparse else LEFT
    found = multiply_block(operand, wanted, is_sparse, block)
    assert found.dtype == wanted
    np.testing.assert_array_equal(found, LEFT.astype(dtype) @ operand)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_parity_of_uint64_is_what_it_was_before_it_wrapped(is_sparse: bool) -> None:
    parity = (-LEFT).astype(np.uint64)
    block = csr_array(parity) if is_sparse else parity
    found = multiply_block(RIGHT.T.astype(float), np.dtype(float), is_sparse, block)
    np.testing.assert_array_equal(found, -LEFT @ RIGHT.T)


def test_pairs_of_blocks_with_and_without_weights() -> None:
    left, right, weights = LEFT + 1j, RIGHT - 2j, np.arange(6.0)
    dtype = np.dtype(complex)
    np.testing.assert_array_equal(multiply_block_pair(dtype, (left, right)), left @ right.T)
    np.testing.assert_array_equal(compute_gram_block(None, dtype, (left, right)), left.conj() @ right.T)
    found = compute_gram_block(weights, dtype, (left, right))
    np.testing.assert_array_equal(found, left.conj() @ np.diag(weights) @ right.T)


def test_a_product_is_pickled_by_its_name() -> None:
    """By its code, it took a tenth of a map's Python calls."""
    f = partial(multiply_block, np.ones(6), np.dtype(float), False)
    assert len(pickle.dumps(f)) < 600
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(f))(LEFT), LEFT.sum(axis=1))
