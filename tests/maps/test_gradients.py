"""Coded gradients with workers that never report; the oracles are derivatives in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import arriving
from scipy.optimize import minimize, rosen, rosen_der

from polarmap import CodedGradient, coded_gradient
from polarmap.codes import PolarCode
from polarmap.errors import CodeError, NotDecodableError, NotLinearError
from polarmap.maps.gradients import (
    DEFAULT_STEP,
    ERROR_SAFETY_FACTOR,
    choose_n_blocks,
    estimate_slope_errors,
    merge_slopes,
    partition_directions,
    solve_gradient,
)
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.worker.finite_differences import SlopeErrorInputs

WEIGHTS = np.random.default_rng(0).standard_normal((40, 200))


def curved(x: Any) -> Any:
    """Evaluate a smooth function that is neither symmetric nor a polynomial."""
    rows = WEIGHTS[:, : np.size(x)] @ np.reshape(x, -1)
    return np.sum(np.logaddexp(0, rows)) + np.sin(rows).sum()


def curved_gradient(x: Any) -> np.ndarray:
    weights = WEIGHTS[:, : np.size(x)]
    rows = weights @ np.reshape(x, -1)
    return np.reshape(weights.T @ (1 / (1 + np.exp(-rows)) + np.cos(rows)), np.shape(x))


def losing(*tasks: int) -> ReplayExecutor:
    return ReplayExecutor(dict.fromkeys(tasks, math.inf))


def point(d: int, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal(d)


# --- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["rotation", "arikan"])
@pytest.mark.parametrize(("scheme", "digits"), [("central", 8), ("forward", 5)])
@settings(max_examples=25)
@given(data=st.data())
def test_gradient_from_any_decodable_subset(code: str, scheme: str, digits: int, data: Any) -> None:
    d = data.draw(st.integers(1, 60), label="d")
    k = data.draw(st.integers(1, min(d, 12)), label="k")
    n = data.draw(st.integers(k + 1, k + 6), label="n")
    chosen = PolarCode(n, k, kernel=code)
    order = data.draw(st.permutations(range(n)), label="order")
    count = next(m for m in range(1, n + 1) if chosen.is_decodable(np.isin(range(n), order[:m])))
    late = arriving(order[: min(count + 1, n)], n)
    x = point(d)
    try:
        result = coded_gradient(curved, x, scheme=scheme, code=chosen, executor=late)
    except NotDecodableError:  # decoding would be too inaccurate, so the map has to wait for more tasks
        result = coded_gradient(curved, x, scheme=scheme, code=chosen, executor=arriving(order, n))
    exact = curved_gradient(x)
    assert result.gradient.shape == x.shape
    assert np.abs(result.gradient - exact).max() < 10.0**-digits * max(1, np.abs(exact).max())


def test_gradient_has_the_shape_of_x_and_unit_steps_of_every_size() -> None:
    x = point(24).reshape(2, 3, 4)
    result = coded_gradient(curved, x, blocks=6, tasks=9, executor=losing(0, 4, 5))
    np.testing.assert_allclose(result.gradient, curved_gradient(x), rtol=1e-7, atol=1e-7)
    assert result.report.recovered == (0, 4, 5)
    assert result.slopes.shape == (24,)


def test_scalar_x() -> None:
    result = coded_gradient(lambda x: float(x) ** 3, 2.0, executor=losing(0))
    assert result.gradient == pytest.approx(12)
    assert result.gradient.shape == ()


def test_coordinates_of_very_different_scale() -> None:
    scale = 10.0 ** np.arange(-6, 6)
    x = 0.5 * scale
    result = coded_gradient(
        lambda x: curved(x / scale), x, scale=scale, blocks=6, tasks=9, executor=losing(0, 2, 3)
    )
    np.testing.assert_allclose(result.gradient * scale, curved_gradient(x / scale), rtol=1e-6, atol=1e-7)


def test_steps_are_proportional_to_large_coordinates() -> None:
    x = np.array([1e9, 1.0, -1e6])
    result = coded_gradient(lambda x: np.sum(np.log1p(x**2)), x, executor=losing(1))
    np.testing.assert_allclose(result.gradient, 2 * x / (1 + x**2), rtol=1e-7)


@settings(max_examples=25)
@given(d=st.integers(1, 12), r=st.integers(1, 18), seed=st.integers(0, 99))
def test_directions_give_the_projection_on_their_span(d: int, r: int, seed: int) -> None:
    directions = np.random.default_rng(seed).standard_normal((r, d)) * 10.0 ** (seed % 5 - 2)
    x = point(d, seed)
    workers = r + 2 if r < 6 else 8
    result = coded_gradient(
        curved, x, directions=directions, blocks=min(r, 6), tasks=workers, executor=losing(0)
    )
    exact = curved_gradient(x)
    expected = np.linalg.pinv(directions) @ directions @ exact
    condition = np.linalg.cond(directions)
    np.testing.assert_allclose(result.gradient, expected, atol=1e-7 * condition * np.abs(exact).max())
    np.testing.assert_allclose(
        result.slopes, directions @ exact, atol=1e-6 * np.abs(directions @ exact).max() + 1e-9
    )


def test_directions_of_the_shape_of_x() -> None:
    x = point(12).reshape(3, 4)
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0].reshape(12, 3, 4)
    result = coded_gradient(curved, x, directions=basis, tasks=8, executor=losing(2, 3))
    np.testing.assert_allclose(result.gradient, curved_gradient(x), atol=1e-7)


def test_evaluations_are_counted() -> None:
    # Ten directions on four data tasks and three on each of two parity tasks make 16 directions. The
    # forward scheme evaluates f twice more on each task.
    cases = [("central", 10, (), 2 * 16), ("forward", 10, (), 16 + 2 * 6), ("central", 11, (1, 4), 2 * 17)]
    for scheme, d, lost, started in cases:
        calls = []

        def f(x: Any, calls: list[int] = calls) -> Any:
            calls.append(1)
            return curved(x)

        result = coded_gradient(
            f, point(d), scheme=scheme, blocks=4, tasks=6, verify=False, executor=losing(*lost)
        )
        assert result.evaluations == len(calls)
        assert result.evaluations_started == started


def test_evaluations_started_include_further_attempts() -> None:
    # Only three tasks report until the second attempt of task 0.
    again = FaultyExecutor(losing(1, 2), {0: Fault("raise")})
    gradient = CodedGradient(curved, blocks=4, tasks=6, executor=again)
    here = 0
    for _ in range(2):
        gradient(point(12))
        assert gradient.report is not None
        here += len(gradient.report.evaluated_locally)
    assert here >= 1  # the driver evaluated f to check that it is smooth
    assert gradient.evaluations_started == 2 * (7 * 2 * 3) + here * 2 * 3


def test_calls_of_f_on_the_driver_are_counted() -> None:
    # Each of eight tasks evaluates six directions. Two tasks never report, and the driver checks a decoded
    # block.
    calls = []

    def f(x: Any) -> Any:
        calls.append(1)
        return curved(x)

    result = coded_gradient(f, point(18), blocks=6, tasks=8, executor=losing(2, 5))
    assert result.report.verified == "local"
    assert result.evaluations == 6 * 6
    assert result.evaluations_started == 8 * 6 + 6
    assert len(calls) == result.evaluations + 6
    assert repr(result) == "<GradientResult of shape 18, 36 evaluations of f count, 54 were started>"


# --- the check -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["central", "forward"])
@pytest.mark.parametrize(
    ("f", "x"),
    [
        (rosen, np.ones(8)),  # a minimum, where the computed slopes consist of rounding errors
        (rosen, np.ones(8) + 1e-9),
        (lambda x: rosen(x) + 1e6, np.ones(8)),  # a minimum where rounding hides all changes of f
        (lambda x: np.sum(x**2), np.zeros(8)),
        (lambda x: 1e-9 * rosen(x), np.ones(8)),
        (np.prod, np.arange(1.0, 9.0)),
        (lambda x: np.exp(-np.sum(x**2)), np.full(8, 5.0)),
        (lambda x: 3.0, np.arange(8.0)),
    ],
)
def test_truncation_and_rounding_pass_the_check(scheme: str, f: Any, x: np.ndarray) -> None:
    for lost in [(0,), (1, 3), (7, 9)]:
        result = coded_gradient(f, x, scheme=scheme, blocks=8, tasks=12, verify=True, executor=losing(*lost))
        assert result.report.verified in ("parity", "not needed")


def test_local_check_allows_for_what_decoding_amplifies() -> None:
    result = coded_gradient(rosen, np.ones(8), blocks=8, tasks=10, executor=losing(0, 3))
    assert result.report.verified == "local"
    assert np.abs(result.gradient).max() < 1e-5


def test_kink_is_refused() -> None:
    def kinked(x: Any) -> Any:
        return curved(x) + np.abs(x[2] - 3e-7)

    with pytest.raises(NotLinearError, match=r"not smooth or not deterministic at steps of h=.*verify=False"):
        coded_gradient(kinked, np.zeros(8), h=1e-6, blocks=8, tasks=12, executor=losing(0, 5))


def test_noise_is_refused_unless_the_step_is_long_enough() -> None:
    stream = np.random.default_rng(0)

    def noisy(x: Any) -> Any:
        return np.sum(x**2) + 1e-5 * stream.standard_normal()

    x = np.arange(1.0, 9.0)
    late = losing(0, 5)
    with pytest.raises(NotLinearError):
        coded_gradient(noisy, x, blocks=8, tasks=12, executor=late)
    result = coded_gradient(noisy, x, h=1e-2, blocks=8, tasks=12, executor=late)
    np.testing.assert_allclose(result.gradient, 2 * x, rtol=1e-3)


def test_map_waits_for_the_requested_accuracy() -> None:
    code = PolarCode(12, 8)
    orders = [np.random.default_rng(seed).permutation(12) for seed in range(30)]
    for order in orders:
        result = coded_gradient(curved, point(8), code=code, rtol=1e-9, executor=arriving(order, 12))
        assert result.report.amplification * (DEFAULT_STEP["central"] ** 2) < 1e-9


# --- iterations ----------------------------------------------------------------------------------


def test_minimize_finds_the_minimum_of_the_exact_gradient() -> None:
    x = np.array([1.3, 0.7, 0.8, 1.9, 1.2])
    gradient = CodedGradient(rosen, blocks=5, tasks=8, executor=losing(0, 2, 4))
    solution = minimize(rosen, x, jac=gradient)
    exact = minimize(rosen, x, jac=rosen_der)
    np.testing.assert_allclose(solution.x, exact.x, atol=1e-4)
    assert gradient.calls == solution.njev
    assert gradient.evaluations == solution.njev * 2 * 5
    assert gradient.report is not None
    assert gradient.report.verified == "local"  # f is checked at each point: a kink may be anywhere


def test_arguments_of_the_objective_are_passed_on() -> None:
    def shifted(x: Any, by: float, factor: float) -> Any:
        return factor * np.sum((x - by) ** 4)

    gradient = CodedGradient(shifted, tasks=4, executor=ReplayExecutor())
    np.testing.assert_allclose(gradient(np.zeros(3), 1.0, 2.0), -8, rtol=1e-7)


# --- invalid arguments and functions -------------------------------------------------------------


def test_nan_of_f_affects_only_its_coordinate_if_all_data_report() -> None:
    def rooted(x: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.sqrt(x[0]) + np.sum(x[1:] ** 2)

    gradient = coded_gradient(rooted, np.arange(4.0), tasks=6, blocks=4, executor=ReplayExecutor())
    assert np.isnan(gradient.gradient[0])
    np.testing.assert_allclose(gradient.gradient[1:], [2, 4, 6], rtol=1e-7)


def vector(x: Any) -> Any:
    return x


def complex_valued(x: Any) -> Any:
    return np.sum(x) * 1j


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f": vector}, r"one real number, not float64\[6\]"),
        ({"f": complex_valued}, r"one real number, not complex128\[\]"),
        ({"f": lambda x: None}, "one real number, not object"),
        ({"x": []}, "no coordinates"),
        ({"x": np.zeros((0, 4))}, r"\(0, 4\) has no coordinates"),
        ({"x": [1.0, np.nan, np.inf]}, "x holds 2 NaN or inf"),
        ({"x": ["a"]}, "x is no array of real numbers"),
        ({"x": [1j]}, "x is no array of real numbers"),
        ({"directions": np.ones((2, 5))}, r"directions of shape \(2, 5\) do not fit x of shape \(6,\)"),
        ({"directions": np.ones((0, 6))}, r"do not fit x"),
        ({"directions": 1.0}, r"do not fit x"),
        ({"directions": np.eye(6) * [1, 1, 0, 1, 1, 1]}, "direction 2 is zero"),
        ({"directions": np.full((2, 6), np.nan)}, "directions holds 12 NaN"),
        ({"scale": np.ones(5)}, r"scale of shape \(5,\) does not fit x of shape \(6,\)"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"h": 0.0}, "h must be a positive number, not 0.0"),
        ({"h": "small"}, "h must be a positive number"),
        ({"h": np.inf}, "h must be a positive number"),
        ({"scheme": "backward"}, "scheme must be 'central' or 'forward', not 'backward'"),
        ({"blocks": 7}, "blocks=7 is more than the 6 directions"),
        ({"tasks": 6, "blocks": 6}, "tasks=6 leaves no parity"),
        ({"code": PolarCode(9, 6), "tasks": 8}, "does not fit"),
        ({"rtol": 1e-12}, "rtol=1e-12 is below the error of a slope itself, about 7"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"f": curved, "x": np.ones(6), "executor": ReplayExecutor()} | change
    f, x = arguments.pop("f"), arguments.pop("x")
    with pytest.raises(CodeError, match=message):
        coded_gradient(f, x, **arguments)


def test_f_that_returns_no_number_is_refused() -> None:
    for executor in (None, ReplayExecutor()):
        with pytest.raises(CodeError, match="f must return one real number, not float64"):
            coded_gradient(lambda x: x, np.ones(6), executor=executor)


def test_a_gradient_prints_one_line() -> None:
    result = coded_gradient(np.sum, np.ones(8), executor=ReplayExecutor())
    counts = f"{result.evaluations} evaluations of f count, {result.evaluations_started} were started"
    assert repr(result) == f"<GradientResult of shape 8, {counts}>"


# --- directions and slopes -----------------------------------------------------------------------

H = 1e-3


def received(*sizes: dict[str, float]) -> list[list[np.ndarray]]:
    usual = {
        "min_value": 1.0,
        "max_value": 2.0,
        "max_direction_norm": 1.0,
        "result_eps": 1e-16,
        "second_difference": 0.5,
    }
    records = [usual | values for values in sizes]
    return [[np.zeros(2), np.array([row[name] for name in SlopeErrorInputs._fields])] for row in records]


def test_truncation_error_is_estimated_from_differences_of_f() -> None:
    slopes, sizes = estimate_slope_errors(H, "central", received({}, {}, {}))
    assert slopes == pytest.approx(ERROR_SAFETY_FACTOR * (1e-16 * 2 + H * 1.0) / H)
    assert sizes == np.inf  # the size estimates themselves are not decoded
    slopes, _ = estimate_slope_errors(H, "forward", received({}, {}, {}))
    assert slopes == pytest.approx(ERROR_SAFETY_FACTOR * (1e-16 * 2 + 0.5) / H)


@pytest.mark.parametrize(
    "wrong", [{"max_value": 1e9}, {"max_direction_norm": 1e9}, {"result_eps": 1.0}, {"max_value": np.nan}]
)
def test_single_worker_cannot_increase_the_error_estimate(wrong: dict[str, float]) -> None:
    honest, _ = estimate_slope_errors(H, "central", received({}, {}, {}))
    with_a_liar, _ = estimate_slope_errors(H, "central", received({}, {}, {}, wrong))
    assert with_a_liar == pytest.approx(honest)


@pytest.mark.parametrize(("count", "k"), [(6, 3), (7, 3), (5, 5), (4, 1)])
def test_slopes_are_returned_in_the_order_of_directions(count: int, k: int) -> None:
    base = np.random.default_rng(count).standard_normal((count, 4))
    blocks = partition_directions(base, k)
    assert {block.shape for block in blocks} == {(-(-count // k), 4)}
    np.testing.assert_array_equal(merge_slopes([block[:, 2] for block in blocks], count), base[:, 2])


def test_the_gradient_is_the_shortest_vector_with_these_slopes() -> None:
    base, gradient = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), np.array([1.0, -1.0, 5.0])
    solved = solve_gradient(base @ gradient, base, np.ones(3))
    np.testing.assert_allclose(solved, [1.0, -1.0, 0.0], atol=1e-14)
    np.testing.assert_allclose(solve_gradient(np.ones(3), None, np.full(3, 4.0)), 0.25)
    assert np.isnan(solve_gradient(np.array([np.nan, 1.0]), base, np.ones(3))).all()


def test_number_of_blocks_follows_from_the_arguments() -> None:
    assert [choose_n_blocks(None, None, "auto", count) for count in (3, 24, 100)] == [3, 24, 24]
    assert choose_n_blocks(None, 8, "auto", 100) == 6
    assert choose_n_blocks(5, 8, "auto", 100) == 5
    assert choose_n_blocks(None, None, PolarCode(6, 4), 100) == 4
    with pytest.raises(CodeError, match="blocks=5 is more than the 4 directions; use blocks <= 4"):
        choose_n_blocks(5, None, "auto", 4)
