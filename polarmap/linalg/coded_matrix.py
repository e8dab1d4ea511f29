"""A matrix that is encoded by rows and by columns. Each encoding is created when a product first needs it."""

from __future__ import annotations

import math
import uuid
from typing import Any

from polarmap.arrays.array import CodedArray
from polarmap.arrays.encoding import encode
from polarmap.blocks.array_like import is_scipy_sparse
from polarmap.blocks.code_choice import (
    CodeName,
    CodeOptions,
    encode_for_reuse,
    encode_on_cluster,
    encode_sparse,
)
from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.blocks.pairs import CodedPairs
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import is_integer_dtype
from polarmap.errors import CodeError
from polarmap.executors.encryption_keys import check_not_encrypted
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.linalg import operands
from polarmap.linalg.layouts import GRAM_COUNTS, BlockCounts

EncodedMatrix = CodedData | CodedArray


class CodedMatrix:
    """A matrix A, encoded as blocks of rows for products A x, and as blocks of columns for products A' y.

    The rows or the columns are encoded only when a product first needs them.
    """

    def __init__(
        self, matrix: Any, executor: ResolvedExecutor, block_counts: BlockCounts, code: CodeName | PolarCode
    ) -> None:
        self._matrix, self._block_counts, self._code = matrix, block_counts, code
        self.is_sparse = is_scipy_sparse(matrix)  # The coded blocks of a sparse matrix are kept in memory.
        self._storage = None if self.is_sparse else executor.choose_storage(matrix)
        self._executor = executor
        self._name_prefix = f"operator-{uuid.uuid4().hex}"
        self.encodings: dict[str, EncodedMatrix] = {}
        # The largest absolute value of the entries if they are integers, for each axis in `encodings`. It is
        # computed when it is first needed.
        self._max_integers: dict[str, int] = {}
        self._owned_arrays: list[CodedArray] = []
        self._column_pairs: CodedPairs | None = None

    def get_encoding(self, axis: str) -> EncodedMatrix:
        """Return the coded blocks of rows or columns of the matrix. They are created on first use.

        `axis` is "rows", "columns" or "paired columns". The last one has fewer blocks of columns. It is used
        for Gram matrices, whose tasks multiply pairs of blocks.
        """
        if axis not in self.encodings:
            self.encodings[axis] = self._encode_axis(axis)
        return self.encodings[axis]

    def get_encoding_for_real_operand(self, axis: str) -> EncodedMatrix:
        """Return the coded blocks of rows or columns for a product with a floating-point vector or matrix.

        `axis` is "rows" or "columns". If A contains 64-bit integers, its parity blocks may have overflowed.
        Only products with integers can then be decoded, so CodeError is raised.
        """
        encoding, dtype = self.get_encoding(axis), self._matrix.dtype
        if is_integer_dtype(dtype) and dtype.itemsize == 8:
            if axis not in self._max_integers:
                self._max_integers[axis] = encoding.coded_blocks().data_blocks.compute_max_abs(0)
            operands.check_parity_fits_int64(dtype, self._max_integers[axis], encoding.code.norm_inf, "A")
        return encoding

    def get_column_pairs(self) -> CodedPairs:
        """Return the pairs of coded column blocks from which A' A is computed.

        The coded blocks for products A' y are reused if their number and code are suitable. Otherwise, the
        columns are encoded again with fewer blocks.
        """
        if self._column_pairs is None:
            code = self.get_encoding("columns").code
            is_shareable = code.supports_triangles and code.k <= GRAM_COUNTS.k
            column_blocks = self.get_encoding("columns" if is_shareable else "paired columns").coded_blocks()
            self._column_pairs = CodedPairs(column_blocks, column_blocks, upper_triangle=True)
        return self._column_pairs

    def release_encodings(self) -> None:
        """Free the coded blocks in memory, and delete the ones that were written to storage."""
        self.encodings.clear()
        self._column_pairs = None
        while self._owned_arrays:
            self._owned_arrays.pop().delete()

    def _encode_axis(self, axis: str) -> EncodedMatrix:
        if self.is_sparse:
            matrix = self._matrix if axis == "rows" else self._matrix.T.tocsr()
            code_options = CodeOptions(*self._choose_block_counts_and_code(matrix.shape[0], False))
            return encode_sparse(matrix, code_options, keep_parity=True, argument_name="A")
        matrix = self._matrix
        if (cluster_encoding := self._encode_on_cluster(axis)) is not None:
            return cluster_encoding
        if isinstance(matrix, CodedArray):
            remedy = f"pass the {axis} as transpose=, a CodedArray that encode has made of A.T with key="
            check_not_encrypted(matrix, "A", remedy)
            matrix = matrix[:]
        data = operands.ValidatedMatrix(matrix if axis == "rows" else operands.TransposedView(matrix), "A")
        k, n, code = self._choose_block_counts_and_code(data.shape[0], axis == "paired columns")
        if self._storage is None:
            return encode_for_reuse(data, k, n, code)
        array_name, storage = f"{self._name_prefix}-{axis}", self._storage
        coded_array = encode(
            data, blocks=k, tasks=n, code=code, name=array_name, storage=storage, progress=False
        )
        self._owned_arrays.append(coded_array)
        self._max_integers[axis] = data.max_abs
        return coded_array

    def _encode_on_cluster(self, axis: str) -> CodedData | None:
        """Encode the matrix on the cluster of the executor if it is a dask.array.

        Return None if the matrix is not a dask.array, or if it is not on the cluster of the executor.
        """
        if not hasattr(self._matrix, "rechunk"):
            return None
        matrix = self._matrix if axis == "rows" else self._matrix.T
        k, n, code = self._choose_block_counts_and_code(matrix.shape[0], axis == "paired columns")
        cluster_data = self._executor.partition(matrix, k)
        if cluster_data is None:
            return None
        coded_data = encode_on_cluster(cluster_data, CodeOptions(k, n, code), None)
        if coded_data.parity_warning:
            raise CodeError(f"A has no parity: {coded_data.parity_warning}")
        return coded_data

    def _choose_block_counts_and_code(
        self, n_rows: int, is_paired: bool
    ) -> tuple[int, int, CodeName | PolarCode]:
        """Return k, n and the code for a matrix with `n_rows` rows: k data blocks, encoded as n blocks.

        k is reduced if some blocks would be empty. If `is_paired` is True, the blocks are for the pairs from
        which a Gram matrix is computed.
        """
        counts, code = (GRAM_COUNTS, "rotation") if is_paired else (self._block_counts, self._code)
        k = compute_max_nonempty_blocks(int(n_rows), min(counts.k, int(n_rows)))
        n = k + math.ceil((counts.n - counts.k) * k / counts.k)
        return k, n, _resize_code(code, n, k)


def _resize_code(code: CodeName | PolarCode, n: int, k: int) -> CodeName | PolarCode:
    """Return a copy of `code` for n blocks, of which k are data blocks, with the same options.

    If `code` is a name such as "rotation", return it unchanged, because it does not fix the sizes.
    """
    return code if isinstance(code, str) else code.with_sizes(n, k)
