"""Draw the timeline of a map: when each task ran, which results were used, and when the map returned.

A timeline is drawn as a matplotlib figure, or as inline SVG in HTML, which does not need matplotlib. In all
functions, `report` is the `polarmap.types.Report` of the map, and `task` is one of its `TaskReport`s.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from polarmap.plot import figure_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECODED_LABEL = "decoded from others"
CANCELLED_LABEL = "cancelled before it started"
# Tasks in these states never ran, so they have no bar.
UNSTARTED_STATES = "cancelled", "queued", "held back"
MAX_LABELLED_TASKS = 48  # If there are more tasks, the axis does not show their numbers.


class BarStyle(NamedTuple):
    """The label and colours of the bars for one task state, in matplotlib and in HTML."""

    label: str
    face_color: str
    edge_color: str
    hatch: str
    html_color: str


BAR_STYLES = {
    "arrived": BarStyle("arrived", figure_style.BLUE, figure_style.BLUE, "", figure_style.BLUE),
    "parity": BarStyle("arrived, parity", figure_style.ORANGE, figure_style.ORANGE, "", figure_style.ORANGE),
    "surplus": BarStyle("surplus", "white", figure_style.BLUE, "////", figure_style.SKY_BLUE),
    "abandoned": BarStyle("abandoned", "white", figure_style.GREY, "....", f"{figure_style.GREY}66"),
    "failed": BarStyle("failed", "white", figure_style.VERMILLION, "xxxx", figure_style.VERMILLION),
}


class TaskBar(NamedTuple):
    """The bar that shows when one task ran, in seconds since the start of the map."""

    task_index: int
    style_name: str
    start: float
    end: float


def draw_timeline(report: Any, path: figure_style.FigurePath | None = None) -> Figure:
    """Draw the figure of `Report.plot`, with one bar per task that shows when the task ran.

    Two vertical lines mark two times: when as many results had arrived as there are data blocks, and when the
    map returned.
    """
    figure, ((axes,),) = figure_style.new_figure(9.0, min(9.0, max(3.2, 1.9 + 0.16 * report.n)))
    end_seconds, bars = _compute_timeline_end_and_bars(report)
    _draw_bars(axes, bars)
    _mark_unstarted_tasks(axes, report, end_seconds)
    _mark_cancelled_tasks(axes, report)
    _mark_task_outcomes(axes, report, end_seconds)
    _mark_completion_events(axes, report, end_seconds)
    _configure_axes(axes, report, end_seconds)
    _add_legend(figure, axes)
    return figure_style.save_figure(figure, path)


def _compute_timeline_end_and_bars(report: Any) -> tuple[float, list[TaskBar]]:
    """Return the duration of the timeline in seconds, and a bar for each task that may have run."""
    ends = [task.ended for task in report.tasks if task.ended is not None]
    end_seconds = max([report.seconds, *ends]) or 1.0
    started_tasks = [
        task for task in report.tasks if task.launched is not None and task.state not in UNSTARTED_STATES
    ]
    return end_seconds, [_make_task_bar(task, report, end_seconds) for task in started_tasks]


def _make_task_bar(task: Any, report: Any, end_seconds: float) -> TaskBar:
    """Return the bar of a task, from its start on a worker (if known) until it returned or failed.

    If it did neither, the bar extends to the end of the timeline.
    """
    bar_end = end_seconds if task.ended is None else task.ended
    launched_at = task.launched or 0.0
    bar_start = launched_at if task.started is None else max(launched_at, task.started)
    if task.arrived is not None and task.seconds is not None:
        bar_start = max(launched_at, bar_end - task.seconds)
    is_parity = task.state == "arrived" and task.index >= report.k
    return TaskBar(task.index, "parity" if is_parity else task.state, bar_start, bar_end)


def _draw_bars(axes: Axes, bars: list[TaskBar]) -> None:
    for style_name, style in _select_bar_styles(bars).items():
        styled_bars = [bar for bar in bars if bar.style_name == style_name]
        delayed_bars = [bar for bar in styled_bars if bar.start > 0]
        axes.hlines(
            [bar.task_index for bar in delayed_bars],
            0,
            [bar.start for bar in delayed_bars],
            figure_style.LIGHT_GREY,
            linewidth=1,
        )
        axes.barh(
            [bar.task_index for bar in styled_bars],
            [bar.end - bar.start for bar in styled_bars],
            left=[bar.start for bar in styled_bars],
            height=0.7,
            label=style.label,
            facecolor=style.face_color,
            edgecolor=style.edge_color,
            hatch=style.hatch,
            linewidth=0.8,
        )


def _select_bar_styles(bars: list[TaskBar]) -> dict[str, BarStyle]:
    """Return the bar style of each task state that occurs, in legend order.

    States that are not in BAR_STYLES, such as "running", are drawn like "surplus".
    """
    used_names = {bar.style_name for bar in bars}
    known_styles = {style_name: style for style_name, style in BAR_STYLES.items() if style_name in used_names}
    fallback_style = BAR_STYLES["surplus"]._replace(html_color=figure_style.GREY)
    other_styles = {
        style_name: fallback_style._replace(label=style_name)
        for style_name in sorted(used_names - BAR_STYLES.keys())
    }
    return known_styles | other_styles


def _mark_unstarted_tasks(axes: Axes, report: Any, end_seconds: float) -> None:
    """Draw a dotted line for each task that was never submitted, because it was not needed."""
    held_back_indices = [task.index for task in report.tasks if task.launched is None]
    if held_back_indices:
        axes.hlines(
            held_back_indices,
            0,
            end_seconds,
            figure_style.GREY,
            linestyle=":",
            linewidth=1,
            label="held back",
        )


def _mark_cancelled_tasks(axes: Axes, report: Any) -> None:
    """Draw a hollow circle for each task that was cancelled before a worker started it."""
    cancelled_tasks = [task for task in report.tasks if task.state == "cancelled"]
    if cancelled_tasks:
        axes.plot(
            [task.launched or 0.0 for task in cancelled_tasks],
            [task.index for task in cancelled_tasks],
            "o",
            color=figure_style.GREY,
            markerfacecolor="none",
            markersize=4.5,
            label=CANCELLED_LABEL,
            clip_on=False,
        )


def _mark_task_outcomes(axes: Axes, report: Any, end_seconds: float) -> None:
    """Mark tasks that failed, were decoded, or were started several times, at the right edge."""
    mark_position = 1.012 * end_seconds
    failed_indices = {task.index for task in report.tasks if task.state == "failed"}
    marks = {
        DECODED_LABEL: ("D", figure_style.GREEN, set(report.recovered)),
        "failed": ("x", figure_style.VERMILLION, failed_indices - set(report.recovered)),
    }
    for label, (marker, color, task_indices) in marks.items():
        if task_indices:
            legend_label = label if marker == "D" else None
            axes.plot(
                [mark_position] * len(task_indices),
                sorted(task_indices),
                marker,
                color=color,
                ms=4.5,
                label=legend_label,
                clip_on=False,
            )
    for task in report.tasks:
        if task.attempts > 1:
            text = f"{task.attempts} attempts"
            axes.annotate(
                text, (mark_position, task.index), (8, 0), textcoords="offset points", va="center", fontsize=7
            )


def _mark_completion_events(axes: Axes, report: Any, end_seconds: float) -> None:
    """Draw two labelled vertical lines: when k of the n results had arrived, and when the map returned."""
    arrivals = sorted(task.arrived for task in report.tasks if task.arrived is not None)
    events = []
    if len(arrivals) >= report.k:
        events.append((arrivals[report.k - 1], f"arrival {report.k} of {report.n}", "--"))
    events.append((report.seconds, "results returned", "-"))
    for level, (event_seconds, event_label, line_style) in enumerate(events):
        axes.axvline(
            event_seconds, color=figure_style.TEXT_COLOR, linewidth=1.2, linestyle=line_style, zorder=3
        )
        axes.annotate(
            f"{event_label}, {event_seconds:.3g} s ",
            (event_seconds, 1.0),
            (-2, 5 + 11 * (len(events) - 1 - level)),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if event_seconds > 0.3 * end_seconds else "left",
            fontsize=9,
            color=figure_style.TEXT_COLOR,
        )


def _configure_axes(axes: Axes, report: Any, end_seconds: float) -> None:
    figure_style.label_axes(axes, "", "seconds since the start of the map", "")
    axes.set_xlim(0, 1.01 * end_seconds)
    axes.set_ylim(report.n - 0.3, -0.7)
    axes.grid(visible=False, axis="y")
    axes.axhline(report.k - 0.5, color=figure_style.GREY, linewidth=0.8)
    if report.n <= MAX_LABELLED_TASKS:
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
            color=figure_style.TEXT_COLOR,
        )


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Add a legend below the axes, in which the mark for decoded tasks comes last."""
    entries = sorted(zip(*axes.get_legend_handles_labels()), key=lambda entry: entry[1] == DECODED_LABEL)
    if entries:
        figure.legend(*zip(*entries), loc="outside lower center", ncols=6, frameon=False, fontsize=9)


