"""Rows and columns of a grid decode each other."""

from __future__ import annotations

import numpy as np
import pytest
from product_codes import combinations_of, grid, rank

from polarmap.code.row_column import RowColumnDecoder

KERNELS = ["rotation", "arikan"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_line_by_line_decoding_is_never_wrong_and_stalls_at_stopping_sets_only(kernel: str) -> None:
    code, exact = grid((3, 2), (4, 3), kernel), kernel == "arikan"
    combinations = combinations_of(code)
    for pattern in range(0, 1 << code.n, 5):
        arrived = (pattern >> np.arange(code.n) & 1).astype(bool)
        by_lines = RowColumnDecoder(code, exact)
        by_lines.add(np.flatnonzero(arrived))
        if by_lines.is_complete:
            assert rank(combinations[arrived], exact) == code.k
        if not exact:  # any k of a line decode it: what stays unknown has more than r in every line
            unknown = ~by_lines.known
            assert all(count > 1 for count in unknown.sum(axis=0) if count)
            assert all(count > 1 for count in unknown.sum(axis=1) if count)
