"""f as workers call it where its block is not what f takes: rows of a sparse matrix, parts to be added up.

Runs on workers: imports numpy. The class that comes with f on sparse rows brings scipy along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.worker.pytree import Structure, flatten, unflatten

Array = npt.NDArray[Any]


def combination(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The sum of f over the parts that a worker gets, each times a coefficient."""

    def combine(block: Any) -> Any:
        coefficients, parts = block
        total: list[Any] = []
        structure: Structure = ()
        for coefficient, part in zip(coefficients.tolist(), parts):
            leaves, structure = flatten(f(part))
            wrong = [leaf.dtype for leaf in leaves if leaf.dtype.kind not in "biufc"]
            if wrong:
                raise TypeError(f"f returned dtype {wrong[0]}, which cannot be added up: return numbers")
            terms = [coefficient * (leaf + 0 if leaf.dtype == bool else leaf) for leaf in leaves]
            if total and len(total) != len(terms):
                raise ValueError("f returned different structures for different parts")
            total = [one + two for one, two in zip(total, terms)] if total else terms
        return unflatten(structure, [np.asarray(leaf) for leaf in total])

    return combine


def on_sparse_rows(f: Callable[[Any], Any], kind: type, columns: int) -> Callable[[Any], Any]:
    """f of sparse rows, of which a block holds data, indices and indptr, the three arrays of their CSR form.

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