# --- in HTML -----------------------------------------------------------------------------------

SVG_WIDTH = 480  # width of the timeline in pixels
MAX_SVG_HEIGHT = 240  # maximum height of the timeline in pixels, for any number of tasks
MAX_ROW_HEIGHT = 6.0  # maximum height of a task's row in pixels


def render_timeline_html(report: Any, summary: str) -> str:
    """Return the HTML that a notebook shows for a map's report: a summary, and a timeline as inline SVG.

    The HTML needs no scripts or external styles, and its colours work on light and dark pages.
    """
    end_seconds, bars = _compute_timeline_end_and_bars(report)
    row_height = min(MAX_ROW_HEIGHT, MAX_SVG_HEIGHT / max(1, report.n))
    height = row_height * report.n
    shapes = "".join(_generate_svg_shapes(report, bars, row_height, end_seconds))
    legend = " ".join(_generate_html_legend_entries(bars, report))
    return (
        f'<div><pre style="white-space:pre-wrap">{escape(summary)}</pre>'
        f'<svg role="img" aria-label="timeline of {report.n} tasks" width="{SVG_WIDTH + 20}" '
        f'height="{height + 2:.0f}" viewBox="0 0 {SVG_WIDTH + 20} {height + 2:.0f}">{shapes}</svg>'
        f"<div><small>{legend}; 0 to {end_seconds:.3g} s</small></div></div>"
    )


