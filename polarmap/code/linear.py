"""Codes given by two matrices: how blocks are mixed, and how results depend on their unknowns."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code import tiled
from polarmap.code.design import Floats, Indices
from polarmap.code.dtypes import check_dtype, is_exact, real_dtype, working_dtype
from polarmap.code.recovery import DecodingPlan, left_inverse, left_null

Array = npt.NDArray[Any]


class GeneratedPlan(DecodingPlan):
    """Results are G c for unknown c, and those wanted are T c: T pinv(G_arrived) recovers them.

    Of all decoders without bias that one multiplies independent errors of the results least.

    Parameters
    ----------
    generator, targets : arrays (n, u) and (k, u)
        G and T.
    systematic : int
        How many of the first results are wanted as they are: k or 0.
    arrived : boolean array (n,)
    gain : float
        By how much the results that arrive may exceed those wanted.
    """

    def __init__(
        self,
        generator: Floats,
        targets: Floats,
        systematic: int,
        arrived: npt.NDArray[np.bool_],
        gain: float = 1.0,
    ) -> None:
        self.exact = self._is_sequential = False
        self._generator, self._gain = generator, gain
        self.arrived = np.flatnonzero(arrived)
        self.known = np.flatnonzero(arrived[:systematic])
        self.missing = np.setdiff1d(np.arange(len(targets)), self.known)
        self.parity = np.flatnonzero(arrived[systematic:])
        self._wanted = targets[self.missing]

    @cached_property
    def system(self) -> Floats:
        """G restricted to what arrived."""
        return self._generator[self.arrived]

    @cached_property
    def deficit(self) -> int:
        """How many arrivals are still needed at the least."""
        if not len(self.missing):
            return 0
        few = self._generator.shape[1] - len(self.arrived)
        return few if few > 0 else int(not np.isfinite(self._solver).all())

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived): least squares."""
        return self._wanted @ self._solver

    @cached_property
    def amplification(self) -> float:
        """The largest 2-norm of a row of `weights`, times `gain`."""
        if not len(self.missing):
            return 0.0
        if self.deficit:
            return np.inf
        return self._gain * float(np.linalg.norm(self.weights, axis=1).max())

    @property
    def surplus(self) -> int:
        """Equations left over."""
        return len(self.arrived) - int(self._generator.shape[1])

    def equations(self, most: int) -> Floats:
        """Up to `most` orthonormal equations on the results that arrived, (s, arrived)."""
        if len(self.system) <= self.system.shape[1]:
            return np.empty((0, len(self.system)))
        return left_null(self.system, most).T

    @cached_property
    def _solver(self) -> Floats:
        return left_inverse(self.system)


def mix(matrix: Floats, rows: tiled.Rows, dtype: npt.DTypeLike, out: Array | None = None) -> Array:
    """matrix @ rows of an inexact `dtype`, summed in its working dtype."""
    checked = check_dtype(dtype, "the data")
    assert not is_exact(checked)
    if out is None:
        out = np.empty((len(matrix), rows[0].size), checked)
    if checked.kind == "c":
        rows, view = tiled.real_rows(rows, checked), out.view(real_dtype(checked))
    else:
        view = out
    tiled.dense(matrix.astype(working_dtype(view.dtype), copy=False), rows, view)
    return out


def loss_amplification(orthonormal: Floats, lost: Indices, wanted: int) -> float:
    """The amplification when the results `lost` are missing, for a G with orthonormal columns.

    With K = G_lost G_lost', the row of G_i pinv(G_arrived) has the squared norm [K / (1 - K)]_ii.
    Only the first `wanted` results are decoded.
    """
    rows = orthonormal[lost]
    values, vectors = np.linalg.eigh(rows @ rows.T)
    rows_wanted = vectors[lost < wanted]
    if not len(rows_wanted):
        return 0.0
    if values[-1] >= 1 - 1e-14:  # an amplification above 1e7 is no more than rounding here
        return np.inf
    return float(np.sqrt((rows_wanted**2 @ (values.clip(0) / (1 - values))).max()))
