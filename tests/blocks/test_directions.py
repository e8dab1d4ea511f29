from __future__ import annotations

import numpy as np
import pytest

from polarmap import PolarCode
from polarmap.blocks.directions import count_blocks, cut_directions, gradient_of_slopes, join_slopes
from polarmap.errors import CodeError


@pytest.mark.parametrize(("count", "k"), [(6, 3), (7, 3), (5, 5), (4, 1)])
def test_slopes_come_back_in_the_order_of_their_directions(count: int, k: int) -> None:
    base = np.random.default_rng(count).standard_normal((count, 4))
    blocks = cut_directions(base, k)
    assert {block.shape for block in blocks} == {(-(-count // k), 4)}
    np.testing.assert_array_equal(join_slopes([block[:, 2] for block in blocks], count), base[:, 2])


def test_the_gradient_is_the_shortest_vector_with_these_slopes() -> None:
    base, gradient = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), np.array([1.0, -1.0, 5.0])
    found = gradient_of_slopes(base @ gradient, base, np.ones(3))
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0], atol=1e-14)
    np.testing.assert_allclose(gradient_of_slopes(np.ones(3), None, np.full(3, 4.0)), 0.25)
    assert np.isnan(gradient_of_slopes(np.array([np.nan, 1.0]), base, np.ones(3))).all()


def test_the_number_of_blocks_follows_from_what_is_said() -> None:
    assert [count_blocks(None, None, "auto", count) for count in (3, 24, 100)] == [3, 24, 24]
    assert count_blocks(None, 8, "auto", 100) == 6
    assert count_blocks(5, 8, "auto", 100) == 5
    assert count_blocks(None, None, PolarCode(6, 4), 100) == 4
    with pytest.raises(CodeError, match="blocks=5 is more than the 4 directions; use blocks <= 4"):
        count_blocks(5, None, "auto", 4)
