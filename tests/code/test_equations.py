"""What the left-over equations say: they hold, or name the block that breaks them."""

from __future__ import annotations

import numpy as np
from product_codes import blocks_of, decoded, grid

from polarmap.code import equations


def test_left_over_equations_hold_and_name_garbage() -> None:
    code = grid((6, 4), (6, 4))
    data = blocks_of(code, "float64")
    arrived = np.ones(code.n, bool)
    arrived[[0, 5, 9, 20, 31]] = False
    decoder = decoded(code, arrived, False)
    assert decoder.surplus == 15
    rows = {int(index): data[index].copy() for index in np.flatnonzero(arrived)}
    assert not len(equations.residual(decoder.recovery, rows, data.dtype).broken)
    rows[7] += 1
    broken = equations.residual(decoder.recovery, rows, data.dtype).broken
    assert broken.tolist() == [0, 1, 2]
    assert equations.culprits(decoder.recovery, rows, broken, data.dtype) == [7]
