"""The rows and the columns of a matrix, each coded when products first ask for them."""

from __future__ import annotations

import math
import uuid
from typing import Any

from polarmap.arrays.array import CodedArray
from polarmap.arrays.encoding import encode
from polarmap.blocks.array_like import is_sparse
from polarmap.blocks.code_choice import CodeName, CodeOptions, encode_once, encode_sparse, encoded_there
from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import most_filled_blocks
from polarmap.blocks.pairs import CodedPairs
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import is_integer_dtype
from polarmap.errors import CodeError
from polarmap.executors import data_beside, storage_beside
from polarmap.executors.keys import check_may_be_copied
from polarmap.linalg import matrices
from polarmap.linalg.layouts import PAIRED, BlockCounts

Coded = CodedData | CodedArray


class CodedSides:
    """Both sides of a matrix, each encoded when it is first asked for."""

    def __init__(self, matrix: Any, executor: Any, sizes: BlockCounts, code: CodeName | PolarCode) -> None:
        self._matrix, self._sizes, self._code = matrix, sizes, code
        self.is_sparse = is_sparse(matrix)  # and lies in memory
        self._storage = None if self.is_sparse else storage_beside(executor, matrix)
        self._executor = executor
        self._prefix = f"operator-{uuid.uuid4().hex}"
        self.sides: dict[str, Coded] = {}
        self._largest: dict[str, int] = {}  # integer of a side, as far as it was asked for or is known anyway
        self._ours: list[CodedArray] = []
        self._pairs: CodedPairs | None = None

    def side(self, name: str) -> Coded:
        """The matrix coded by "rows", "columns" or "paired columns", encoded when it is asked for first."""
        if name not in self.sides:
            self.sides[name] = self._encode(name)
        return self.sides[name]

    def real_side(self, name: str) -> Coded:
        """A side for products with real numbers; CodeError if its parity may have wrapped."""
        coded, dtype = self.side(name), self._matrix.dtype
        if is_integer_dtype(dtype) and dtype.itemsize == 8:
            if name not in self._largest:
                self._largest[name] = coded.coded_blocks().blocks.largest(0)
            matrices.check_no_wrap(dtype, self._largest[name], coded.code.norm_inf, "A")
        return coded

    def pairs(self) -> CodedPairs:
        """Pairs of coded blocks of columns, for A' A; of blocks of their own where these are too many."""
        if self._pairs is None:
            code = self.side("columns").code
            fits = isinstance(code, PolarCode) and code.k <= PAIRED.k and code.kernel == "rotation"
            columns = self.side("columns" if fits else "paired columns").coded_blocks()
            self._pairs = CodedPairs(columns, columns, triangle=True)
        return self._pairs

    def remove(self) -> None:
        """Let go of memory, delete what was stored."""
        self.sides.clear()
        self._pairs = None
        while self._ours:
            self._ours.pop().delete()

    def _encode(self, name: str) -> Coded:
        if self.is_sparse:
            matrix = self._matrix if name == "rows" else self._matrix.T.tocsr()
            return encode_sparse(
                matrix, CodeOptions(*self._counts(matrix.shape[0], False)), keep=True, name="A"
            )
        matrix = self._matrix
        if (there := self._encode_there(name)) is not None:
            return there
        if isinstance(matrix, CodedArray):
            remedy = f"pass the {name} as transposed=, what encode made of A.T with key="
            check_may_be_copied(matrix, "A", remedy)
            matrix = matrix[:]
        data = matrices.CheckedMatrix(matrix if name == "rows" else matrices.TransposedMatrix(matrix), "A")
        k, n, code = self._counts(data.shape[0], name == "paired columns")
        if self._storage is None:
            return encode_once(data, k, n, code)
        where, place = f"{self._prefix}-{name}", self._storage
        coded = encode(data, blocks=k, tasks=n, code=code, name=where, storage=place, progress=False)
        self._ours.append(coded)
        self._largest[name] = data.largest
        return coded

    def _encode_there(self, name: str) -> CodedData | None:
        """A side of a dask.array on the cluster of the executor, coded there; None for all others."""
        if not hasattr(self._matrix, "rechunk"):
            return None
        matrix = self._matrix if name == "rows" else self._matrix.T
        k, n, code = self._counts(matrix.shape[0], name == "paired columns")
        there = data_beside(self._executor, matrix, k)
        if there is None:
            return None
        coded = encoded_there(there, CodeOptions(k, n, code), None)
        if coded.unprotected_warning:
            raise CodeError(f"A has no parity: {coded.unprotected_warning}")
        return coded

    def _counts(self, length: int, is_paired: bool) -> tuple[int, int, CodeName | PolarCode]:
        """k, n and the code of a side of so many rows, in blocks of which none is empty."""
        sizes, code = (PAIRED, "rotation") if is_paired else (self._sizes, self._code)
        k = most_filled_blocks(int(length), min(sizes.k, int(length)))
        n = k + math.ceil((sizes.n - sizes.k) * k / sizes.k)
        return k, n, _resized(code, n, k)


def _resized(code: CodeName | PolarCode, n: int, k: int) -> CodeName | PolarCode:
    """Return the caller's code with the numbers of blocks of a side; a name stands for every size."""
    return code.with_sizes(n, k) if isinstance(code, PolarCode) else code
