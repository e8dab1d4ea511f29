"""What the left-over equations say: they hold, or name the block that breaks them."""

from __future__ import annotations

import numpy as np
import pytest
from product_codes import blocks_of, decoded, grid

from polarmap.codes import equations
from polarmap.codes.linear import LinearCode
from polarmap.codes.masked_integers import MaskedIntegerCode
from polarmap.codes.polar import PolarCode


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


def test_what_sums_of_large_terms_are_off_by_breaks_an_equation_only_beyond_their_rounding() -> None:
    code = PolarCode(9, 6)
    data = 1e-9 * np.random.default_rng(0).standard_normal((6, 3))
    mixed = np.concatenate([data, code.parity(data)])
    recovery = code.recovery(np.ones(9, bool), exact=False)
    terms = 1e3  # 2.3e-10 is 1024 roundings of these
    for deviation, alone, known in ((0.0, 0, 0), (1e-11, 1, 0), (1e-9, 1, 1)):
        rows = dict(enumerate(mixed.copy()))
        rows[2][1] += deviation
        assert len(equations.residual(recovery, rows, data.dtype).broken) == alone
        found = equations.residual(recovery, rows, data.dtype, terms=terms)
        assert len(found.broken) == known
        assert known or found.relative <= deviation / terms + 1e-24


@pytest.mark.parametrize("code", [PolarCode(12, 8, "arikan"), MaskedIntegerCode(16, 6, 1)], ids=repr)
@pytest.mark.parametrize("dtype", ["i8", "u2"])
@pytest.mark.parametrize("deviation", [1, 6, 1 << 15])
def test_integers_name_whoever_alone_explains_them(code: LinearCode, dtype: str, deviation: int) -> None:
    """Those without whom the others still determine the data, and satisfy all equations."""
    arrived = np.arange(code.n) > 0
    recovery = code.recovery(arrived, exact=True)
    data = np.random.default_rng(0).integers(0, 1 << 16, (code.mixed, 3)).astype("i8")
    mixed = code.parity(data) if len(code.systematic) == 0 else np.concatenate([data, code.parity(data)])
    for index in recovery.arrived.tolist():
        received = {int(one): mixed[one].astype(dtype) for one in recovery.arrived}
        received[index][1:2] += np.array(deviation).astype(dtype)
        broken = equations.residual(recovery, received, np.dtype(dtype)).broken
        if not len(broken):
            continue  # an even coefficient times an even deviation
        named = equations.culprits(recovery, received, broken, np.dtype(dtype))
        assert index in named
        for other in recovery.arrived.tolist():
            without = code.recovery(arrived & (np.arange(code.n) != other), exact=True)
            if without.deficit:
                continue
            holds = not len(equations.residual(without, received, np.dtype(dtype)).broken)
            assert (other in named) == (holds and recovery.surplus > 1)
