"""The frontier of a plan: what is marked, and degenerate ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import rendered

from polarmap.planning import (
    Failing,
    ShiftedExponential,
    plan,
    stragglers,
)

DISTRIBUTION = stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)


@pytest.mark.parametrize("objective", ["p99", "mean", "cost"])
def test_a_frontier_marks_the_plan_and_the_plain_map(objective: str, tmp_path: Path) -> None:
    chosen = plan(8, DISTRIBUTION, objective)
    figure = chosen.plot(tmp_path / "frontier.svg")
    assert (tmp_path / "frontier.svg").read_bytes().startswith(b"<?xml")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["frontier", "plain map, 8 workers", f"plan, {chosen.n} workers"]
    assert len(figure.axes[0].lines[0].get_xdata()) == len(chosen.frontier)
    rendered(figure, tmp_path)


def test_a_frontier_of_one_point_or_none_and_an_infinite_plain_map_render(tmp_path: Path) -> None:
    rendered(plan(8, DISTRIBUTION, max_workers=8).plot(), tmp_path)
    rendered(plan(8, Failing(DISTRIBUTION, 0.02), max_workers=16).plot(), tmp_path)
    never = plan(8, Failing(DISTRIBUTION, 0.2), "cost", max_workers=8, max_failure_probability=1.0)
    rendered(never.plot(), tmp_path)  # one job in a hundred is never complete: there is no p99
