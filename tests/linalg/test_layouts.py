"""Tests of the choice of the factor that is cut, and of the number of blocks: the cheapest or as given."""

from __future__ import annotations

import math

from polarmap.linalg import layouts
from polarmap.linalg.layouts import BlockCounts, ProductLayout


def test_the_cheapest_layout_by_the_formula_is_chosen() -> None:
    def values(rows: float, columns: float, m: int, inner: int, n: int) -> float:
        m, n = m / rows, n / columns
        return 8 * (m * inner + inner * n + m * n) / 5e7 + m * inner * n / 1e10

    for shape in [(10_000, 10_000, 10_000), (100_000, 500, 20), (20, 500, 100_000), (50, 10**6, 50)]:
        chosen = layouts.choose_product_layout("auto", shape, None, 32, 8)
        seconds = layouts.estimate_task_seconds(chosen, shape, 8)
        sides = (
            chosen.row_counts.k if chosen.row_counts else 1,
            chosen.column_counts.k if chosen.column_counts else 1,
        )
        assert math.isclose(seconds, values(*sides, *shape))
        assert seconds <= min(values(min(24, shape[0]), 1, *shape), values(1, min(24, shape[2]), *shape))
        assert seconds <= layouts.estimate_task_seconds(
            layouts.choose_product_layout("grid", shape, None, 32, 8), shape, 8
        )
    assert layouts.choose_product_layout("auto", (100_000, 500, 20), None, 32, 8) == ProductLayout(
        BlockCounts(24, 32), None
    )
    assert layouts.choose_product_layout("auto", (20, 500, 100_000), None, 32, 8) == ProductLayout(
        None, BlockCounts(24, 32)
    )
    grid = layouts.choose_product_layout("auto", (10_000, 10_000, 10_000), None, 32, 8)
    assert grid.row_counts and grid.column_counts and grid.row_counts.n * grid.column_counts.n <= 32


def test_sizes_left_open_are_filled_in() -> None:
    shape = (100, 100, 100)
    assert layouts.choose_product_layout("rows", shape, None, None, 8) == ProductLayout(
        BlockCounts(20, 32), None
    )
    assert layouts.choose_product_layout("rows", (96, 9, 9), None, None, 8) == ProductLayout(
        BlockCounts(24, 32), None
    )
    assert layouts.choose_product_layout("rows", shape, 6, None, 8) == ProductLayout(BlockCounts(6, 8), None)
    assert layouts.choose_product_layout("columns", shape, None, 8, 8) == ProductLayout(
        None, BlockCounts(6, 8)
    )
    assert layouts.choose_product_layout("auto", shape, (7, 3), None, 8) == ProductLayout(
        BlockCounts(7, 8), BlockCounts(3, 4)
    )
    assert layouts.choose_product_layout("grid", shape, None, (8, 16), 8) == ProductLayout(
        BlockCounts(7, 8), BlockCounts(13, 15)
    )
    assert layouts.choose_product_layout("grid", (3, 9, 2), None, (8, 16), 8) == ProductLayout(
        BlockCounts(3, 4), BlockCounts(2, 4)
    )
