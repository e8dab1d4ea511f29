"""The timeline in HTML: a bar for each task, whatever the report."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from figures import KILLED, report_of

from polarmap import ReplayExecutor, Report, hedged_map, submit
from polarmap.plot import canvas
from polarmap.plot.small_timeline import ROW, TALLEST, WIDTH, timeline_html


def drawn(report: Report) -> ElementTree.Element:
    """The picture; what is no well-formed markup raises."""
    found = ElementTree.fromstring(report._repr_html_()).find("svg")
    assert found is not None
    return found


def test_every_task_has_a_bar_from_its_start_to_its_end() -> None:
    report = report_of({0: math.inf, 1: 1.5, 7: 1.2}, KILLED)
    bars = {bar.find("title").text.split(":")[0]: bar for bar in drawn(report).iter("rect")}
    assert list(bars) == [f"task {index}" for index in range(9)]
    end = max(report.seconds, *(task.arrived or 0 for task in report.tasks))
    for task in report.tasks:
        bar = bars[f"task {task.index}"]
        until = end if task.arrived is None else task.arrived
        right = float(bar.get("x", "")) + float(bar.get("width", ""))
        assert right == pytest.approx(WIDTH * until / end, abs=0.2)
        assert float(bar.get("y", "")) == ROW * task.index


def test_colours_say_what_became_of_tasks() -> None:
    report = report_of({0: math.inf}, KILLED)
    faces = [bar.get("fill") for bar in drawn(report).iter("rect")]
    assert faces[0].startswith(canvas.GREY)
    assert faces[2] == canvas.VERMILLION
    assert faces[3] == canvas.BLUE
    assert faces[6:8] == [canvas.ORANGE] * 2
    marks = [mark.find("title").text for mark in drawn(report).iter("circle")]
    assert marks == ["task 0: decoded from others", "task 2: decoded from others"]


def test_the_text_of_the_report_stands_above_it() -> None:
    report = report_of({0: math.inf}, KILLED)
    assert ElementTree.fromstring(report._repr_html_()).findtext("pre") == str(report)
    assert ElementTree.fromstring(timeline_html(report, "a < b & c")).findtext("pre") == "a < b & c"


def test_many_tasks_share_the_height() -> None:
    report = hedged_map(abs, list(range(500)), executor=ReplayExecutor()).report
    picture = drawn(report)
    assert float(picture.get("height", "")) <= TALLEST + 2
    assert len(list(picture.iter("rect"))) == 500


def test_tasks_that_were_not_started_have_no_bar() -> None:
    report = report_of({}, KILLED, schedule="on_demand", verify=False)
    started = [task for task in report.tasks if task.launched is not None]
    assert len(list(drawn(report).iter("rect"))) == len(started) < 9


def test_an_empty_map_and_one_that_goes_on_are_shown_too() -> None:
    assert len(list(drawn(hedged_map(abs, [], executor=ReplayExecutor()).report).iter("rect"))) == 0
    future = submit(np.negative, np.eye(6), blocks=3, workers=4, executor=ReplayExecutor())
    future.result(60)
    blank = future._map._prepared.running.blank
    assert ElementTree.fromstring(blank._repr_html_()).text == str(blank)
