"""Rows of sparse matrices as f sees them, with scipy's own as the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse

from polarmap.worker.sparse import on_sparse_rows, sparse_rows


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
def test_f_sees_the_matrix(kind: Any) -> None:
    matrix = kind(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]]))
    leaves = matrix.data, matrix.indices, matrix.indptr
    seen = on_sparse_rows(lambda rows: rows, kind, 3)(leaves)
    assert type(seen) is kind and seen.shape == (3, 3)
    assert (seen != matrix).nnz == 0


def test_numbers_behind_an_odd_number_of_bytes_are_read() -> None:
    matrix = scipy.sparse.csr_array(np.array([[5, 0, 6], [0, 7, 0]], np.int8))
    arrays = (matrix.data, matrix.indices, matrix.indptr)
    raw, places = b"".join(one.tobytes() for one in arrays), np.cumsum([0, *(one.nbytes for one in arrays)])
    leaves = [np.frombuffer(raw, one.dtype, one.size, start) for one, start in zip(arrays, places)]
    assert not leaves[1].flags.aligned
    np.testing.assert_array_equal(sparse_rows(leaves, scipy.sparse.csr_array, 3).toarray(), matrix.toarray())
