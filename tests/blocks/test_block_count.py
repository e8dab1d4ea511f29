"""How many blocks an array is cut into."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polarmap import CodedResult, ReplayExecutor, coded_map

STREAM = np.random.default_rng(0)


MATRIX = STREAM.standard_normal((26, 5))


def halved(data: Any, k: int | None = None, lost: int = 1, **options: Any) -> CodedResult:
    """0.5 * block for all blocks, the first of which never arrive."""
    never = ReplayExecutor(dict.fromkeys(range(lost), math.inf))
    return coded_map(lambda block: block * 0.5, data, blocks=k, executor=never, timeout=100, **options)


def test_blocks_default_to_a_number_near_24_that_divides_the_rows() -> None:
    assert halved(MATRIX).report.k == 26
    assert halved(MATRIX[:7]).report.k == 7
    assert halved(np.ones((2003, 1))).report.k == 24
    assert halved(np.ones((2000, 1)), workers=32).report.k == 20
