"""Tests that the code without parity needs every block."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.uncoded import Uncoded
from polarmap.errors import CodeError


def test_every_block_has_to_arrive() -> None:
    decoder = ArrivalTracker(Uncoded(3))
    assert [decoder.add(index) for index in (2, 0, 1)] == [False, False, True]
    assert Uncoded(3).make_decoder(np.array([True, False, False]), modular=False).rank_deficit == 2


def test_there_is_no_parity() -> None:
    with pytest.raises(CodeError, match="no parity blocks"):
        Uncoded(2).encode_parity(np.ones((2, 3)))
    assert Uncoded(2).parity_dtype("i4") == "i4"
