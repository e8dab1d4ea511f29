"""No code: G = I, T = I. Every result is wanted and nothing determines a missing one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.codes import tiled
from polarmap.codes.dtypes import Array, DType, check_dtype
from polarmap.codes.linear import SystematicCode
from polarmap.errors import CodeError

BACKUPS = 2  # that a late task may get


class Uncoded(SystematicCode):
    """k blocks for k workers; a task that is late may get `backups`.

    >>> code = Uncoded(3)
    >>> code.n, code.k, code.recovery_threshold
    (3, 3, 3)
    """

    assumption = "deterministic"

    def __init__(self, k: int, backups: int = 0) -> None:
        self.n = self.k = k
        self.backups = backups
        self.name = "no code, backup tasks" if self.backups else "no code"

    def __repr__(self) -> str:
        return f"Uncoded({self.k}, backups={self.backups})" if self.backups else f"Uncoded({self.k})"

    @property
    def coefficients(self) -> Array:
        """P has no rows."""
        return np.empty((0, self.k))

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """That of the data: nothing is mixed."""
        return check_dtype(dtype, "the data")

    def parity(self, rows: tiled.Rows, out: Array | None = None) -> Array:
        """There is no parity."""
        raise CodeError("without a code there are no parity blocks")
