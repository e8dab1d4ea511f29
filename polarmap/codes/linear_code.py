"""Base classes for codes that are defined by matrices: results = G u, targets = T u, coded blocks = E blocks.

To add a code, derive from `LinearCode` for arbitrary G, T and E, or from `SystematicCode` for G = [I; P] and
T = I, whose first k coded blocks are the data blocks. Both add the encoder to `base.CodeMatrices` and choose
the erasure decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class GroupGuarantee(NamedTuple):
    """Describes how many lost results a code with several groups of blocks tolerates.

    Attributes
    ----------
    n_groups : int
        Number of groups of blocks, each decoded independently.
    max_losses : int
        Number of results that every group may lose. This assumes that a group with k data blocks can be
        decoded from almost any k of its results.
    failure_probability : float
        Probability that some group loses more results than it has parity blocks.
    """

    n_groups: int
    max_losses: int
    failure_probability: float


class LinearCode(CodeMatrices):
    """Base class of the codes that a parallel map can use. Each code is defined by three matrices.

        coded blocks = E @ blocks,   results = G @ u,   targets = T @ u

    Here u stands for the unknown blocks, and the targets are the results that the caller wants.

    To define a code, a subclass sets `n`, `k`, `name` and `requirement`, and implements `encoding_matrix`,
    which is E. It overrides the other matrices, the supported dtypes and the attributes below if the defaults
    do not fit. The map functions depend only on these attributes, never on the class of a code.

    Attributes
    ----------
    name : str
        Name of the code in reports.
    requirement : str
        Property that f must have, such as "linear". Error messages insert it after "f is not".
    degree : int
        Largest degree of a polynomial f that the code supports; 1 for linear and affine f.
    option_name : str
        Value of `code=` that selects this code, such as "rotation"; empty if no value does.
    supports_integers : bool
        Whether integers are encoded, and decoded modulo 2^64, without rounding.
    integer_error_template : str
        Error message for integer data that the code does not support, a format string with the fields
        `dtype` and `code`.
    is_mds : bool
        Whether any `recovery_threshold` results, or nearly any, suffice to decode the targets.
    is_redundant : bool
        Whether a missing result can be computed from the results that arrived.
    has_uneven_parity : bool
        Whether the number of data blocks per parity block varies widely.
    adds_noise : bool
        Whether the encoder mixes in random noise blocks, which are new in every map.
    can_estimate : bool
        Whether `block_prediction` can estimate missing results while too few have arrived to decode them.
    supports_sparse : bool
        Whether sparse data blocks are supported, with sparse parity blocks.
    supports_triangles : bool
        Whether a `SymmetricProductCode` can be built from this code.
    is_storable : bool
        Whether arrays encoded with this code can be stored and loaded again.
    n_groups : int
        Number of groups of blocks that are decoded independently of each other.
    max_backups : int
        Maximum number of backup tasks per late task; 0 for codes with parity blocks, which need none.
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
    n_groups = 1

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
        """The number of results that the decoder must return: one for each of the k data blocks."""
        return self.k

    @property
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are unchanged data blocks; none by default."""
        return np.arange(0)

    def compute_encoding_matrix_rows(self, row_indices: Indices) -> Array:
        """Return the rows `row_indices` of the encoding matrix E."""
        return self.encoding_matrix[row_indices]

    def count_blocks_per_parity_block(self) -> Indices:
        """Return the number of input blocks that each parity block combines, one entry per parity block."""
        return np.asarray(np.count_nonzero(self.encoding_matrix, axis=1))

    @property
    def norm_inf(self) -> float:
        """The infinity norm (largest absolute row sum) of the encoding matrix E, at least 1.

        No entry of a coded block exceeds the largest entry of the input by more than this factor.
        """
        return float(np.abs(self.encoding_matrix).sum(axis=1).max(initial=1.0))

    @property
    def n_input_blocks(self) -> int:
        """The number of blocks that the encoder takes as input."""
        return int(self.encoding_matrix.shape[1])

    def encode_parity(self, blocks: tiling.FlatBlocks, out: Array | None = None) -> Array:
        """Compute the parity blocks, i.e. all coded blocks that are not copies of data blocks.

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

    def split_into_groups(self) -> Sequence[tuple[LinearCode, Indices]]:
        """Return the groups of blocks that are decoded independently, as pairs (code, coded block indices).

        By default, there is one group, which consists of this code and all its blocks.
        """
        return [(self, np.arange(self.n))]

    def get_group_guarantee(self, loss_rate: float) -> GroupGuarantee | None:
        """Return how many lost results a code with several groups tolerates, or None for a single group.

        Parameters
        ----------
        loss_rate : float
            Probability that a result is lost, independently of the others.
        """
        return None

    def describe_ill_conditioning(self, max_amplification: float) -> str:
        """Explain why decoding may be less accurate than required, and how to avoid this.

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
        """Compute and cache the matrices that `encode_parity` needs, so that the first call is not slower.

        By default, nothing is computed.
        """

    def _encode_parity_into(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        """Compute the parity blocks of real input blocks and write them to `out`.

        The sums are computed in the accumulator dtype of `out`, which may have more bits than `out`.
        """
        sum_dtype = choose_accumulator_dtype(out.dtype)
        block_matmul.dense_matmul(self.encoding_matrix.astype(sum_dtype, copy=False), blocks, out)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder for the results that have arrived.

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
        """Return a function that tells after each arrival whether all blocks can be decoded, or None.

        A code returns such a function only if it is faster than computing a matrix rank after each arrival.

        Parameters
        ----------
        modular : bool
            Track decodability modulo 2^64 instead of over the reals.

        Returns
        -------
        callable or None
            Call it with the index of each block that arrives. It returns whether all blocks can be decoded
            now. This base class returns None: then `ErasureDecoder.rank_deficit` gives the answer.
        """
        return None


class SystematicCode(LinearCode):
    """Base class of codes whose coded blocks include the unchanged data blocks.

    Coded blocks 0..k-1 are the data blocks, and coded blocks k..n-1 are the parity blocks P @ data blocks.
    The generator matrix is therefore [I; P], with the parity matrix P. The target matrix is the identity. A
    subclass implements `encoding_matrix`, which is P.
    """

    @property
    def generator_matrix(self) -> Array:
        """The generator matrix [I; P], shape (n, k), where P is the parity matrix."""
        identity = np.eye(self.k, dtype=self.encoding_matrix.dtype)
        return np.concatenate([identity, self.encoding_matrix])

    @property
    def recovery_threshold(self) -> int:
        """The smallest number of results from which decoding is possible: k, the number of data blocks."""
        return self.k

    @property
    def n_input_blocks(self) -> int:
        """The number of blocks that the encoder takes as input: k, the number of data blocks."""
        return self.k

    @property
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are unchanged data blocks: 0..k-1."""
        return np.arange(self.k)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the least-squares decoder for the results that have arrived.

        `modular` is ignored. Codes that decode integers modulo 2^64 override this method.
        """
        return SystematicDecoder(self, arrived_mask)
