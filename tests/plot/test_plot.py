"""Figures: what is in them, for ordinary and odd input; nothing global, no warnings."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import polarmap
from polarmap import Fault, FaultyExecutor, ReplayExecutor, Report, TaskReport
from polarmap.errors import CodeError
from polarmap.planning import (
    Empirical,
    Failing,
    Pareto,
    ShiftedExponential,
    plan,
    plot_polarization,
    plot_runtimes,
    stragglers,
    training_trace,
)
from polarmap.plot import draw_timeline

DISTRIBUTION = stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)


def report_of(seconds: Mapping[int, float], faults: Mapping[int, Fault] | None = None) -> Report:
    executor = FaultyExecutor(ReplayExecutor(seconds), faults or {})
    blocks = list(np.ones((6, 4)))
    return polarmap.coded_map(lambda block: 2 * block, blocks, workers=9, executor=executor).report


def invented(states: list[str], k: int, seconds: float = 2.0, **changes: object) -> Report:
    arrived = {"used": 1.0, "surplus": 1.5}
    tasks = tuple(
        TaskReport(index, state, arrived.get(state), arrived.get(state), 1)
        for index, state in enumerate(states)
    )
    fields = {
        "n": len(states),
        "k": k,
        "code": "rotation",
        "executor": "replay",
        "tasks": tasks,
        "needed": k,
        "recovered": (),
        "seconds": seconds,
        "encode_seconds": 0.0,
        "decode_seconds": 0.0,
        "surplus_seconds": 0.0,
        "amplification": 0.0,
        "error_bound": 0.0,
        "residual": None,
        "verified": "no",
    }
    return Report(**{**fields, **changes})  # type: ignore[arg-type]


def bars(figure: Figure) -> dict[str, list[tuple[float, float, float]]]:
    """Label -> (task, start, end) of every bar."""
    return {
        container.get_label(): [
            (bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_x() + bar.get_width())
            for bar in container.patches
        ]
        for container in figure.axes[0].containers
    }


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def rendered(figure: Figure, folder: Path) -> None:
    """It can be drawn."""
    figure.savefig(folder / "figure.png", dpi=50)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


# --- timelines ----------------------------------------------------------------------------------


def test_a_timeline_shows_every_task_and_both_moments(tmp_path: Path) -> None:
    report = report_of({0: math.inf, 1: 1.5, 7: 1.2}, {2: Fault("kill", attempts=9)})
    figure = report.plot(tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 5000
    drawn = bars(figure)
    assert sorted(round(task) for some in drawn.values() for task, _, _ in some) == list(range(9))
    assert [round(task) for task, _, _ in drawn["used, parity"]] == [6, 7, 8]
    assert [round(task) for task, _, _ in drawn["failed"]] == [2]
    assert {round(task): end for task, _, end in drawn["used"]}[1] == pytest.approx(1.5)
    moments = sorted(line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1)
    assert report.seconds in moments
    assert any("arrival 6 of 9, 1.2" in text or "arrival 6 of 9, 1.5" in text for text in texts(figure))
    assert {"data (6)", "parity (3)"} <= set(texts(figure))
    rendered(figure, tmp_path)


ODD = {
    "no parity used": report_of({6: 5.0, 7: 5.0, 8: 5.0}),
    "all failed": invented(["failed"] * 4, 3),
    "all abandoned": invented(["abandoned"] * 4, 3),
    "one block": invented(["used", "surplus"], 1),
    "nothing took any time": invented(["failed"] * 3, 2, seconds=0.0),
    "a state of the future": invented(["used", "used", "postponed"], 2),
    "an early result": invented(["used", "surplus", "surplus"], 1, seconds=1e-9),
    "many": invented(["used"] * 700 + ["abandoned"] * 300, 700),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_reports_render(name: str, tmp_path: Path) -> None:
    figure = ODD[name].plot()
    rendered(figure, tmp_path)
    assert figure.get_size_inches()[1] <= 9
    axes = figure.axes[0]
    assert axes.get_xlabel() == "seconds since the start of the map"
    assert axes.get_xlim()[1] > 0


def test_the_number_of_attempts_is_shown() -> None:
    report = report_of({5: 2.0, 6: 1.8, 7: 1.8, 8: 1.8}, {0: Fault("raise"), 1: Fault("raise")})
    retried = [task.index for task in report.tasks if task.attempts > 1]
    assert sum("attempts" in text for text in texts(draw_timeline(report))) == len(retried)


def test_tasks_that_were_held_back_start_late_or_not_at_all(tmp_path: Path) -> None:
    seconds = {0: 9.0, **{index: 1.0 + index / 100 for index in range(1, 9)}}
    executor = ReplayExecutor(seconds)
    options = {"executor": executor, "parity": "on_demand", "verify": False}
    report = polarmap.coded_map(np.sum, list(np.ones((6, 4))), workers=9, **options).report
    figure = report.plot()
    launched = {task.index: task.launched for task in report.tasks if task.index >= 6}
    late = {index: time for index, time in launched.items() if time is not None}
    assert late
    assert min(late.values()) > 0
    starts = {round(task): start for some in bars(figure).values() for task, start, _ in some}
    assert {index: starts[index] for index in late} == pytest.approx(late)
    assert set(range(9)) - starts.keys() == launched.keys() - late.keys()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("not started" in labels) == (len(late) < 3)
    rendered(figure, tmp_path)


# --- distributions and plans -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distribution",
    [
        [1.0, 1.2, 1.1, 5.0],
        [2.0],
        training_trace(),
        Pareto(1.0, 1.0),
        Failing(ShiftedExponential(0.0, 1.0), 0.3),
        Empirical([1.0, 2.0, 3.0], ended=[True, True, False]),
    ],
    ids=repr,
)
def test_return_times_and_polarization_render(distribution: object, tmp_path: Path) -> None:
    rendered(plot_runtimes(distribution, fitted=ShiftedExponential(1.0, 1.0)), tmp_path)
    rendered(plot_polarization(distribution, depths=(0, 2)), tmp_path)


def test_return_times_hold_all_tasks_that_are_drawn() -> None:
    figure = plot_runtimes([1.0] * 8 + [3.0] * 2)
    heights = [bar.get_height() for bar in figure.axes[0].containers[0].patches]
    assert sorted(heights)[-2:] == pytest.approx([20.0, 80.0])
    assert "seconds" in figure.axes[0].get_xlabel()


def test_polarization_has_a_line_for_each_virtual_worker() -> None:
    figure = plot_polarization(DISTRIBUTION, depths=(0, 1, 5))
    assert [len(axes.collections[0].get_segments()) for axes in figure.axes] == [1, 2, 32]


@pytest.mark.parametrize("depths", [(), (-1,), (13,)])
def test_depths_that_cannot_be_drawn_are_refused(depths: tuple[int, ...]) -> None:
    with pytest.raises(CodeError, match="depths to draw"):
        plot_polarization(DISTRIBUTION, depths=depths)


@pytest.mark.parametrize("objective", ["p99", "mean", "cost"])
def test_a_frontier_marks_the_plan_and_the_plain_map(objective: str, tmp_path: Path) -> None:
    chosen = plan(8, DISTRIBUTION, objective)
    figure = chosen.plot(tmp_path / "frontier.svg")
    assert (tmp_path / "frontier.svg").read_bytes().startswith(b"<?xml")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["frontier", "plain map, 8 workers", f"plan, {chosen.n} workers"]
    assert len(figure.axes[0].lines[0].get_xdata()) == len(chosen.frontier)
    rendered(figure, tmp_path)


def test_a_frontier_of_one_point_and_an_infinite_plain_map_render(tmp_path: Path) -> None:
    rendered(plan(8, DISTRIBUTION, max_workers=8).plot(), tmp_path)
    rendered(plan(8, Failing(DISTRIBUTION, 0.02), max_workers=16).plot(), tmp_path)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="cannot be written"):
        plot_runtimes([1.0, 2.0], tmp_path / "figure.nonsense")


def test_no_figure_touches_pyplot() -> None:
    code = (
        "import sys; from polarmap.planning import plot_polarization, training_trace; "
        "plot_polarization(training_trace(), depths=(1,)); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
