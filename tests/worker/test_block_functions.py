"""f as workers call it: sums of its results, and rows of sparse matrices, with scipy's own as the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse

from polarmap.worker.block_functions import combination, on_sparse_rows, sparse_rows

PARTS = [np.arange(3.0), np.arange(3.0) + 10]


def test_results_are_added_up_with_their_coefficients() -> None:
    combine = combination(lambda part: {"square": part**2, "sum": part.sum()})
    total = combine((np.array([2.0, -1.0]), PARTS))
    assert total["square"].tolist() == (2 * PARTS[0] ** 2 - PARTS[1] ** 2).tolist()
    assert float(total["sum"]) == 2 * 3.0 - 33.0


def test_truth_values_are_counted() -> None:
    total = combination(lambda part: part > 1)((np.array([1, 1]), PARTS))
    assert total.tolist() == [1, 1, 2]
    assert total.dtype.kind == "i"


@pytest.mark.parametrize(
    ("f", "error", "words"),
    [
        (lambda part: part.astype(str), TypeError, "cannot be added up: return numbers"),
        (
            lambda part: [part] * (1 + int(part[0] > 1)),
            ValueError,
            "different structures",
        ),
    ],
)
def test_what_cannot_be_added_up_is_said(f: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        combination(f)((np.ones(2), PARTS))


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
