"""Directions and slopes: cut and joined, and by how much measured slopes may be off."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes import PolarCode
from polarmap.errors import CodeError
from polarmap.maps.slopes import (
    ERROR_SAFETY_FACTOR,
    choose_n_blocks,
    estimate_slope_errors,
    merge_slopes,
    partition_directions,
    solve_gradient,
)
from polarmap.worker.finite_differences import SlopeErrorInputs

H = 1e-3


def received(*sizes: dict[str, float]) -> list[list[np.ndarray]]:
    usual = {
        "min_value": 1.0,
        "max_value": 2.0,
        "max_direction_norm": 1.0,
        "result_eps": 1e-16,
        "second_difference": 0.5,
    }
    return [
        [np.zeros(2), np.array([(usual | one)[name] for name in SlopeErrorInputs._fields])] for one in sizes
    ]


def test_truncation_is_judged_by_how_much_f_changes_or_bends() -> None:
    slopes, sizes = estimate_slope_errors(H, "central", received({}, {}, {}))
    assert slopes == pytest.approx(ERROR_SAFETY_FACTOR * (1e-16 * 2 + H * 1.0) / H)
    assert sizes == np.inf  # not meant to be decoded
    slopes, _ = estimate_slope_errors(H, "forward", received({}, {}, {}))
    assert slopes == pytest.approx(ERROR_SAFETY_FACTOR * (1e-16 * 2 + 0.5) / H)


@pytest.mark.parametrize(
    "wrong", [{"max_value": 1e9}, {"max_direction_norm": 1e9}, {"result_eps": 1.0}, {"max_value": np.nan}]
)
def test_one_worker_alone_cannot_make_the_errors_larger(wrong: dict[str, float]) -> None:
    honest, _ = estimate_slope_errors(H, "central", received({}, {}, {}))
    with_a_liar, _ = estimate_slope_errors(H, "central", received({}, {}, {}, wrong))
    assert with_a_liar == pytest.approx(honest)


@pytest.mark.parametrize(("count", "k"), [(6, 3), (7, 3), (5, 5), (4, 1)])
def test_slopes_come_back_in_the_order_of_their_directions(count: int, k: int) -> None:
    base = np.random.default_rng(count).standard_normal((count, 4))
    blocks = partition_directions(base, k)
    assert {block.shape for block in blocks} == {(-(-count // k), 4)}
    np.testing.assert_array_equal(merge_slopes([block[:, 2] for block in blocks], count), base[:, 2])


def test_the_gradient_is_the_shortest_vector_with_these_slopes() -> None:
    base, gradient = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), np.array([1.0, -1.0, 5.0])
    found = solve_gradient(base @ gradient, base, np.ones(3))
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0], atol=1e-14)
    np.testing.assert_allclose(solve_gradient(np.ones(3), None, np.full(3, 4.0)), 0.25)
    assert np.isnan(solve_gradient(np.array([np.nan, 1.0]), base, np.ones(3))).all()


def test_the_number_of_blocks_follows_from_what_is_said() -> None:
    assert [choose_n_blocks(None, None, "auto", count) for count in (3, 24, 100)] == [3, 24, 24]
    assert choose_n_blocks(None, 8, "auto", 100) == 6
    assert choose_n_blocks(5, 8, "auto", 100) == 5
    assert choose_n_blocks(None, None, PolarCode(6, 4), 100) == 4
    with pytest.raises(CodeError, match="blocks=5 is more than the 4 directions; use blocks <= 4"):
        choose_n_blocks(5, None, "auto", 4)
