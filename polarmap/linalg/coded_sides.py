"""The rows and the columns of a matrix, each coded when products first ask for them."""

from __future__ import annotations

import math
import uuid
from typing import Any, NamedTuple

from polarmap.arrays.array import CodedArray
from polarmap.arrays.encoding import encode
from polarmap.blocks.array_like import is_sparse
from polarmap.blocks.code_choice import CodeName, CodeOptions, encode_once, encode_sparse
from polarmap.blocks.coded import CodedBlocks
from polarmap.code.dtypes import is_exact
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.executors import storage_beside
from polarmap.linalg import matrices


class CodedSide(NamedTuple):
    """The coded rows or columns of a matrix, and the largest integer among them."""

    coded: CodedBlocks | CodedArray
    largest: int | None = None  # not known of a coded array of the caller's


class CodedSides:
    """Both sides of a matrix, each encoded when it is first asked for."""

    def __init__(
        self, matrix: Any, executor: Any, sizes: tuple[int, int], code: CodeName | PolarCode
    ) -> None:
        self._matrix, self._sizes, self._code = matrix, sizes, code
        self._is_sparse = is_sparse(matrix)  # and lies in memory
        self._storage = None if self._is_sparse else storage_beside(executor, matrix)
        self._prefix = f"operator-{uuid.uuid4().hex}"
        self.sides: dict[str, CodedSide] = {}
        self._ours: list[CodedArray] = []

    def side(self, name: str) -> CodedSide:
        """The matrix coded by "rows" or by "columns", encoded when it is asked for first."""
        if name not in self.sides:
            self.sides[name] = self._encode(name)
        return self.sides[name]

    def real_side(self, name: str) -> CodedBlocks | CodedArray:
        """A side for products with real numbers; CodeError if its parity may have wrapped."""
        side = self.side(name)
        dtype = self._matrix.dtype
        if is_exact(dtype) and dtype.itemsize == 8:
            if side.largest is None:
                self.sides[name] = side = side._replace(largest=_largest(side.coded))
            matrices.check_no_wrap(dtype, side.largest or 0, side.coded.code.norm_inf, "A")
        return side.coded

    def remove(self) -> None:
        """Let go of memory, delete what was stored."""
        self.sides.clear()
        while self._ours:
            self._ours.pop().delete()

    def _encode(self, name: str) -> CodedSide:
        if self._is_sparse:
            matrix = self._matrix if name == "rows" else self._matrix.T.tocsr()
            options = CodeOptions(*self._counts(matrix.shape[0]))
            sparse = encode_sparse(matrix, options, keep=True, name="A")
            return CodedSide(sparse, sparse.blocks.largest(0) if is_exact(matrix.dtype) else 0)
        if isinstance(self._matrix, CodedArray) and self._matrix.key is not None:
            raise CodeError(
                f"A is an encrypted coded array, and its {name} would be stored as they are: pass "
                "transposed=, what encode made of A.T with key="
            )
        matrix = self._matrix[:] if isinstance(self._matrix, CodedArray) else self._matrix
        data = matrices.CheckedMatrix(matrix if name == "rows" else matrices.TransposedMatrix(matrix), "A")
        k, n, code = self._counts(data.shape[0])
        if self._storage is None:
            return CodedSide(encode_once(data, k, n, code), data.largest)
        name, place = f"{self._prefix}-{name}", self._storage
        coded = encode(data, blocks=k, workers=n, code=code, name=name, storage=place, progress=False)
        self._ours.append(coded)
        return CodedSide(coded, data.largest)

    def _counts(self, length: int) -> tuple[int, int, CodeName | PolarCode]:
        """k, n and the code of a side of so many rows."""
        k = min(self._sizes[0], int(length))
        n = k + math.ceil((self._sizes[1] - self._sizes[0]) * k / self._sizes[0])
        code = self._code
        if isinstance(code, PolarCode) and k < code.k:
            code = "arikan" if code.kernel == "arikan" else "rotation"
        return k, n, code


def _largest(coded: Any) -> int:
    """The largest absolute value of a coded array of integers, read block by block."""
    watched = matrices.CheckedMatrix(coded, "A")
    for start in range(0, coded.shape[0], coded.rows):
        watched[start : start + coded.rows]
    return watched.largest
