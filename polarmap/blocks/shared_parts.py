"""Parts that several workers get, and with which coefficients they add up the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.uneven import PartBlocks
from polarmap.code.gradient_coding import GradientCode
from polarmap.errors import CodeError
from polarmap.worker.pytree import Structure

Array = npt.NDArray[Any]


class _UnmixedParts:
    """The parts as data blocks: results are mixed, these are not."""

    rows, padding = None, 0

    def __init__(self, count: int) -> None:
        self.k = count
        self.dtypes: list[np.dtype[Any]] = []

    def leaves(self, index: int) -> list[Array]:
        """No code asks for them."""
        raise LookupError(index)

    def largest(self, leaf: int) -> int:
        """No code asks for it."""
        raise LookupError(leaf)


class SharedParts(PartBlocks):
    """What each worker gets: its coefficients and its parts. Each part is stored once."""

    encode_seconds, unprotected_warning, code_reason = 0.0, "", ""

    def __init__(
        self, parts: list[list[Array]], structure: Structure, workers: int | None, tolerate: int
    ) -> None:
        self.count = len(parts)
        n = self.count if workers is None else workers
        if self.count % n:
            raise CodeError(f"workers={n} does not divide the {self.count} parts")
        self._gradient, self._each = GradientCode(n, tolerate), self.count // n
        kinds = (structure,) * ((self._gradient.tolerate + 1) * self._each)
        super().__init__(parts, (tuple, (), (("array",), (list, (), kinds))), n)
        self.code, self.blocks = self._gradient, _UnmixedParts(self.count)

    def pieces(self, index: int) -> Sequence[int]:
        """Pieces below `count` are the parts, the others the coefficients of the workers."""
        values = np.flatnonzero(self._gradient.generator[index])
        parts = (values[:, None] * self._each + np.arange(self._each)).ravel()
        return (self.count + index, *parts.tolist())

    def piece(self, number: int) -> list[Array]:
        """The leaves of a part, or a worker's coefficients."""
        if number < self.count:
            return super().piece(number)
        row = self._gradient.generator[number - self.count]
        row = np.repeat(row[row != 0], self._each)
        return [row.astype(np.int64) if self._gradient.is_repetition else row]
