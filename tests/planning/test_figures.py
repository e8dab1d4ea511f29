"""Figures of run times, polarization and frontiers, for ordinary and degenerate inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import rendered

from polarmap.errors import CodeError
from polarmap.planning import (
    Empirical,
    FailureProne,
    Pareto,
    ShiftedExponential,
    plan,
    plot_polarization,
    plot_run_times,
    with_stragglers,
)

DISTRIBUTION = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)


@pytest.mark.parametrize(
    "distribution",
    [
        [1.0, 1.2, 1.1, 5.0],
        [2.0],
        Pareto(1.0, 1.0),
        FailureProne(ShiftedExponential(0.0, 1.0), 0.3),
        Empirical([1.0, 2.0, 3.0], completed=[True, True, False]),
    ],
    ids=repr,
)
def test_run_times_and_polarization_render(distribution: object) -> None:
    rendered(plot_run_times(distribution, fitted_distribution=ShiftedExponential(1.0, 1.0)))
    rendered(plot_polarization(distribution, depths=(0, 2)))


def test_run_time_axis_contains_all_tasks() -> None:
    figure = plot_run_times([1.0] * 8 + [3.0] * 2)
    heights = [bar.get_height() for bar in figure.axes[0].containers[0].patches]
    assert sorted(heights)[-2:] == pytest.approx([20.0, 80.0])
    assert "seconds" in figure.axes[0].get_xlabel()


def test_polarization_has_a_line_for_each_virtual_worker() -> None:
    figure = plot_polarization(DISTRIBUTION, depths=(0, 1, 5))
    assert [len(axes.collections[0].get_segments()) for axes in figure.axes] == [1, 2, 32]


@pytest.mark.parametrize("depths", [(), (-1,), (13,)])
def test_depths_that_cannot_be_drawn_are_refused(depths: tuple[int, ...]) -> None:
    with pytest.raises(CodeError, match="depths must be one or more numbers from 0 to 12"):
        plot_polarization(DISTRIBUTION, depths=depths)


@pytest.mark.parametrize("objective", ["p99", "mean", "cost"])
def test_a_frontier_marks_the_plan_and_the_plain_map(objective: str, tmp_path: Path) -> None:
    chosen = plan(8, DISTRIBUTION, objective)
    figure = chosen.plot(tmp_path / "frontier.svg")
    assert (tmp_path / "frontier.svg").read_bytes().startswith(b"<?xml")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["frontier", "plain map, 8 workers", f"plan, {chosen.n} workers"]
    assert len(figure.axes[0].lines[0].get_xdata()) == len(chosen.frontier)


def test_degenerate_frontiers_and_infinite_plain_maps_render() -> None:
    rendered(plan(8, DISTRIBUTION, max_workers=8).plot())
    rendered(plan(8, FailureProne(DISTRIBUTION, 0.02), max_workers=16).plot())
    never = plan(8, FailureProne(DISTRIBUTION, 0.2), "cost", max_workers=8, max_failure_probability=1.0)
    rendered(never.plot())  # more than one job in a hundred never completes, so the p99 is infinite
