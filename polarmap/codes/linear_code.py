"""Base classes for codes that are given by matrices: results = G u, targets = T u, coded blocks = E blocks.

To add a code, derive from `LinearCode` for arbitrary G, T and E, or from `SystematicCode` for G = [I; P] and
T = I, whose first k coded blocks are the data blocks. Both add the encoder to `base.CodeMatrices` and choose
the erasure decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from polarmap.codes.base import CodeMatrices, ErasureDecoder
from polarmap.codes.compute import block_matmul, tiling
from polarmap.codes.real_decoders import PseudoInverseDecoder, SystematicDecoder
from polarmap.dtypes import (
    Array,
    DType,
    Indices,
    Mask,
    check_supported_dtype,
    choose_accumulator_dtype,
    is_integer_dtype,
    to_real_dtype,
)
from polarmap.errors import CodeError


class LinearCode(CodeMatrices):
    """A code with results = G u and targets = T u, whose coded blocks other than data blocks are E blocks.

    A subclass sets `n`, `k`, `name` and `requirement` and defines E as `encoding_matrix`. It overrides G, T,
    the supported dtypes and the attributes below where they differ. The map functions test these attributes
    and never the class of a code.

    Attributes
    ----------
    name : str
        Name of the code in reports.
    requirement : str
        Property that f must have, worded to follow "f is not".
    degree : int
        Largest degree of a polynomial f that the code supports; 1 for linear and affine f.
    option_name : str
        Value of `code=` that selects this code, such as "rotation"; empty if no value does.
    supports_integers : bool
        Whether integers are encoded, and decoded modulo 2^64, without rounding.
    integer_error_template : str
        Message of the error for integer data that the code cannot carry, with the fields `dtype` and `code`.
    is_mds : bool
        Whether all, or nearly all, sets of `recovery_threshold` results determine the targets.
    is_redundant : bool
        Whether a missing result can be computed from the results that arrived.
    has_uneven_parity : bool
        Whether the number of data blocks per parity block varies widely.
    adds_noise : bool
        Whether the data blocks are combined with noise blocks, which are drawn again for every map.
    can_estimate : bool
        Whether `block_prediction` can estimate missing results that the arrivals do not determine.
    supports_sparse : bool
        Whether the parity blocks of sparse matrices are sparse matrices.
    supports_triangles : bool
        Whether a `SymmetricProductCode` can be built from this code.
    is_storable : bool
        Whether the manifest of a stored array can describe this code.
    max_backups : int
        Number of backup attempts per late task, in place of parity blocks; 0 for redundant codes.
    """

    name: str
    requirement: str
    degree = 1
    option_name = ""
    supports_integers = False
    integer_error_template = "{code!r} does not support {dtype} data. Convert the data with .astype(float)."
    is_mds = is_redundant = True
    has_uneven_parity = adds_noise = can_estimate = supports_sparse = supports_triangles = is_storable = False
    max_backups = 0

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Return the dtype of the parity blocks for data of `dtype`.

        Raises
        ------
        CodeError
            If the code does not support data of `dtype`.
        """
        data_dtype = check_supported_dtype(dtype, "the data")
        if is_integer_dtype(data_dtype) and not self.supports_integers:
            raise CodeError(self.integer_error_template.format(code=self, dtype=data_dtype))
        return data_dtype

    @property
    def n_targets(self) -> int:
        """The number of targets, one for each of the k data blocks."""
        return self.k

    @property
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are unchanged data blocks; by default, empty."""
        return np.arange(0)

    def compute_encoding_matrix_rows(self, row_indices: Indices) -> Array:
        """Return the rows `row_indices` of E."""
        return self.encoding_matrix[row_indices]

    def count_blocks_per_parity_block(self) -> Indices:
        """Return the number of input blocks that each row of E combines."""
        return np.asarray(np.count_nonzero(self.encoding_matrix, axis=1))

    @property
    def norm_inf(self) -> float:
        """The infinity norm of E: the largest sum of absolute coefficients of a coded block."""
        return float(np.abs(self.encoding_matrix).sum(axis=1).max(initial=1.0))

    @property
    def n_input_blocks(self) -> int:
        """The number of input blocks that the encoder combines."""
        return int(self.encoding_matrix.shape[1])

    def encode_parity(self, blocks: tiling.FlatBlocks, out: Array | None = None) -> Array:
        """Compute E blocks, the coded blocks that are not data blocks.

        Parameters
        ----------
        blocks : array (input blocks, b) or sequence of arrays (b,)
            Flat input blocks of one dtype.
        out : array (n - len(systematic_indices), b), optional
            Contiguous array of `parity_dtype` to write to. By default, a new array is allocated.

        Returns
        -------
        array (n - len(systematic_indices), b), of `parity_dtype`
            `out`, if it was passed.

        Raises
        ------
        CodeError
            If the number, shape or dtype of the blocks is wrong, or `out` does not match.
        """
        tiling.check_flat_blocks(blocks, self.n_input_blocks, self)
        dtype = self.parity_dtype(blocks[0].dtype)
        parity_shape = self.n - len(self.systematic_indices), blocks[0].size
        if out is None:
            out = np.empty(parity_shape, dtype)
        if out.shape != parity_shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise CodeError(
                f"out must be a contiguous {dtype} array of shape {parity_shape}, "
                f"not a {out.dtype} array of shape {out.shape}"
            )
        if dtype.kind == "c":
            self._encode_parity_into(tiling.view_as_real(blocks, dtype), out.view(to_real_dtype(dtype)))
        else:
            self._encode_parity_into(blocks, out)
        return out

    def describe_ill_conditioning(self, max_amplification: float) -> str:
        """Explain why the code is likely to decode too inaccurately, and what to change.

        Parameters
        ----------
        max_amplification : float
            Largest acceptable amplification.

        Returns
        -------
        str
            Text for an error message; empty if no problem is expected, as in this base class.
        """
        return ""

    def precompute_encoding(self) -> None:
        """Compute and cache the matrices that `encode_parity` needs, if computing them takes long."""

    def _encode_parity_into(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        """Write the parity of flat real blocks to `out`, adding in the accumulator dtype of `out`."""
        sum_dtype = choose_accumulator_dtype(out.dtype)
        block_matmul.dense_matmul(self.encoding_matrix.astype(sum_dtype, copy=False), blocks, out)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the erasure decoder for one erasure pattern.

        Parameters
        ----------
        arrived_mask : boolean array (n,)
            True for each result that has arrived.
        modular : bool
            Decode integers modulo 2^64 instead of real numbers.

        Returns
        -------
        ErasureDecoder
        """
        return PseudoInverseDecoder(self, arrived_mask)

    def make_decodability_tracker(self, modular: bool) -> Callable[[int], bool] | None:
        """Return a function that tracks decodability from arrival to arrival, or None.

        Parameters
        ----------
        modular : bool
            Track decodability modulo 2^64 instead of over the reals.

        Returns
        -------
        callable or None
            Called with the index of each block that arrives. It returns whether the arrivals so far determine
            all blocks. With None, as in this base class, `ErasureDecoder.rank_deficit` is used instead.
        """
        return None


class SystematicCode(LinearCode):
    """A code with G = [I; P], T = I and E = P.

    Coded blocks 0..k-1 are the data blocks, and coded blocks k..n-1 are the parity blocks. A subclass defines
    P as `encoding_matrix`.
    """

    @property
    def generator_matrix(self) -> Array:
        """The generator matrix G = [I; P], shape (n, k)."""
        identity = np.eye(self.k, dtype=self.encoding_matrix.dtype)
        return np.concatenate([identity, self.encoding_matrix])

    @property
    def recovery_threshold(self) -> int:
        """The smallest number of results that can determine the targets: k."""
        return self.k

    @property
    def n_input_blocks(self) -> int:
        """The number of input blocks of the encoder: k."""
        return self.k

    @property
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are unchanged data blocks: 0..k-1."""
        return np.arange(self.k)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the least-squares decoder for the results in `arrived_mask`; `modular` has no effect."""
        return SystematicDecoder(self, arrived_mask)
