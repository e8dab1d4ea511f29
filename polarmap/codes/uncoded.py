"""The trivial code without parity blocks (G = I, T = I), for maps without redundancy.

Each task computes the result of one data block, and a missing result cannot be decoded from others. Instead,
a late task may get backup tasks, which are further attempts at the same task (speculative execution).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.codes.compute import tiling
from polarmap.codes.linear_code import SystematicCode
from polarmap.dtypes import Array, DType, check_supported_dtype
from polarmap.errors import CodeError

# Default of the maximum number of backup tasks (further attempts) for each late task.
DEFAULT_BACKUPS = 2


class Uncoded(SystematicCode):
    """The trivial code, which has no parity blocks: its k coded blocks are the data blocks.

    A missing result cannot be decoded. A late task may get backup tasks instead.

    Parameters
    ----------
    k : int
        Number of data blocks, and of tasks.
    max_backups : int
        Maximum number of backup tasks per late task.

    Examples
    --------
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
        """The parity matrix, an empty array of shape (0, k), because there are no parity blocks."""
        return np.empty((0, self.k))

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Return the dtype of the data. Raise CodeError if the dtype is not supported."""
        return check_supported_dtype(dtype, "the data")

    def encode_parity(self, blocks: tiling.FlatBlocks, out: Array | None = None) -> Array:
        """Raise CodeError, because this code has no parity blocks."""
        raise CodeError("a map without a code has no parity blocks")
