"""Rows of a sparse matrix, which travel as the three arrays of their CSR form, as f sees them.

Runs on workers: imports numpy. The class that comes with f brings scipy along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def on_sparse_rows(f: Callable[[Any], Any], kind: type, columns: int) -> Callable[[Any], Any]:
    """f of sparse rows, as workers call it: with their data, indices and indptr.

    A closure, so that f's own modules travel with it.

    kind : csr_array or csr_matrix of scipy.
    """

    def call(block: Any) -> Any:
        return f(sparse_rows(block, kind, columns))

    return call


def sparse_rows(leaves: Sequence[Array], kind: type, columns: int) -> Any:
    """The matrix of so many columns that has these arrays.

    >>> from scipy.sparse import csr_array
    >>> block = np.array([5.0, 7.0]), np.array([1, 0]), np.array([0, 1, 1, 2])
    >>> sparse_rows(block, csr_array, 2).toarray().tolist()
    [[0.0, 5.0], [0.0, 0.0], [7.0, 0.0]]
    """
    # Compiled code may expect aligned numbers, which those behind odd numbers of bytes are not.
    data, indices, indptr = (np.require(leaf, requirements="A") for leaf in leaves)
    return kind((data, indices, indptr), shape=(len(indptr) - 1, columns))
