"""Check the virtual clock, directions and gradients of the black-box benchmark against closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks import blackbox
from benchmarks.blackbox import GradientSource, N, VirtualClock, sample_directions


class Scripted(VirtualClock):
    """A clock with a list of times for each call: 1 s per query except for the named tasks."""

    def __init__(self, *exceptions: dict[int, float]) -> None:
        super().__init__(seed=0)
        self._script = iter(exceptions)

    def sample_answer_times(self, n_queries: int) -> Any:
        times = np.full(N, float(n_queries))
        for task, seconds in next(self._script).items():
            times[task] = seconds
        return times


@pytest.mark.parametrize(
    ("backups", "exceptions", "seconds", "started"),
    [
        (False, [{}], 10, N),
        (False, [{3: 100.0}], 100, N),
        (True, [{}], 10, N),
        (True, [{3: np.inf, 5: 40.0}, {}, {}], 25, N + 2),  # The copies start at 15 s.
        (True, [{3: 100.0}, {3: 100.0}, {}], 40, N + 2),  # The copy is late, too: another one starts at 30 s.
        (True, [{3: 16.0}, {}], 16, N + 1),
    ],
)
def test_waiting_for_all_workers_with_and_without_backups(
    backups: bool, exceptions: Sequence[dict[int, float]], seconds: float, started: int
) -> None:
    assert Scripted(*exceptions).wait_for_all(10, backups) == (seconds, started * 10)


def test_directions_are_orthonormal_and_new_each_time() -> None:
    stream = np.random.default_rng(0)
    first, second = (sample_directions(50, 3072, stream) for _ in range(2))
    np.testing.assert_allclose(first @ first.T, np.eye(50), atol=1e-12)
    assert abs(first @ second.T).max() < 0.2
    assert abs(first).max() < 0.2  # No coordinate dominates.


@pytest.mark.parametrize("kind", ["coded", "differences", "backups", "orthogonal"])
def test_a_source_finds_the_gradient_or_its_projection_and_counts(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blackbox, "N", 4)
    monkeypatch.setattr(blackbox, "K", 3)
    slope = np.arange(1.0, 13.0)
    source = GradientSource(kind, lambda x: x @ slope, seed=0)
    gradient = source(np.ones(12))
    if kind == "orthogonal":
        assert np.vdot(gradient, gradient) == pytest.approx(np.vdot(gradient, slope), rel=1e-4)
    else:
        np.testing.assert_allclose(gradient, slope, rtol=1e-4)
    queries = 2 * 12 // (3 if kind == "coded" else 4)
    assert source.n_calls == 1 and source.n_queries >= 4 * queries and source.elapsed_seconds >= queries
