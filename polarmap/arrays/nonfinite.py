"""NaN and inf that are encoded: a lost part cannot be decoded where the others hold any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays.stripes import StripePlan
from polarmap.errors import warn

Array = npt.NDArray[Any]
# Data and parity rows of a stripe (no parity: only the data are looked at) -> NaN and inf among the
# data, block and column of the first of them, and columns of finite data whose parity overflows.
NonFiniteCounts = tuple[int, int, int, int]
NonFiniteFinder = Callable[..., NonFiniteCounts]


def nonfinite_finder() -> NonFiniteFinder:
    """What looks for NaN and inf; it travels to workers that have numpy only."""

    def find(data: Sequence[Array], parity: Sequence[Array] | None = None) -> NonFiniteCounts:
        if data[0].dtype.kind in "iu" or (
            parity is not None and all(np.isfinite(row).all() for row in parity)
        ):
            return 0, 0, 0, 0
        count, first, spoiled = 0, (0, 0), np.zeros(data[0].size, bool)
        for block, row in enumerate(data):
            columns = np.flatnonzero(~np.isfinite(row))
            if columns.size and not count:
                first = block, int(columns[0])
            count += columns.size
            spoiled[columns] = True
        overflowing = np.zeros(data[0].size, bool)
        for row in parity if parity is not None else ():
            overflowing |= ~np.isfinite(row)
        return count, *first, int(np.count_nonzero(overflowing & ~spoiled))

    return find


class NonFiniteRecord:
    """The NaN and inf that one encode has seen."""

    def __init__(self, plan: StripePlan) -> None:
        self._plan = plan
        self._starts = list(accumulate(map(plan.width, range(len(plan.hyperslabs))), initial=0))
        self._count = self._overflowing = 0
        self._first: list[int] = []  # positions in the whole array

    def note(self, stripe: int, found: NonFiniteCounts) -> None:
        """Add what was found in a stripe."""
        count, block, column, overflowing = found
        self._count += count
        self._overflowing += overflowing
        if count:
            self._first.append(block * self._starts[-1] + self._starts[stripe] + column)

    def warn(self) -> None:
        """Say what there was, to the caller of the caller."""
        text = []
        if self._count:
            entries = "1 entry is" if self._count == 1 else f"{self._count} entries are"
            first = [int(place) for place in np.unravel_index(min(self._first), self._plan.shape)]
            text.append(f"{entries} NaN or inf, the first at {first}")
        if self._overflowing:
            places = "1 place" if self._overflowing == 1 else f"{self._overflowing} places"
            text.append(f"at {places} of the blocks the parity overflows {self._plan.parity_dtype}")
        if text:
            warn(
                f"{' and '.join(text)}: a lost part cannot be decoded where it, or another block in the same "
                "place, holds such an entry"
            )
