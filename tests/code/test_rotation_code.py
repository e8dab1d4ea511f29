from __future__ import annotations

import numpy as np
import pytest

from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError


def test_k_is_one_copies_the_block() -> None:
    coded = PolarCode(5, 1).encode(np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(coded, [[3.0, 4.0]] * 5)


def test_data_blocks_go_to_the_most_reliable_workers() -> None:
    erasure = np.random.default_rng(0).permutation(np.linspace(0.0, 0.5, 20))
    code = PolarCode(20, 15, erasure=erasure)
    assert erasure[code.assignment[:15]].max() < erasure[code.assignment[15:]].min()


def test_rotation_refuses_integers() -> None:
    with pytest.raises(CodeError, match="int64 blocks: use kernel='arikan'"):
        PolarCode(6, 4).encode(np.ones((4, 2), int))
