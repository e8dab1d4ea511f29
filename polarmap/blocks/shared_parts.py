"""Parts that several workers get, and with which coefficients they add up the results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import Blocks
from polarmap.code.dtypes import Array
from polarmap.code.gradient_coding import GradientCode
from polarmap.errors import CodeError
from polarmap.worker.pytree import Layout, Structure, layout_of


class SharedParts(CodedData):
    """What each worker gets: its coefficients and its parts. Each part is stored once.

    Results are mixed, parts are not: as data blocks they hold nothing that a code asks for.
    """

    code: GradientCode

    def __init__(
        self, parts: list[list[Array]], structure: Structure, workers: int | None, tolerate: int
    ) -> None:
        self._parts, self.count = parts, len(parts)
        n = self.count if workers is None else workers
        if self.count % n:
            raise CodeError(f"workers={n} does not divide the {self.count} parts")
        code, self._each = GradientCode(n, tolerate), self.count // n
        kinds = (structure,) * ((code.tolerate + 1) * self._each)
        unmixed = Blocks([[]] * self.count, (tuple, (), (("array",), (list, (), kinds))))
        super().__init__(code, unmixed)

    def layout(self, index: int) -> Layout:
        """Dtype and shape of coefficients and parts."""
        return layout_of(self.leaves(index))

    def pieces(self, index: int) -> Sequence[int]:
        """Pieces below `count` are the parts, the others the coefficients of the workers."""
        values = np.flatnonzero(self.code.generator[index])
        parts = (values[:, None] * self._each + np.arange(self._each)).ravel()
        return (self.count + index, *parts.tolist())

    def piece(self, number: int) -> list[Array]:
        """The leaves of a part, or a worker's coefficients."""
        if number < self.count:
            return self._parts[number]
        row = self.code.generator[number - self.count]
        row = np.repeat(row[row != 0], self._each)
        return [row.astype(np.int64) if self.code.is_repetition else row]