def _generate_svg_shapes(
    report: Any, bars: list[TaskBar], row_height: float, end_seconds: float
) -> Iterator[str]:
    """Yield the SVG elements of a timeline.

    Yields a rectangle for each task that ran, circles for cancelled and decoded tasks, and a vertical line at
    the time when the map returned.
    """
    pixels_per_second, styles = SVG_WIDTH / end_seconds, _select_bar_styles(bars)
    tasks_by_index = {task.index: task for task in report.tasks}
    for bar in bars:
        yield (
            f'<rect x="{pixels_per_second * bar.start:.1f}" y="{row_height * bar.task_index:.1f}" '
            f'width="{max(1.0, pixels_per_second * (bar.end - bar.start)):.1f}" '
            f'height="{0.8 * row_height:.1f}" fill="{styles[bar.style_name].html_color}">'
            f"<title>{escape(_summarize_task(tasks_by_index[bar.task_index]))}</title></rect>"
        )
    for task in report.tasks:
        if task.state == "cancelled":
            yield (
                f'<circle cx="{pixels_per_second * (task.launched or 0.0) + 3:.1f}" '
                f'cy="{row_height * (task.index + 0.4):.1f}" '
                f'r="{min(2.5, 0.4 * row_height):.1f}" fill="none" stroke="{figure_style.GREY}">'
                f"<title>{escape(_summarize_task(task))}</title></circle>"
            )
    for index in report.recovered:
        yield (
            f'<circle cx="{SVG_WIDTH + 10}" cy="{row_height * (index + 0.4):.1f}" '
            f'r="{min(3.0, 0.4 * row_height):.1f}" '
            f'fill="{figure_style.GREEN}"><title>task {index}: decoded from others</title></circle>'
        )
    returned_x = pixels_per_second * report.seconds
    yield (
        f'<line x1="{returned_x:.1f}" x2="{returned_x:.1f}" y1="0" y2="{row_height * report.n:.0f}" '
        f'stroke="{figure_style.GREY}" stroke-width="1"/>'
    )


def _generate_html_legend_entries(bars: list[TaskBar], report: Any) -> Iterator[str]:
    """Yield the entries of the legend: a coloured symbol and a label for each task state that occurs."""
    for style in _select_bar_styles(bars).values():
        yield f'<span style="color:{style.html_color}">&#9632;</span> {escape(style.label)}'
    if report.tasks_in_state("cancelled"):
        yield f'<span style="color:{figure_style.GREY}">&#9675;</span> {CANCELLED_LABEL}'
    if report.recovered:
        yield f'<span style="color:{figure_style.GREEN}">&#9679;</span> decoded'


def _summarize_task(task: Any) -> str:
    """Return the tooltip text for a task."""
    end_text = "" if task.ended is None else f", {task.ended:.3g} s"
    return f"task {task.index}: {task.state}{end_text}"
