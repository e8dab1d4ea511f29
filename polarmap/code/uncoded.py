"""No code: every result is wanted and nothing determines a missing one."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from polarmap.code.design import Indices
from polarmap.code.dtypes import check_dtype
from polarmap.code.polar import PolarCode
from polarmap.code.recovery import DecodingPlan
from polarmap.code.tiled import Rows
from polarmap.errors import CodeError

Array = npt.NDArray[Any]


class Uncoded:
    """k blocks for k workers.

    >>> code = Uncoded(3)
    >>> code.n, code.k, code.recovery_threshold
    (3, 3, 3)
    """

    kernel, decoder = "none", "optimal"
    name, assumption, norm_inf = "no code", "deterministic", 1.0

    def __init__(self, k: int) -> None:
        self.n = self.k = self.recovery_threshold = k

    @property
    def systematic(self) -> Indices:
        """Every block is sent as it is."""
        return np.arange(self.k)

    def parity_dtype(self, dtype: npt.DTypeLike) -> np.dtype[Any]:
        """There is no parity."""
        return check_dtype(dtype, "the data")

    def parity(self, rows: Rows, out: Array | None = None) -> Array:
        """There is no parity."""
        raise CodeError("without a code there are no parity blocks")

    def plan(self, arrived: npt.NDArray[np.bool_], exact: bool) -> DecodingPlan:
        """Nothing can be recovered."""
        return _Nothing(cast(PolarCode, self), arrived, exact)


class _Nothing(DecodingPlan):
    @property
    def deficit(self) -> int:
        """All that is missing has to arrive."""
        return len(self.missing)
