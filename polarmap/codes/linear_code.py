"""Codes given by matrices: results = G u, wanted = T u, coded blocks = E blocks.

A new code is a class of its own with one of the two below as its base: `LinearCode` for any G, T
and E, `SystematicCode` for G = [I; P] and T = I, whose first k blocks are the data themselves.
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
    """A code with results = G u and wanted = T u, whose coded blocks other than data are E (blocks).

    A subclass sets n, k, `name` and `requirement` and defines E as `encoding_matrix`. It overrides what
    differs from this class: G, T, the dtypes that it carries, and the facts below. Maps decide by these
    facts, and not by the class of a code.

    Attributes
    ----------
    name : str
        The name of the code in a report.
    requirement : str
        What f must be, to follow "f is not".
    degree : int
        The largest degree of the polynomials that f may be; 1 for linear and affine f.
    option_name : str
        The word that asks for such a code, as in code="rotation"; empty if none does.
    supports_integers : bool
        Whether integers are coded, and decoded modulo 2^64, without rounding.
    integer_error_template : str
        The error for data that is therefore refused, with places for its `dtype` and this `code`.
    is_mds : bool
        Whether any `recovery_threshold` results determine those wanted, or nearly any.
    is_redundant : bool
        Whether other results can determine a missing one.
    has_uneven_parity : bool
        Whether parity blocks differ much in how many data blocks they are made of.
    adds_noise : bool
        Whether the data is mixed with noise blocks, which are drawn anew for every map.
    can_estimate : bool
        Whether missing results can be estimated from too few, by `block_prediction`.
    supports_sparse : bool
        Whether parity blocks of sparse matrices are made as sparse matrices.
    supports_triangles : bool
        Whether a `SymmetricProductCode` can be made of it.
    is_storable : bool
        Whether the manifest of a stored array can describe it.
    max_backups : int
        How many copies of a late task replace the parity blocks; 0 for redundant codes.
    """

    name: str
    requirement: str
    degree = 1
    option_name = ""
    supports_integers = False
    integer_error_template = "{code!r} mixes real numbers: convert the {dtype} data with .astype(float)"
    is_mds = is_redundant = True
    has_uneven_parity = adds_noise = can_estimate = supports_sparse = supports_triangles = is_storable = False
    max_backups = 0

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Return the dtype of parity blocks for data of `dtype`; CodeError if the code cannot carry it."""
        data_dtype = check_supported_dtype(dtype, "the data")
        if is_integer_dtype(data_dtype) and not self.supports_integers:
            raise CodeError(self.integer_error_template.format(code=self, dtype=data_dtype))
        return data_dtype

    @property
    def n_targets(self) -> int:
        """The number of wanted results: those of the k data blocks."""
        return self.k

    @property
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are data blocks, unchanged: none."""
        return np.arange(0)

    @property
    def norm_inf(self) -> float:
        """The largest sum of absolute coefficients of a coded block."""
        return float(np.abs(self.encoding_matrix).sum(axis=1).max(initial=1.0))

    @property
    def n_input_blocks(self) -> int:
        """How many blocks the coded blocks are mixed of."""
        return int(self.encoding_matrix.shape[1])

    def encode_parity(self, blocks: tiling.FlatBlocks, out: Array | None = None) -> Array:
        """Compute the coded blocks E (blocks), which are not data blocks.

        Parameters
        ----------
        blocks : array (mixed, b) or sequence of arrays (b,)
            Flat blocks, one dtype for all.
        out : array (n - len(systematic), b), contiguous, of `parity_dtype`, optional
            The array to write to; by default a new one.

        Returns
        -------
        array (n - len(systematic), b), of `parity_dtype`.
        """
        tiling.check_flat_blocks(blocks, self.n_input_blocks, self)
        dtype = self.parity_dtype(blocks[0].dtype)
        parity_shape = self.n - len(self.systematic_indices), blocks[0].size
        if out is None:
            out = np.empty(parity_shape, dtype)
        if out.shape != parity_shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise CodeError(f"out must be a contiguous {dtype} array of shape {parity_shape}")
        if dtype.kind == "c":
            self._encode_parity_into(tiling.view_as_real(blocks, dtype), out.view(to_real_dtype(dtype)))
        else:
            self._encode_parity_into(blocks, out)
        return out

    def describe_ill_conditioning(self, max_amplification: float) -> str:
        """Return why the code seldom decodes within `max_amplification`, and what to do; "" if it does.

        Here nothing is known before results arrive: "".
        """
        return ""

    def precompute_encoding(self) -> None:
        """Compute what `encode_parity` needs, if that takes time."""

    def _encode_parity_into(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        """Write the parity of flat real blocks to `out`, with sums in its accumulator dtype."""
        sum_dtype = choose_accumulator_dtype(out.dtype)
        block_matmul.dense_matmul(self.encoding_matrix.astype(sum_dtype, copy=False), blocks, out)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Return the decoder for the results of `arrived_mask`; `modular`: for integers modulo 2^64."""
        return PseudoInverseDecoder(self, arrived_mask)

    def make_decodability_tracker(self, modular: bool) -> Callable[[int], bool] | None:
        """Return a function to call with each arrival, which says whether they suffice.

        None, as here, leaves that to `ErasureDecoder.rank_deficit`.
        """
        return None


class SystematicCode(LinearCode):
    """A code with G = [I; P], T = I, E = P: blocks 0..k-1 are the data, unchanged, and k..n-1 their parity.

    A subclass defines P as `encoding_matrix`.
    """

    @property
    def generator_matrix(self) -> Array:
        """G = [I; P], shape (n, k)."""
        identity = np.eye(self.k, dtype=self.encoding_matrix.dtype)
        return np.concatenate([identity, self.encoding_matrix])

    @property
    def recovery_threshold(self) -> int:
        """The least number of results that can determine those of the data blocks: k."""
        return self.k

    @property
    def n_input_blocks(self) -> int:
        """The number of blocks that parity blocks are made of: k."""
        return self.k

    @property
    def systematic_indices(self) -> Indices:
        """The indices of the coded blocks that are data blocks, unchanged: 0..k-1."""
        return np.arange(self.k)

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Return the decoder for the results of `arrived_mask`; `modular`: for integers modulo 2^64."""
        return SystematicDecoder(self, arrived_mask)
