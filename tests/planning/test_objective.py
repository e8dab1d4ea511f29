"""Objectives of plans: the choice of a candidate, and the error if a limit excludes all candidates."""

from __future__ import annotations

from math import inf, nan

import pytest

from polarmap.errors import CodeError
from polarmap.planning import Completion
from polarmap.planning.objective import Objective


def option(n: int, seconds: float, paid: float, failing: float = 0.0) -> Completion:
    return Completion("rotation", n, 4, seconds, 0.0, seconds, seconds, seconds, paid, 4.0, float(n), failing)


OPTIONS = [option(4, 9.0, 10.0), option(5, 3.0, 11.0), option(6, 2.05, 12.0), option(8, 2.0, 16.0)]


@pytest.mark.parametrize(
    ("objective", "n"),
    [
        (Objective(), 6),  # the minimum of time x cost: 9 * 10, 3 * 11, 2.05 * 12, 2 * 16
        (Objective(slack=0.05), 6),  # cheaper, and within 5 % of the fastest
        (Objective(slack=0.0), 8),
        (Objective(slack=1.0), 5),
        (Objective("cost"), 4),
        (Objective("cost", slack=0.1), 5),
        (Objective("mean", slack=0.0), 8),
    ],
)
def test_the_choice_is_the_knee_or_the_cheapest_near_the_best(objective: Objective, n: int) -> None:
    assert objective.select_candidate(OPTIONS).n == n


def test_knee_is_where_relative_time_and_cost_balance() -> None:
    steps = [option(10 + n, 100.0 / (1 + n) ** 2, 10.0 + n) for n in range(10)]
    steep = Objective().select_candidate(steps)
    assert steep.n == 19  # each worker saves a larger share of the time than it adds to the cost
    flat = [option(10 + n, 100.0 - n, 10.0 + n) for n in range(10)]
    # A worker more adds 10 % to the cost, but saves only 1 % of the time.
    assert Objective().select_candidate(flat).n == 10
    turning = [option(10 + n, 1.0 + 8.0 * 0.25**n, 10.0 + n) for n in range(10)]
    chosen = Objective().select_candidate(turning)
    before, after = turning[chosen.n - 11], turning[chosen.n - 9]
    assert chosen.p99 / before.p99 < before.worker_seconds / chosen.worker_seconds
    assert after.p99 / chosen.p99 > chosen.worker_seconds / after.worker_seconds


def test_candidates_beyond_a_limit_are_left_out() -> None:
    assert [candidate.n for candidate in Objective(deadline=3.0).filter_feasible_candidates(OPTIONS)] == [
        5,
        6,
        8,
    ]
    assert [candidate.n for candidate in Objective(budget=11.0).filter_feasible_candidates(OPTIONS)] == [4, 5]
    assert [
        candidate.n for candidate in Objective("cost", deadline=3.0).filter_feasible_candidates(OPTIONS)
    ] == [5, 6, 8]
    risky = [option(4, 1.0, 1.0, failing=0.01), *OPTIONS]
    assert Objective().filter_feasible_candidates(risky) == OPTIONS
    assert Objective(max_failure_probability=0.01).filter_feasible_candidates(risky) == risky
    assert Objective().filter_feasible_candidates([option(4, inf, 1.0), *OPTIONS]) == OPTIONS


@pytest.mark.parametrize(
    ("objective", "options", "says"),
    [
        (
            Objective(deadline=1.0),
            OPTIONS,
            "k = 4 on at most 8 workers: p99 is at least 2 s, later than the deadline of 1 s",
        ),
        (Objective(budget=9.0), OPTIONS, "at least 10 worker-seconds are needed, more than the budget of 9"),
        (Objective(), [option(4, 1.0, 1.0, 0.5)], "a probability of at least 0.5, above .* = 0.001"),
        (Objective("mean"), [option(4, inf, 1.0)], "the mean of the completion time is infinite"),
    ],
)
def test_limit_that_excludes_all_candidates_is_named(
    objective: Objective, options: list[Completion], says: str
) -> None:
    with pytest.raises(CodeError, match=says):
        objective.filter_feasible_candidates(options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metric": "p42"}, "objective must be one of mean, p50, p95, p99, cost, not 'p42'"),
        ({"slack": -0.1}, "slack must be a number of at least 0, not -0.1"),
        ({"deadline": "soon"}, "deadline must be a number of at least 0, not 'soon'"),
        ({"budget": nan}, "budget must be a number of at least 0, not nan"),
    ],
)
def test_invalid_objective_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(CodeError, match=says):
        Objective(**options)  # type: ignore[arg-type]
