"""Draw snapshots as static SVG for notebooks.

An SVG needs no script, no font and no other file. It has its own background, so that it is legible on light
and dark pages. Its size is limited for any number of tasks: above `MAX_SQUARES`, a square shows a group of
tasks, and above `MAX_TIMELINE_ROWS`, the timeline shows numbers of tasks instead of single tasks. The words
come from `descriptions`, the groups of tasks from `task_groups`, and the times from `task_times`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from itertools import accumulate

from polarmap.live.descriptions import (
    describe_hidden_failures,
    describe_map,
    describe_workers,
    format_executor_line,
    format_failure,
    format_iteration_line,
    format_map_line,
    format_map_title,
    format_program_line,
    format_seconds,
    format_worker_columns,
    list_map_facts,
    make_printable,
    select_executors,
    select_maps,
)
from polarmap.live.snapshots import STATE_BY_LETTER, MapSnapshot, ProgramSnapshot, WorkerSnapshot
from polarmap.live.task_groups import (
    DECODED,
    LATE,
    STATE_COLORS,
    TaskGroup,
    count_tasks_by_state,
    group_tasks,
)
from polarmap.live.task_times import (
    TaskTimes,
    compute_task_times,
    count_tasks_over_time,
    get_timeline_end,
)
from polarmap.plot import figure_style

WIDTH = 720  # The width of an SVG in pixels.
MARGIN = 16
CONTENT_WIDTH = WIDTH - 2 * MARGIN
# An SVG shows at most this many maps, workers, fits and executors, and this many failures of each map.
MAX_SVG_MAPS = 4
MAX_SVG_WORKERS = 16
MAX_SVG_ITERATIONS = 3
MAX_SVG_EXECUTORS = 3
MAX_SVG_FAILURES = 3
MAX_SVG_LENGTH = 58_000  # The maximum number of characters in an SVG. Most of them take one byte.
# If an SVG is too long, the maximum number of squares is halved repeatedly while it is above this number.
MIN_SQUARES = 50
# The maximum number of squares in an SVG, for all maps together. If there are more tasks, each square
# represents several tasks.
MAX_SQUARES = 1000
# The maximum number of rows in the timelines of an SVG, for all maps together. Each row shows when one task
# ran. If there are more tasks, the timelines instead show how many tasks ran, at this many points in time.
MAX_TIMELINE_ROWS = 120
MAX_TIMELINE_HEIGHT = 120.0
TIMELINE_AREA_HEIGHT = 80.0
# The more squares there are, the closer together they are drawn. Each pair contains the distance from one
# square to the next in pixels, and the largest number of squares for which this distance is used.
SQUARE_PITCHES = ((18, 152), (12, 570), (9, MAX_SQUARES))
LINE_HEIGHT = 18
CHARACTER_WIDTH = 6.8  # estimated width of a character in pixels, used to place the entries of the legend
MAX_LINE_LENGTH = 106  # Lines with more characters than this are cut off.

SECONDARY_COLOR = "#595959"  # the colour of less important text
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', sans-serif\""
# This style sheet replaces the colours of SVG elements if the page is dark. Programs that ignore style sheets
# show the colours for a light page, which are attributes of the elements. The class names start with
# "polarmap", because a style sheet in an SVG also affects the rest of an HTML page.
DARK_STYLE = (
    "<style>@media (prefers-color-scheme: dark){"
    ".polarmap-card{fill:#1c1c1c}.polarmap-text{fill:#e8e8e8}.polarmap-note{fill:#b4b4b4}"
    ".polarmap-late{stroke:#f2f2f2}.polarmap-line{stroke:#d0d0d0}.polarmap-queued{fill:#505050}}</style>"
)


def render_map_svg(snapshot: MapSnapshot) -> str:
    """Draw a map as static SVG.

    The SVG shows the status of the map, a square for each task or group of tasks, and a legend with the
    number of tasks in each state. Below, a timeline shows when tasks were queued and when they ran. The
    latest failures are listed at the end.

    Parameters
    ----------
    snapshot : MapSnapshot
        The map.

    Returns
    -------
    str
        An `svg` element of at most 60 kB, for any number of tasks.
    """
    return _render_within_size_limit(lambda max_squares: _render_map(snapshot, max_squares))


def render_program_svg(snapshot: ProgramSnapshot) -> str:
    """Draw a program as static SVG.

    The SVG shows the fits, calls and workers of the program. It also shows the running maps, or the latest
    map if none is running.

    Parameters
    ----------
    snapshot : ProgramSnapshot
        The program.

    Returns
    -------
    str
        An `svg` element of at most 60 kB.
    """
    return _render_within_size_limit(lambda max_squares: _render_program(snapshot, max_squares))


def _render_within_size_limit(render: Callable[[int], str]) -> str:
    """Return the SVG from `render(max_squares)`, with a smaller number of squares if it is too long.

    An SVG is too long if it has more than MAX_SVG_LENGTH characters.
    """
    max_squares, text = MAX_SQUARES, render(MAX_SQUARES)
    while len(text) > MAX_SVG_LENGTH and max_squares > MIN_SQUARES:
        max_squares //= 2
        text = render(max_squares)
    return text


def _render_map(snapshot: MapSnapshot, max_squares: int) -> str:
    canvas = _Canvas()
    _draw_map(canvas, snapshot, max_squares, MAX_TIMELINE_ROWS)
    return canvas.render(format_map_line(snapshot), describe_map(snapshot))


def _render_program(snapshot: ProgramSnapshot, max_squares: int) -> str:
    canvas, maps = _Canvas(), select_maps(snapshot, MAX_SVG_MAPS)
    for iteration in snapshot.iterations[-MAX_SVG_ITERATIONS:]:
        canvas.add_line(format_iteration_line(iteration))
    for executor in select_executors(snapshot, MAX_SVG_EXECUTORS):
        canvas.add_line(format_executor_line(executor))
    for one_map in maps:
        canvas.add_gap()
        _draw_map(canvas, one_map, max_squares // len(maps), MAX_TIMELINE_ROWS // len(maps))
    if snapshot.workers:
        canvas.add_gap()
        _draw_workers(canvas, snapshot.workers)
    if not (snapshot.iterations or snapshot.executors or maps or snapshot.workers):
        canvas.add_line("No map has started.")
    return canvas.render(format_program_line(snapshot), " ".join(map(describe_map, maps)))


class _Canvas:
    """Collects the elements of an SVG, from top to bottom.

    `y` is the vertical position in pixels at which the next element starts.
    """

    def __init__(self) -> None:
        self.y = float(MARGIN)
        self._elements: list[str] = []

    def add(self, element: str) -> None:
        """Append an element."""
        self._elements.append(element)

    def add_gap(self) -> None:
        """Leave vertical space, unless nothing has been drawn yet."""
        if self._elements:
            self.y += 14

    def add_line(self, text: str, is_note: bool = False, is_bold: bool = False) -> None:
        """Append a line of text. If `is_note` is true, draw it in grey, because it is less important."""
        self.add_text(MARGIN, self.y + 13, text, is_note, is_bold)
        self.y += LINE_HEIGHT

    def add_text(
        self, x: float, y: float, text: str, is_note: bool = False, is_bold: bool = False, anchor: str = ""
    ) -> None:
        """Append text whose baseline starts at (x, y), or ends there if `anchor` is "end"."""
        style = "polarmap-note" if is_note else "polarmap-text"
        color = SECONDARY_COLOR if is_note else figure_style.TEXT_COLOR
        weight = ' font-weight="600"' if is_bold else ""
        anchor = f' text-anchor="{anchor}"' if anchor else ""
        shortened = text if len(text) <= MAX_LINE_LENGTH else f"{text[: MAX_LINE_LENGTH - 1]}…"
        self.add(
            f'<text class="{style}" fill="{color}" x="{x:.0f}" y="{y:.0f}"{weight}{anchor}>'
            f"{escape(make_printable(shortened))}</text>"
        )

    def render(self, title: str, description: str) -> str:
        """Return the SVG. The title and the description are for screen readers."""
        height = self.y + MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" '
            f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}" '
            f'style="max-width:100%;height:auto" {FONT} font-size="12">'
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{DARK_STYLE}"
            f'<rect class="polarmap-card" width="{WIDTH}" height="{height:.0f}" rx="6" fill="#ffffff"/>'
            f"{''.join(self._elements)}</svg>"
        )


def _draw_map(canvas: _Canvas, snapshot: MapSnapshot, max_squares: int, max_timeline_rows: int) -> None:
    executor_text = " · ".join(filter(None, map(make_printable, (snapshot.code, snapshot.executor))))
    canvas.add_text(WIDTH - MARGIN, canvas.y + 13, executor_text, is_note=True, anchor="end")
    canvas.add_line(format_map_title(snapshot)[:60], is_bold=True)
    canvas.add_line(snapshot.status_text)
    canvas.add_line(" · ".join(list_map_facts(snapshot)), is_note=True)
    canvas.y += 6
    groups = group_tasks(snapshot, max_squares)
    _draw_squares(canvas, groups, snapshot.k)
    _draw_legend(canvas, snapshot, max((group.n_tasks for group in groups), default=1))
    _draw_timeline(canvas, snapshot, max_timeline_rows)
    if snapshot.error:
        canvas.add_line(f"The map failed: {snapshot.error}")
    failures = snapshot.failures[-MAX_SVG_FAILURES:]
    for failure in failures:
        center_y = canvas.y + LINE_HEIGHT / 2
        canvas.add(_render_path([_trace_cross(MARGIN + 4, center_y, 3)], _FAILURE_STROKE))
        canvas.add_text(MARGIN + 14, canvas.y + 13, format_failure(failure)[: MAX_LINE_LENGTH - 3])
        canvas.y += LINE_HEIGHT
    hidden_text = describe_hidden_failures(snapshot, len(failures))
    if hidden_text:
        canvas.add_line(hidden_text, is_note=True)


# --- squares -----------------------------------------------------------------------------------

_FAILURE_STROKE = f'stroke="{figure_style.VERMILLION}" stroke-width="2"'
_LATE_STROKE = f'class="polarmap-late" fill="none" stroke="{figure_style.TEXT_COLOR}" stroke-width="1.5"'
# Several states also differ in outline or fill, for readers who cannot distinguish the colours.
_STATE_ATTRIBUTES = {
    **{state: f'fill="{color}"' for state, color in STATE_COLORS.items()},
    "queued": f'class="polarmap-queued" fill="{figure_style.LIGHT_GREY}" stroke="{figure_style.GREY}"',
    "held back": f'fill="none" stroke="{figure_style.GREY}" stroke-dasharray="1.5 1.5"',
    "cancelled": f'fill="none" stroke="{figure_style.GREY}"',
}


def _draw_squares(canvas: _Canvas, groups: Sequence[TaskGroup], n_data_tasks: int) -> None:
    """Draw a square for each group of tasks.

    The first `n_data_tasks` tasks are data tasks. The squares of the parity tasks follow after a gap.
    """
    pitch = next((pitch for pitch, max_squares in SQUARE_PITCHES if len(groups) <= max_squares), 9)
    size, per_row = pitch * 5 // 6, CONTENT_WIDTH // pitch - 1
    n_data_groups = sum(group.first_task < n_data_tasks for group in groups)
    paths: dict[str, list[str]] = {}
    y = canvas.y
    for group, (x, dy) in zip(groups, _place_squares(len(groups), n_data_groups, pitch, per_row)):
        y = canvas.y + dy
        for attributes, path in _trace_group(group, MARGIN + x, y, size):
            paths.setdefault(attributes, []).append(path)
    for attributes in sorted(paths, key=lambda name: (name in _MARK_ATTRIBUTES, name)):
        canvas.add(_render_path(paths[attributes], attributes))
    canvas.y = y + pitch + 4


def _place_squares(n_groups: int, n_data_groups: int, pitch: int, per_row: int) -> Iterator[tuple[int, int]]:
    """Yield the x and y offsets of all squares in pixels, with `per_row` squares in a row.

    The first `n_data_groups` squares show data tasks. If there is more than one row, the squares of parity
    tasks begin in a new row.
    """
    if n_groups <= per_row:
        yield from ((pitch * index + (index >= n_data_groups) * pitch // 2, 0) for index in range(n_groups))
        return
    first_parity_y = pitch * -(-n_data_groups // per_row) + pitch // 2
    for index in range(n_groups):
        is_parity = index >= n_data_groups
        row, column = divmod(index - n_data_groups * is_parity, per_row)
        yield pitch * column, pitch * row + first_parity_y * is_parity


_DECODED_ATTRIBUTES = f'fill="{figure_style.GREEN}" stroke="#ffffff" stroke-width="1"'
_CROSS_ATTRIBUTES = 'stroke="#ffffff" stroke-width="1.5"'
# Shapes with these attributes mark late, decoded and failed tasks. They are drawn on top of the squares.
_MARK_ATTRIBUTES = {_LATE_STROKE, _DECODED_ATTRIBUTES, _CROSS_ATTRIBUTES}


def _trace_group(group: TaskGroup, x: float, y: float, size: float) -> Iterator[tuple[str, str]]:
    """Yield the shapes that represent a group of tasks, as pairs of SVG attributes and path data.

    The first shape is the square. Further shapes mark the group as failed, late or decoded.
    """
    yield _STATE_ATTRIBUTES[group.state], _trace_square(x, y, size)
    if group.state == "failed" and not group.is_decoded:
        yield _CROSS_ATTRIBUTES, _trace_cross(x + size / 2, y + size / 2, size / 4)
    if group.is_late:
        yield _LATE_STROKE, _trace_square(x - 1, y - 1, size + 2)
    if group.is_decoded:
        yield _DECODED_ATTRIBUTES, _trace_diamond(x + size / 2, y + size / 2, size / 3)


def _trace_square(x: float, y: float, size: float) -> str:
    return f"M{x:g} {y:g}h{size:g}v{size:g}h-{size:g}z"


def _trace_cross(x: float, y: float, radius: float) -> str:
    side = f"{2 * radius:g}"
    return f"M{x - radius:g} {y - radius:g}l{side} {side}m0-{side}l-{side} {side}"


def _trace_diamond(x: float, y: float, radius: float) -> str:
    r = f"{radius:.3g}"
    return f"M{x:.4g} {y - radius:.4g}l{r} {r}l-{r} {r}l-{r}-{r}z"


def _render_path(parts: Iterable[str], attributes: str) -> str:
    return f'<path {attributes} d="{"".join(parts)}"/>'


def _draw_legend(canvas: _Canvas, snapshot: MapSnapshot, tasks_per_square: int) -> None:
    """Draw a legend, which lists the square of each state that occurs with the number of tasks in it."""
    x, size = float(MARGIN), 10
    for state, count in count_tasks_by_state(snapshot).items():
        text = f"{count:,} {state}"
        entry_width = size + 5 + CHARACTER_WIDTH * len(text) + 12
        if x + entry_width > WIDTH - MARGIN:
            x, canvas.y = float(MARGIN), canvas.y + LINE_HEIGHT
        for attributes, path in _trace_legend_symbol(state, x, canvas.y + 4, size):
            canvas.add(_render_path([path], attributes))
        canvas.add_text(x + size + 5, canvas.y + 13, text)
        x += entry_width
    canvas.y += LINE_HEIGHT
    if tasks_per_square > 1:
        canvas.add_line(
            f"Each square shows {tasks_per_square} tasks: their most common state, or failed or late if one "
            "of them is",
            is_note=True,
        )


def _trace_legend_symbol(state: str, x: float, y: float, size: int) -> Iterator[tuple[str, str]]:
    if state == LATE:
        yield _LATE_STROKE, _trace_square(x, y, size)
    elif state == DECODED:
        yield _DECODED_ATTRIBUTES, _trace_diamond(x + size / 2, y + size / 2, size / 2)
    else:
        yield from _trace_group(TaskGroup(0, 1, state, False, False), x, y, size)


# --- timeline ----------------------------------------------------------------------------------


def _draw_timeline(canvas: _Canvas, snapshot: MapSnapshot, max_rows: int) -> None:
    """Draw a timeline that shows when tasks were queued and when they ran.

    A vertical line marks the time when enough results had arrived to compute all others.
    """
    times = compute_task_times(snapshot)
    if not times:
        return
    end = get_timeline_end(snapshot)
    canvas.y += 6
    top = canvas.y
    height = (
        _draw_bars(canvas, snapshot, times)
        if snapshot.n <= max_rows
        else _draw_areas(canvas, snapshot, max_rows)
    )
    canvas.y = top + height + 2
    canvas.add_text(MARGIN, canvas.y + 12, "0 s", is_note=True)
    canvas.add_text(WIDTH - MARGIN, canvas.y + 12, format_seconds(end), is_note=True, anchor="end")
    if snapshot.sufficed_at is not None:
        x = MARGIN + CONTENT_WIDTH * min(1.0, snapshot.sufficed_at / end)
        canvas.add(
            f'<path class="polarmap-line" stroke="{figure_style.TEXT_COLOR}" stroke-width="1.2" '
            f'd="M{x:.1f} {top - 3:g}V{canvas.y:g}"/>'
        )
        is_left = x > WIDTH / 2
        text_x = min(max(x, MARGIN + 40.0), WIDTH - MARGIN - 70.0)
        label = f"results sufficed after {format_seconds(snapshot.sufficed_at)}"
        canvas.add_text(text_x, canvas.y + 12, label, anchor="end" if is_left else "start")
    canvas.y += LINE_HEIGHT


def _draw_bars(canvas: _Canvas, snapshot: MapSnapshot, times: Sequence[TaskTimes]) -> float:
    """Draw a row for each task: a thin pale line while it was queued, and a bar while it ran.

    Return the height of the drawing in pixels.
    """
    row_height = min(6.0, MAX_TIMELINE_HEIGHT / snapshot.n)
    pixels_per_second = CONTENT_WIDTH / get_timeline_end(snapshot)
    paths: dict[str, list[str]] = {}
    for task in times:
        y = canvas.y + row_height * (task.task + 0.5)
        state = STATE_BY_LETTER[snapshot.states[task.task].lower()]
        color = STATE_COLORS["running" if state == "queued" else state]
        queued_x, run_x, end_x = (MARGIN + pixels_per_second * moment for moment in task[1:])
        if run_x > queued_x:
            paths.setdefault(_QUEUED_STROKE, []).append(f"M{queued_x:.1f} {y:.1f}H{run_x:.1f}")
        if end_x > run_x:
            stroke = f'stroke="{color}" stroke-width="{max(1.0, 0.75 * row_height):.3g}"'
            paths.setdefault(stroke, []).append(f"M{run_x:.1f} {y:.1f}H{max(end_x, run_x + 1):.1f}")
    for attributes, parts in paths.items():
        canvas.add(_render_path(parts, attributes))
    return row_height * snapshot.n


_QUEUED_STROKE = f'stroke="{figure_style.GREY}" stroke-opacity="0.55" stroke-width="1"'


def _draw_areas(canvas: _Canvas, snapshot: MapSnapshot, n_columns: int) -> float:
    """Draw a stacked area chart of the numbers of returned, failed, running and queued tasks over time.

    Return the height of the drawing in pixels.
    """
    pixels_per_task = TIMELINE_AREA_HEIGHT / max(1, snapshot.n)
    counts = count_tasks_over_time(snapshot, n_columns)
    bottom_y = [canvas.y + TIMELINE_AREA_HEIGHT] * n_columns
    for state, layer in (
        ("arrived", counts.returned),
        ("failed", counts.failed),
        ("running", counts.running),
        ("queued", counts.queued),
    ):
        top_y = [y - pixels_per_task * count for y, count in zip(bottom_y, layer)]
        style = 'class="polarmap-queued" ' if state == "queued" else ""
        path = _trace_steps(top_y, bottom_y)
        canvas.add(_render_path([path], f'{style}fill="{STATE_COLORS[state]}"'))
        bottom_y = top_y
    return TIMELINE_AREA_HEIGHT


def _trace_steps(top_y: Sequence[float], bottom_y: Sequence[float]) -> str:
    """Return the SVG path of an area whose upper and lower edges are step functions."""
    step = CONTENT_WIDTH / len(top_y)
    forward = "".join(f"V{y:.1f}H{MARGIN + step * (column + 1):.1f}" for column, y in enumerate(top_y))
    backward = "".join(
        f"V{bottom_y[column]:.1f}H{MARGIN + step * column:.1f}" for column in reversed(range(len(bottom_y)))
    )
    return f"M{MARGIN} {bottom_y[0]:.1f}{forward}{backward}z"


# --- workers -----------------------------------------------------------------------------------


def _draw_workers(canvas: _Canvas, workers: Sequence[WorkerSnapshot]) -> None:
    """Draw a line with the number of workers in each state, and below it a line for each worker."""
    canvas.add_line(describe_workers(workers), is_bold=True)
    for worker in workers[:MAX_SVG_WORKERS]:
        columns = format_worker_columns(worker)
        for text, x in zip(columns, accumulate((100, 140, 230, 90), initial=float(MARGIN))):
            canvas.add_text(x, canvas.y + 13, text)
        canvas.y += LINE_HEIGHT
    if len(workers) > MAX_SVG_WORKERS:
        canvas.add_line(f"and {len(workers) - MAX_SVG_WORKERS} more", is_note=True)
