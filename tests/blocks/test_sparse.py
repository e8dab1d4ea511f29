"""Tests of sparse matrices as coded blocks. The oracles are SciPy and the same code on dense blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.blocks.sparse import (
    MAX_RELATIVE_WORK,
    SparseCodedBlocks,
    SparseDataBlocks,
    choose_code_or_backups,
    compute_relative_work,
    count_parity_nonzeros,
    to_canonical_csr,
)
from polarmap.codes import PolarCode
from polarmap.codes.uncoded import Uncoded
from polarmap.worker.task_functions import build_csr_matrix

DTYPES = ["f4", "f8", "c8", "c16", "i1", "u1", "i4", "i8", "u8"]


def random_sparse(rows: int, columns: int, density: float, dtype: str, seed: int = 0) -> Any:
    stream = np.random.default_rng(seed)
    values = stream.integers(-100, 100, (rows, columns)) * (stream.random((rows, columns)) < density)
    if dtype in ("c8", "c16"):
        values = values * (1 + 2j)
    return scipy.sparse.csr_array(values.astype(dtype))


def dense(blocks: SparseCodedBlocks, index: int) -> np.ndarray:
    columns = blocks.data_blocks.matrix.shape[1]
    array: np.ndarray = build_csr_matrix(
        blocks.block_leaves(index), scipy.sparse.csr_array, columns
    ).toarray()
    return array


@settings(max_examples=100)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 12),
    k=st.integers(1, 8),
    parity=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
def test_sparse_blocks_equal_those_of_the_dense_code(
    rows: int, columns: int, k: int, parity: int, density: float, dtype: str, seed: int
) -> None:
    k = min(k, rows)
    matrix = random_sparse(rows, columns, density, dtype, seed)
    code = PolarCode(k + parity, k, "arikan" if dtype[0] in "iu" else "rotation")
    coded = SparseCodedBlocks(SparseDataBlocks(matrix, k), code)
    padded = np.zeros((coded.data_blocks.rows_per_block * k, columns), dtype)
    padded[:rows] = matrix.toarray()
    expected = code.encode(padded.reshape(k, -1))
    for index in range(coded.n):
        actual = dense(coded, index)
        layout = tuple((leaf.dtype.str, leaf.shape) for leaf in coded.block_leaves(index))
        assert coded.block_layout(index) == layout
        assert actual.dtype == (dtype if index < k else code.parity_dtype(dtype))
        if dtype[0] in "iu":
            np.testing.assert_array_equal(actual.ravel(), expected[index].astype(actual.dtype))
        else:
            room = 1e-5 if dtype in ("f4", "c8") else 1e-12
            np.testing.assert_allclose(actual.ravel(), expected[index], atol=400 * room, rtol=room)


@pytest.mark.parametrize("kernel", ["rotation", "arikan"])
def test_nonzeros_of_parity_are_counted_before_encoding(kernel: str) -> None:
    matrix = abs(random_sparse(60, 40, 0.05, "f8"))  # Entries with signs could cancel in Arikan parity.
    code = PolarCode(16, 12, kernel)
    coded = SparseCodedBlocks(SparseDataBlocks(matrix, 12), code)
    counted = count_parity_nonzeros(coded.data_blocks, code.encoding_matrix)
    assert counted == [coded.block_layout(index)[0][1][0] for index in range(12, 16)]
    pattern = (matrix.toarray() != 0).reshape(12, 5, 40)
    support = code.encoding_matrix != 0
    assert counted == [int(pattern[row].any(axis=0).sum()) for row in support]


def test_indices_are_sorted_as_functions_may_expect() -> None:
    coded = SparseCodedBlocks(SparseDataBlocks(random_sparse(30, 20, 0.3, "f8"), 5), PolarCode(7, 5))
    for index in range(7):
        rows = build_csr_matrix(coded.block_leaves(index), scipy.sparse.csr_array, 20)
        assert rows.has_canonical_format


def test_data_in_csr_form_is_not_copied() -> None:
    matrix = random_sparse(30, 20, 0.3, "f8")
    assert to_canonical_csr(matrix) is matrix
    blocks = SparseDataBlocks(matrix, 6)
    assert all(np.shares_memory(blocks.block_leaves(index)[0], matrix.data) for index in range(6))
    twice = scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2))
    assert to_canonical_csr(twice).toarray().tolist() == [[0.0, 3.0], [0.0, 0.0]]
    unsorted = scipy.sparse.csr_array(([1.0, 2.0, 3.0], [1, 0, 0], [0, 3, 3]), shape=(2, 2))
    assert to_canonical_csr(unsorted).toarray().tolist() == [[5.0, 1.0], [0.0, 0.0]]
    assert len(unsorted.data) == 3  # The array of the caller is unchanged.


def test_f_is_tried_on_rows_that_have_entries() -> None:
    blocks = SparseDataBlocks(scipy.sparse.csr_array((12, 2)), 3)
    leaves = blocks.sample_rows(4)
    assert scipy.sparse.csr_array(tuple(leaves), (4, 2)).toarray().tolist() == [
        [1, 2],
        [3, 4],
        [5, 6],
        [7, 1],
    ]
    filled = scipy.sparse.csr_array(tuple(blocks.copy_padded_rows(leaves, 2, 4)), (4, 2))
    assert filled.toarray().tolist() == [[1, 2], [3, 4], [0, 0], [0, 0]]


def test_the_cheaper_code_is_chosen_and_the_reason_is_reported() -> None:
    small = SparseDataBlocks(random_sparse(48, 40, 0.05, "f8"), 24)
    code, reason = choose_code_or_backups(small, PolarCode(32, 24))
    assert code.n == 32 and reason.startswith("coded: a parity block has ")
    wide = scipy.sparse.random_array((2_400, 60_000), density=0.01, format="csr", rng=0)
    blocks = SparseDataBlocks(wide, 24)
    code, reason = choose_code_or_backups(blocks, PolarCode(32, 24))
    work = compute_relative_work(
        blocks.nonzeros_per_block, count_parity_nonzeros(blocks, PolarCode(32, 24).encoding_matrix)
    )
    assert work > MAX_RELATIVE_WORK and isinstance(code, Uncoded) and code.max_backups > 0
    assert f"which multiplies the cost of all tasks by {work:.2f}" in reason and reason.startswith(
        "backups of late tasks"
    )
