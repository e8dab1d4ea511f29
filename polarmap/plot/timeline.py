"""The timeline of one coded map: who worked when, what was used, when the results were determined.

As a figure of matplotlib, and without that as a small picture in HTML. `report` is a `polarmap.types.Report`,
`task` one of its `TaskReport`s.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from polarmap.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECODED = "decoded from others"
CANCELLED = "cancelled before it started"
UNSTARTED = "cancelled", "queued", "held back"  # states of tasks without a bar
MOST_LABELLED = 48  # tasks that get a line of their own number


class BarStyle(NamedTuple):
    """How the bars of one state are drawn; in HTML in one colour, neither bright nor dark."""

    label: str
    face: str
    edge: str
    hatch: str
    html: str


STYLES = {
    "arrived": BarStyle("arrived", canvas.BLUE, canvas.BLUE, "", canvas.BLUE),
    "parity": BarStyle("arrived, parity", canvas.ORANGE, canvas.ORANGE, "", canvas.ORANGE),
    "surplus": BarStyle("surplus", "white", canvas.BLUE, "////", canvas.SKY),
    "abandoned": BarStyle("abandoned", "white", canvas.GREY, "....", f"{canvas.GREY}66"),
    "failed": BarStyle("failed", "white", canvas.VERMILLION, "xxxx", canvas.VERMILLION),
}


class Bar(NamedTuple):
    """Where one task is drawn, in seconds of the map."""

    task: int
    style: str
    start: float
    end: float


def draw_timeline(report: Any, path: canvas.Path | None = None) -> Figure:
    """What `Report.plot` shows: a line per task, with the k-th arrival and the return of the results."""
    figure, ((axes,),) = canvas.blank(9.0, min(9.0, max(3.2, 1.9 + 0.16 * report.n)))
    end, bars = _bars_of(report)
    _draw_bars(axes, bars)
    _mark_unstarted(axes, report, end)
    _mark_cancelled(axes, report)
    _mark_tasks(axes, report, end)
    _mark_moments(axes, report, end)
    _arrange(axes, report, end)
    _explain(figure, axes)
    return canvas.saved(figure, path)


def _bars_of(report: Any) -> tuple[float, list[Bar]]:
    """Return the second at which a timeline ends, and a bar for each task that may have begun."""
    arrivals = [task.arrived for task in report.tasks if task.arrived is not None]
    end = max([report.seconds, *arrivals]) or 1.0
    begun = [task for task in report.tasks if task.launched is not None and task.state not in UNSTARTED]
    return end, [_bar_of(task, report, end) for task in begun]


def _bar_of(task: Any, report: Any, end: float) -> Bar:
    """The bar of the last attempt: from when the worker began, where that is known, until it arrived."""
    until = end if task.arrived is None else task.arrived
    launched = task.launched or 0.0
    start = launched if task.began is None else max(launched, task.began)
    if task.arrived is not None and task.seconds is not None:
        start = max(launched, until - task.seconds)
    is_parity = task.state == "arrived" and task.index >= report.k
    return Bar(task.index, "parity" if is_parity else task.state, start, until)


def _draw_bars(axes: Axes, bars: list[Bar]) -> None:
    for name, style in _styles(bars).items():
        some = [bar for bar in bars if bar.style == name]
        waits = [bar for bar in some if bar.start > 0]
        axes.hlines([bar.task for bar in waits], 0, [bar.start for bar in waits], canvas.PALE, linewidth=1)
        axes.barh(
            [bar.task for bar in some],
            [bar.end - bar.start for bar in some],
            left=[bar.start for bar in some],
            height=0.7,
            label=style.label,
            facecolor=style.face,
            edgecolor=style.edge,
            hatch=style.hatch,
            linewidth=0.8,
        )


def _styles(bars: list[Bar]) -> dict[str, BarStyle]:
    """The styles of the states that occur, in a fixed order; any other is drawn as surplus, in HTML grey."""
    seen = {bar.style for bar in bars}
    known = {name: style for name, style in STYLES.items() if name in seen}
    unknown = STYLES["surplus"]._replace(html=canvas.GREY)
    others = {name: unknown._replace(label=name) for name in sorted(seen - STYLES.keys())}
    return known | others


def _mark_unstarted(axes: Axes, report: Any, end: float) -> None:
    """Draw a dotted line for tasks that were held back and not needed."""
    held = [task.index for task in report.tasks if task.launched is None]
    if held:
        axes.hlines(held, 0, end, canvas.GREY, linestyle=":", linewidth=1, label="held back")


def _mark_cancelled(axes: Axes, report: Any) -> None:
    """Draw a hollow mark for tasks that were submitted and that no worker had started."""
    tasks = [task for task in report.tasks if task.state == "cancelled"]
    if tasks:
        axes.plot(
            [task.launched or 0.0 for task in tasks],
            [task.index for task in tasks],
            "o",
            color=canvas.GREY,
            markerfacecolor="none",
            markersize=4.5,
            label=CANCELLED,
            clip_on=False,
        )


def _mark_tasks(axes: Axes, report: Any, end: float) -> None:
    """Mark what was tried again, failed or decoded, at the right edge of its line."""
    margin = 1.012 * end
    failed = {task.index for task in report.tasks if task.state == "failed"}
    marks = {
        DECODED: ("D", canvas.GREEN, set(report.recovered)),
        "failed": ("x", canvas.VERMILLION, failed - set(report.recovered)),
    }
    for label, (marker, color, tasks) in marks.items():
        if tasks:
            shown = label if marker == "D" else None
            axes.plot(
                [margin] * len(tasks), sorted(tasks), marker, color=color, ms=4.5, label=shown, clip_on=False
            )
    for task in report.tasks:
        if task.attempts > 1:
            text = f"{task.attempts} attempts"
            axes.annotate(
                text, (margin, task.index), (8, 0), textcoords="offset points", va="center", fontsize=7
            )


def _mark_moments(axes: Axes, report: Any, end: float) -> None:
    """Mark the k-th arrival and the return of the results, named above the axes."""
    arrivals = sorted(task.arrived for task in report.tasks if task.arrived is not None)
    moments = []
    if len(arrivals) >= report.k:
        moments.append((arrivals[report.k - 1], f"arrival {report.k} of {report.n}", "--"))
    moments.append((report.seconds, "results returned", "-"))
    for level, (time, name, style) in enumerate(moments):
        axes.axvline(time, color=canvas.INK, linewidth=1.2, linestyle=style, zorder=3)
        axes.annotate(
            f"{name}, {time:.3g} s ",
            (time, 1.0),
            (-2, 5 + 11 * (len(moments) - 1 - level)),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if time > 0.3 * end else "left",
            fontsize=9,
            color=canvas.INK,
        )


def _arrange(axes: Axes, report: Any, end: float) -> None:
    canvas.titled(axes, "", "seconds since the start of the map", "")
    axes.set_xlim(0, 1.01 * end)
    axes.set_ylim(report.n - 0.3, -0.7)
    axes.grid(visible=False, axis="y")
    axes.axhline(report.k - 0.5, color=canvas.GREY, linewidth=0.8)
    if report.n <= MOST_LABELLED:
        axes.set_yticks(range(report.n), [str(index) for index in range(report.n)])
        axes.tick_params(axis="y", labelsize=7, length=0)
    groups = {"data": (0, report.k), "parity": (report.k, report.n)}
    for name, (first, last) in groups.items():
        axes.annotate(
            f"{name} ({last - first})",
            (0.0, (first + last - 1) / 2),
            (-34, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="center",
            fontsize=10,
            color=canvas.INK,
        )


def _explain(figure: Figure, axes: Axes) -> None:
    """Add a legend below: bars first, marks last."""
    entries = sorted(zip(*axes.get_legend_handles_labels()), key=lambda entry: entry[1] == DECODED)
    if entries:
        figure.legend(*zip(*entries), loc="outside lower center", ncols=6, frameon=False, fontsize=9)


# --- in HTML -----------------------------------------------------------------------------------

WIDTH = 480  # of the picture, in pixels
TALLEST = 240  # in pixels, however many tasks there are
ROW = 6.0  # pixels of a task, if there are few


def timeline_html(report: Any, text: str) -> str:
    """What a notebook shows of a report: its text as it is, and a bar for each task that has begun.

    In HTML without scripts and styles of others, readable on light and dark pages.
    """
    end, bars = _bars_of(report)
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
    scale, styles = WIDTH / end, _styles(bars)
    tasks = {task.index: task for task in report.tasks}
    for bar in bars:
        yield (
            f'<rect x="{scale * bar.start:.1f}" y="{row * bar.task:.1f}" '
            f'width="{max(1.0, scale * (bar.end - bar.start)):.1f}" height="{0.8 * row:.1f}" '
            f'fill="{styles[bar.style].html}"><title>{escape(_said(tasks[bar.task]))}</title></rect>'
        )
    for task in report.tasks:
        if task.state == "cancelled":
            yield (
                f'<circle cx="{scale * (task.launched or 0.0) + 3:.1f}" cy="{row * (task.index + 0.4):.1f}" '
                f'r="{min(2.5, 0.4 * row):.1f}" fill="none" stroke="{canvas.GREY}">'
                f"<title>{escape(_said(task))}</title></circle>"
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
    for style in _styles(bars).values():
        yield f'<span style="color:{style.html}">&#9632;</span> {escape(style.label)}'
    if report.indices("cancelled"):
        yield f'<span style="color:{canvas.GREY}">&#9675;</span> {CANCELLED}'
    if report.recovered:
        yield f'<span style="color:{canvas.GREEN}">&#9679;</span> decoded'


def _said(task: Any) -> str:
    """What a task did, in a line."""
    when = "" if task.arrived is None else f", {task.arrived:.3g} s"
    return f"task {task.index}: {task.state}{when}"
