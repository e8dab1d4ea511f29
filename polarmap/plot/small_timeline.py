"""The timeline of a map as a small picture in HTML, drawn without matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from polarmap.plot import canvas
from polarmap.plot.timeline import STYLES, Bar, bar_of, end_of, was_started

WIDTH = 480  # of the picture, in pixels
TALLEST = 240  # in pixels, however many tasks there are
ROW = 6.0  # pixels of a task, if there are few
FACES = {
    "used": canvas.BLUE,
    "parity": canvas.ORANGE,
    "surplus": canvas.SKY,
    "abandoned": f"{canvas.GREY}66",  # neither stands out on a light page nor on a dark one
    "failed": canvas.VERMILLION,
}


def timeline_html(report: Any, text: str) -> str:
    """What a notebook shows of a report: its text as it is, and a bar for each task that was started.

    In HTML without scripts and styles of others, readable on light and dark pages.
    """
    end = end_of(report)
    bars = [bar_of(task, report, end) for task in report.tasks if was_started(task)]
    row = min(ROW, TALLEST / max(1, report.n))
    height = row * report.n
    picture = "".join(_shapes(report, bars, row, end))
    legend = " ".join(_legend(bars, report))
    return (
        f'<div><pre style="white-space:pre-wrap">{escape(text)}</pre>'
        f'<svg role="img" aria-label="timeline of {report.n} tasks" width="{WIDTH + 20}" '
        f'height="{height + 2:.0f}" viewBox="0 0 {WIDTH + 20} {height + 2:.0f}">{picture}</svg>'
        f"<div><small>{legend}; 0 to {end:.3g} s</small></div></div>"
    )


def _shapes(report: Any, bars: list[Bar], row: float, end: float) -> Iterator[str]:
    """A rectangle for each bar, a mark behind what was decoded, a line where the results were returned."""
    scale = WIDTH / end
    tasks = {task.index: task for task in report.tasks}
    for bar in bars:
        yield (
            f'<rect x="{scale * bar.start:.1f}" y="{row * bar.task:.1f}" '
            f'width="{max(1.0, scale * (bar.end - bar.start)):.1f}" height="{0.8 * row:.1f}" '
            f'fill="{_face(bar.style)}"><title>{escape(_said(tasks[bar.task]))}</title></rect>'
        )
    for index in report.recovered:
        yield (
            f'<circle cx="{WIDTH + 10}" cy="{row * (index + 0.4):.1f}" r="{min(3.0, 0.4 * row):.1f}" '
            f'fill="{canvas.GREEN}"><title>task {index}: decoded from others</title></circle>'
        )
    returned = scale * report.seconds
    yield (
        f'<line x1="{returned:.1f}" x2="{returned:.1f}" y1="0" y2="{row * report.n:.0f}" '
        f'stroke="{canvas.GREY}" stroke-width="1"/>'
    )


def _legend(bars: list[Bar], report: Any) -> Iterator[str]:
    """A coloured square and a name for each state that occurs, and for what was decoded."""
    styles = dict.fromkeys(bar.style for bar in bars)
    shown = [name for name in FACES if name in styles] + [name for name in styles if name not in FACES]
    for name in shown:
        label = STYLES[name].label if name in STYLES else name
        yield f'<span style="color:{_face(name)}">&#9632;</span> {escape(label)}'
    if report.recovered:
        yield f'<span style="color:{canvas.GREEN}">&#9679;</span> decoded'


def _face(style: str) -> str:
    return FACES.get(style, canvas.GREY)


def _said(task: Any) -> str:
    """What a task did, in a line."""
    when = "" if task.arrived is None else f", {task.arrived:.3g} s"
    return f"task {task.index}: {task.state}{when}"
