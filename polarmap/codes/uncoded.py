"""No code: G = I, T = I. Every result is wanted and nothing determines a missing one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.codes.compute import tiling
from polarmap.codes.linear_code import SystematicCode
from polarmap.dtypes import Array, DType, check_supported_dtype
from polarmap.errors import CodeError

DEFAULT_BACKUPS = 2  # that a late task may get


class Uncoded(SystematicCode):
    """k blocks for k workers; a task that is late may get `max_backups`.

    >>> code = Uncoded(3)
    >>> code.n, code.k, code.recovery_threshold
    (3, 3, 3)
    """

    requirement = "deterministic"
    is_redundant, supports_sparse = False, True

    def __init__(self, k: int, max_backups: int = 0) -> None:
        self.n = self.k = k
        self.max_backups = max_backups
        self.name = "no code, backup tasks" if self.max_backups else "no code"

    def __repr__(self) -> str:
        return (
            f"Uncoded({self.k}, max_backups={self.max_backups})" if self.max_backups else f"Uncoded({self.k})"
        )

    @property
    def encoding_matrix(self) -> Array:
        """P has no rows."""
        return np.empty((0, self.k))

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """That of the data: nothing is mixed."""
        return check_supported_dtype(dtype, "the data")

    def encode_parity(self, blocks: tiling.FlatBlocks, out: Array | None = None) -> Array:
        """There is no parity."""
        raise CodeError("without a code there are no parity blocks")
