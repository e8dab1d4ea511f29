"""What a map needs of a code, whichever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from polarmap.code.design import Indices
from polarmap.code.tiled import Rows

if TYPE_CHECKING:
    from polarmap.code.recovery import DecodingPlan

Array = npt.NDArray[Any]


class Code(Protocol):
    """n coded blocks, whose n results determine the k results that are wanted.

    n, k : coded blocks and data blocks.
    recovery_threshold : the fewest results that can determine those of the data blocks.
    systematic : the coded blocks that are data blocks as they are: 0..k-1, or none.
    kernel, decoder : "arikan" and "sequential" are special to whoever asks, others are names.
    name : what a report calls it.
    assumption : what f must be, to follow "f is not".
    """

    n: int
    k: int
    kernel: str
    decoder: str

    @property
    def recovery_threshold(self) -> int: ...

    @property
    def systematic(self) -> Indices: ...

    @property
    def norm_inf(self) -> float:
        """The largest sum of absolute coefficients of a coded block."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def assumption(self) -> str: ...

    def parity_dtype(self, dtype: npt.DTypeLike) -> np.dtype[Any]:
        """Of the coded blocks that are no data blocks; CodeError for data it cannot carry."""
        ...

    def parity(self, rows: Rows, out: Array | None = None) -> Array:
        """The coded blocks that are no data blocks, (n - len(systematic), b), of k flat data blocks."""
        ...

    def plan(self, arrived: npt.NDArray[np.bool_], exact: bool) -> DecodingPlan:
        """How to recover the results of the data blocks from those that arrived."""
        ...
