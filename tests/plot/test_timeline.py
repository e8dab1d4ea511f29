"""Tests of timelines as figures and in HTML: all tasks and both marked times, for all kinds of reports."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from figures import KILLED, rendered, report_of
from matplotlib.figure import Figure

from polarmap import coded_map, hedged_map, submit
from polarmap.plot import figure_style
from polarmap.plot.timeline import (
    MAX_ROW_HEIGHT,
    MAX_SVG_HEIGHT,
    SVG_WIDTH,
    draw_timeline,
    render_timeline_html,
)
from polarmap.testing import Fault, ReplayExecutor
from polarmap.types import Report, TaskReport


def invented(states: list[str], k: int, seconds: float = 2.0) -> Report:
    arrived = {"arrived": 1.0, "surplus": 1.5}
    tasks = tuple(
        TaskReport(index, state, arrived.get(state), arrived.get(state), 1)
        if state != "held back"
        else TaskReport(index, state, None, None, 0, launched=None)
        for index, state in enumerate(states)
    )
    return Report(len(states), k, "rotation", "replay", tasks, k, seconds=seconds)


def bars(figure: Figure) -> dict[str, list[tuple[float, float, float]]]:
    """Return (task, start, end) of every bar, by the label of its container."""
    return {
        container.get_label(): [
            (bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_x() + bar.get_width())
            for bar in container.patches
        ]
        for container in figure.axes[0].containers
    }


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_timeline_shows_every_task_and_both_marked_times(tmp_path: Path) -> None:
    report = report_of({0: math.inf, 1: 1.5, 7: 1.2}, KILLED)
    figure = report.plot(tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 5000
    drawn = bars(figure)
    assert sorted(round(task) for task_bars in drawn.values() for task, _, _ in task_bars) == list(range(9))
    assert [round(task) for task, _, _ in drawn["arrived, parity"]] == [6, 7, 8]
    assert [round(task) for task, _, _ in drawn["failed"]] == [2]
    assert {round(task): end for task, _, end in drawn["arrived"]}[1] == pytest.approx(1.5)
    moments = sorted(line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1)
    assert report.seconds in moments
    assert any("arrival 6 of 9, 1.2" in text or "arrival 6 of 9, 1.5" in text for text in texts(figure))
    assert {"data (6)", "parity (3)"} <= set(texts(figure))
    rendered(figure)


ODD = {
    "no parity used": report_of({6: 5.0, 7: 5.0, 8: 5.0}),
    "all failed": invented(["failed"] * 4, 3),
    "all abandoned": invented(["abandoned"] * 4, 3),
    "one block": invented(["arrived", "surplus"], 1),
    "nothing took any time": invented(["failed"] * 3, 2, seconds=0.0),
    "a state of the future": invented(["arrived", "arrived", "postponed"], 2),
    "an early result": invented(["arrived", "surplus", "surplus"], 1, seconds=1e-9),
    "many": invented(["arrived"] * 700 + ["abandoned"] * 300, 700),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_reports_are_rendered(name: str) -> None:
    figure = ODD[name].plot()
    rendered(figure)
    assert figure.get_size_inches()[1] <= 9
    axes = figure.axes[0]
    assert axes.get_xlabel() == "seconds since the start of the map"
    assert axes.get_xlim()[1] > 0


def test_the_number_of_attempts_is_shown() -> None:
    report = report_of({5: 2.0, 6: 1.8, 7: 1.8, 8: 1.8}, {0: Fault("raise"), 1: Fault("raise")})
    retried = [task.index for task in report.tasks if task.attempts > 1]
    assert sum("attempts" in text for text in texts(draw_timeline(report))) == len(retried)


def test_tasks_that_were_held_back_start_late_or_not_at_all() -> None:
    seconds = {0: 9.0, **{index: 1.0 + index / 100 for index in range(1, 9)}}
    report = report_of(seconds, schedule="on_demand", verify=False)
    figure = report.plot()
    launched = {task.index: task.launched for task in report.tasks if task.index >= 6}
    late = {index: time for index, time in launched.items() if time is not None}
    assert late
    assert min(late.values()) > 0
    starts = {round(task): start for task_bars in bars(figure).values() for task, start, _ in task_bars}
    assert {index: starts[index] for index in late} == pytest.approx(late)
    assert set(range(9)) - starts.keys() == launched.keys() - late.keys()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("held back" in labels) == (len(late) < 3)
    rendered(figure)


def drawn(report: Report) -> ElementTree.Element:
    """Return the picture in the HTML of a report. Raises ParseError if the HTML is not well-formed."""
    svg = ElementTree.fromstring(report._repr_html_()).find("svg")
    assert svg is not None
    return svg


def test_every_task_has_a_bar_from_its_start_to_its_end() -> None:
    report = report_of({0: math.inf, 1: 1.5, 7: 1.2}, KILLED)
    bars = {bar.find("title").text.split(":")[0]: bar for bar in drawn(report).iter("rect")}
    assert list(bars) == [f"task {index}" for index in range(9)]
    assert report.tasks[2].failed is not None
    end = max(report.seconds, *(task.arrived or 0 for task in report.tasks))
    for task in report.tasks:
        bar = bars[f"task {task.index}"]
        until = end if task.index == 0 else task.failed if task.index == 2 else task.arrived
        right = float(bar.get("x", "")) + float(bar.get("width", ""))
        assert right == pytest.approx(SVG_WIDTH * until / end, abs=0.2)
        assert float(bar.get("y", "")) == MAX_ROW_HEIGHT * task.index


def test_colours_show_the_states_of_tasks() -> None:
    report = report_of({0: math.inf}, KILLED)
    faces = [bar.get("fill") for bar in drawn(report).iter("rect")]
    assert faces[0].startswith(figure_style.GREY)
    assert faces[2] == figure_style.VERMILLION
    assert faces[3] == figure_style.BLUE
    assert faces[6:8] == [figure_style.ORANGE] * 2
    marks = [mark.find("title").text for mark in drawn(report).iter("circle")]
    assert marks == ["task 0: decoded from others", "task 2: decoded from others"]


def test_an_unknown_state_has_a_separate_colour_and_label() -> None:
    report = invented(["arrived", "surplus", "later"], 2)
    faces = [bar.get("fill") for bar in drawn(report).iter("rect")]
    assert faces == [figure_style.BLUE, figure_style.SKY_BLUE, figure_style.GREY]
    legend = "".join(ElementTree.fromstring(report._repr_html_()).find("div").itertext())
    assert "arrived" in legend and "surplus" in legend and "later" in legend


def test_the_text_of_the_report_is_above_the_timeline() -> None:
    report = report_of({0: math.inf}, KILLED)
    assert ElementTree.fromstring(report._repr_html_()).findtext("pre") == str(report)
    assert ElementTree.fromstring(render_timeline_html(report, "a < b & c")).findtext("pre") == "a < b & c"


def test_many_tasks_share_the_height() -> None:
    report = hedged_map(abs, list(range(500)), executor=ReplayExecutor()).report
    picture = drawn(report)
    assert float(picture.get("height", "")) <= MAX_SVG_HEIGHT + 2
    assert len(list(picture.iter("rect"))) == 500


def test_tasks_that_were_not_started_have_no_bar() -> None:
    report = report_of({}, KILLED, schedule="on_demand", verify=False)
    started = [task for task in report.tasks if task.launched is not None]
    assert len(list(drawn(report).iter("rect"))) == len(started) < 9


def test_empty_and_running_maps_are_shown() -> None:
    assert len(list(drawn(hedged_map(abs, [], executor=ReplayExecutor()).report).iter("rect"))) == 0
    future = submit(coded_map, np.negative, np.eye(6), blocks=3, tasks=4, executor=ReplayExecutor())
    future.result(60)
    blank = future._background_map._prepared_map.get_report()
    assert ElementTree.fromstring(blank._repr_html_()).text == str(blank)


def test_tasks_that_no_worker_has_started_have_a_hollow_mark_and_no_bar() -> None:
    report = invented(["arrived", "abandoned", "cancelled", "held back"], 1)
    assert "tasks cancelled before they started: 2" in str(report)
    figure = report.plot()
    rendered(figure)
    assert sorted(round(task) for task_bars in bars(figure).values() for task, _, _ in task_bars) == [0, 1]
    [mark] = [line for line in figure.axes[0].lines if line.get_label() == "cancelled before it started"]
    assert (mark.get_ydata()[0], mark.get_markerfacecolor()) == (2, "none")
    picture = drawn(report)
    titles = [bar.find("title").text for bar in picture.iter("rect")]
    assert titles == ["task 0: arrived, 1 s", "task 1: abandoned"]
    [circle] = picture.iter("circle")
    assert (circle.get("fill"), circle.find("title").text) == ("none", "task 2: cancelled")


def test_the_bar_of_a_failed_task_ends_at_its_last_failure() -> None:
    task = TaskReport(0, "failed", None, None, 2, ("OSError: disk",), started=0.5, failed=1.25)
    report = Report(1, 1, "rotation", "replay", (task,), 1, seconds=2.0)
    assert bars(report.plot())["failed"] == [(0, 0.5, 1.25)]
    [bar] = drawn(report).iter("rect")
    assert float(bar.get("x", "")) == SVG_WIDTH * 0.25 and float(bar.get("width", "")) == SVG_WIDTH * 0.375
    assert bar.find("title").text == "task 0: failed, 1.25 s"


def test_the_bar_of_a_queued_task_starts_when_its_worker_starts() -> None:
    task = TaskReport(0, "abandoned", None, None, 1, started=1.5)
    report = Report(1, 1, "rotation", "replay", (task,), 1, seconds=2.0)
    [(_, start, end)] = bars(report.plot())["abandoned"]
    assert (start, end) == (1.5, 2.0)
