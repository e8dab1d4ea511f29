"""Subtasks: against a count of every piece, and the bound of workers that return all or nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polarmap.errors import CodeError
from polarmap.planning import (
    ShiftedExponential,
    simulate_subtasks,
    stragglers,
)

K, N = 24, 32
DISTRIBUTION = stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)


def test_one_piece_is_the_order_statistic() -> None:
    times = DISTRIBUTION.sample(np.random.default_rng(0), (100, N))
    assert simulate_subtasks(times, K, 1).time.tolist() == np.sort(times, axis=1)[:, K - 1].tolist()


@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
@pytest.mark.parametrize("startup", [0.0, 0.5])
def test_subtasks_are_counted_one_by_one(pieces: int, startup: float) -> None:
    times = ShiftedExponential(1.0, 1.0).sample(np.random.default_rng(0), (20, 7))
    times[0, 2] = math.inf
    for row, time in zip(times, simulate_subtasks(times, 5, pieces, startup).time):
        handed_in = [[] for _ in range(pieces)]
        for worker, whole in enumerate(row):
            for step in range(pieces):
                piece = (worker + step) % pieces
                took = startup + (whole - startup) * (step + 1) / pieces
                handed_in[piece].append(took)
        assert time == pytest.approx(max(sorted(one)[4] for one in handed_in))


def test_subtasks_beat_the_bound_of_workers_that_return_all_or_nothing() -> None:
    times = DISTRIBUTION.sample(np.random.default_rng(0), (2000, N))
    bound, split = simulate_subtasks(times, K, 1), simulate_subtasks(times, K, 8)
    assert split.time.mean() < 0.9 * bound.time.mean()
    assert split.paid.mean() < bound.paid.mean()


@pytest.mark.parametrize(
    "call",
    [
        lambda: simulate_subtasks(np.ones((2, 3)), 4, 1),
        lambda: simulate_subtasks(np.ones((2, 3)), 2, 0),
        lambda: simulate_subtasks(np.ones((2, 3)), 2, 1, math.nan),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call) -> None:
    with pytest.raises(CodeError):
        call()
