"""Tests of slopes along a few directions, and of the inputs of their error estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polarmap.worker.finite_differences import (
    NotScalarError,
    SlopeErrorInputs,
    compute_slopes,
    make_coordinate_slope_task,
    make_row_slope_task,
)

X, SCALE = np.array([[1.0, -2.0, 0.5]]), np.array([[1.0, 10.0, 0.1]])
GRADIENT = 2 * X * SCALE  # gradient of the sum of squares, in units of SCALE
H = 1e-4


def squares(x: Any) -> float:
    return float((x**2).sum())


def compute_test_slopes(
    directions: Any, scheme: str = "central", f: Callable[[Any], Any] = squares
) -> tuple[np.ndarray, SlopeErrorInputs]:
    along, sizes = compute_slopes(f, X, iter(np.asarray(directions, float)), SCALE, H, scheme)
    return along, SlopeErrorInputs(*sizes)


@pytest.mark.parametrize(("scheme", "error"), [("central", 1e-8), ("forward", 300 * H)])
def test_slopes_along_directions_of_any_norm(scheme: str, error: float) -> None:
    directions = [[[1, 0, 0]], [[0, 1, 0]], [[1e3, -2e3, 5e2]], [[1e-6, 0, 1e-6]]]
    along, sizes = compute_test_slopes(directions, scheme)
    for slope, u in zip(along, np.array(directions), strict=True):
        assert slope == pytest.approx((GRADIENT * u).sum(), abs=error * np.linalg.norm(u))
    assert sizes.max_direction_norm == pytest.approx(np.linalg.norm(directions[2]))


def test_numbers_of_calls_of_f_for_central_and_forward_differences_and_filler() -> None:
    points: list[Any] = []

    def f(x: Any) -> float:
        points.append(x.copy())
        return squares(x)

    zero, u = np.zeros_like(X), np.array([[3.0, 0, 4.0]])
    assert compute_test_slopes([zero], f=f)[0].tolist() == [0.0]
    assert points == []
    compute_test_slopes([u, zero, u], f=f)
    np.testing.assert_allclose(points, [X + sign * H * u / 5 * SCALE for sign in (1, -1, 1, -1)])
    points.clear()
    _, sizes = compute_test_slopes([u, zero, u], "forward", f)
    # the centre, one point for each nonzero direction, and one for the second difference
    assert len(points) == 4
    assert sizes.second_difference == pytest.approx(2 * ((H * u / 5 * SCALE) ** 2).sum(), rel=1e-3)


def test_error_inputs_contain_the_values_of_f_and_their_rounding() -> None:
    values = iter([3.0, -1.0, 2.0, 7.0])
    _, sizes = compute_test_slopes([[[1, 0, 0]], [[0, 2, 0]]], f=lambda x: np.float32(next(values)))
    assert sizes == SlopeErrorInputs(-1.0, 7.0, 0.0, float(np.finfo(np.float32).eps), 2.0)


@pytest.mark.parametrize("value", [np.zeros(2), "1", None, 1j])
def test_f_that_does_not_return_a_real_number_raises_a_clear_error(value: Any) -> None:
    with pytest.raises(NotScalarError, match="f must return one real number, not "):
        compute_test_slopes([[[1, 0, 0]]], f=lambda x: value)


def test_a_block_contains_directions_or_coefficients_of_groups_of_coordinates() -> None:
    along, _ = make_row_slope_task(squares, X, SCALE, H, "central")(np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    np.testing.assert_allclose(along, (2 * X).reshape(-1)[:2], atol=1e-7)
    # The two groups are coordinates 0 and 2, and coordinate 1 with a filler.
    along, _ = make_coordinate_slope_task(squares, X, SCALE, H, "central", 2)(np.array([1.0, -1.0]))
    np.testing.assert_allclose(along, [GRADIENT[0, 0] - GRADIENT[0, 1], GRADIENT[0, 2]], atol=1e-7)
