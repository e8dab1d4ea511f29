"""Codes given by matrices: results = G u, wanted = T u, coded blocks = E blocks.

A new code is a class of its own with one of the two below as its base: `LinearCode` for any G, T
and E, `SystematicCode` for G = [I; P] and T = I, whose first k blocks are the data themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from polarmap.codes import tiled
from polarmap.codes.algebra import Matrices, Recovery
from polarmap.codes.dtypes import (
    Array,
    DType,
    Indices,
    Mask,
    check_dtype,
    is_exact,
    real_dtype,
    working_dtype,
)
from polarmap.codes.recovery import LinearRecovery, SystematicRecovery
from polarmap.errors import CodeError


class LinearCode(Matrices):
    """results = G u, wanted = T u; the coded blocks that are no data blocks are E (blocks).

    A subclass sets n, k, `name`, `assumption` and says E, and what else is not as here: G, T, which dtypes
    it carries.

    name : what a report calls it.
    assumption : what f must be, to follow "f is not".
    degree : of the polynomials that f may be; 1 for linear and affine f.
    option : the word that asks for such a code, as in code="rotation"; empty if none does.
    carries_integers : whether integers are coded, and decoded modulo 2^64, without rounding.
    no_integers : what is said of data that is therefore refused, of its `dtype` and this `code`.
    is_mds : whether any `recovery_threshold` results determine those wanted, or nearly any.
    """

    name: str
    assumption: str
    degree = 1
    option = ""
    carries_integers = False
    no_integers = "{code!r} mixes real numbers: convert the {dtype} data with .astype(float)"
    is_mds = True

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Dtype of the parity blocks of such data; CodeError for data that the code cannot carry."""
        checked = check_dtype(dtype, "the data")
        if is_exact(checked) and not self.carries_integers:
            raise CodeError(self.no_integers.format(code=self, dtype=checked))
        return checked

    @property
    def wanted(self) -> int:
        """How many results are wanted: those of the k data blocks."""
        return self.k

    @property
    def systematic(self) -> Indices:
        """The coded blocks that are data blocks untouched: none."""
        return np.arange(0)

    @property
    def norm_inf(self) -> float:
        """The largest sum of absolute coefficients of a coded block."""
        return float(np.abs(self.coefficients).sum(axis=1).max(initial=1.0))

    @property
    def mixed(self) -> int:
        """How many blocks the coded blocks are mixed of."""
        return int(self.coefficients.shape[1])

    def parity(self, rows: tiled.Rows, out: Array | None = None) -> Array:
        """The coded blocks E (blocks) that are no data blocks.

        Parameters
        ----------
        rows : array (mixed, b) or sequence of arrays (b,)
            Flat blocks, one dtype for all.
        out : array (n - len(systematic), b), contiguous, of `parity_dtype`, optional
            Where to put them.

        Returns
        -------
        array (n - len(systematic), b), of `parity_dtype`.
        """
        tiled.check_rows(rows, self.mixed, self)
        dtype, shape = self.parity_dtype(rows[0].dtype), (self.n - len(self.systematic), rows[0].size)
        if out is None:
            out = np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise CodeError(f"out must be a contiguous {dtype} array of shape {shape}")
        if dtype.kind == "c":
            self._fill_parity(tiled.real_rows(rows, dtype), out.view(real_dtype(dtype)))
        else:
            self._fill_parity(rows, out)
        return out

    def get_ready(self) -> None:
        """Choose what the parity is made by, where that takes time."""

    def _fill_parity(self, rows: tiled.Rows, out: Array) -> None:
        """Put the parity of flat real blocks into `out`, summed in its working dtype."""
        tiled.dense(self.coefficients.astype(working_dtype(out.dtype), copy=False), rows, out)

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover what is wanted from the results of the mask `arrived`."""
        return LinearRecovery(self, arrived)

    def progress(self, exact: bool) -> Callable[[int], bool] | None:
        """None: the deficit of `recovery` says whether arrivals determine what is wanted."""
        return None


class SystematicCode(LinearCode):
    """G = [I; P], T = I, E = P: blocks 0..k-1 are the data untouched, k..n-1 their parity.

    A subclass says P, as `coefficients`.
    """

    @property
    def generator(self) -> Array:
        """G = [I; P], shape (n, k)."""
        identity = np.eye(self.k, dtype=self.coefficients.dtype)
        return np.concatenate([identity, self.coefficients])

    @property
    def recovery_threshold(self) -> int:
        """The fewest results that can determine those of the data blocks: k."""
        return self.k

    @property
    def mixed(self) -> int:
        """How many blocks the parity blocks are mixed of: k."""
        return self.k

    @property
    def systematic(self) -> Indices:
        """The coded blocks that are data blocks untouched: 0..k-1."""
        return np.arange(self.k)

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the missing data blocks when the blocks of the mask `arrived` are there."""
        return SystematicRecovery(self, arrived)
