"""Draw snapshots as static SVG for notebooks, and describe them in the words that all text views share.

An SVG needs no script, no font and no other file. It has its own background, so that it is legible on light
and dark pages. Its size is limited for any number of tasks: above `MAX_SQUARES`, a square shows a group of
tasks, and above `MAX_TIMELINE_ROWS`, the timeline shows numbers of tasks instead of single tasks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from itertools import accumulate
from typing import NamedTuple

from polarmap.live.snapshots import (
    STATE_BY_LETTER,
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
)
from polarmap.plot import figure_style

# A task is in this state if its letter is in upper case, or if its block is among the decoded ones.
LATE, DECODED = "late", "decoded"

STATE_COLORS = {
    "arrived": figure_style.BLUE,
    "running": figure_style.ORANGE,
    "queued": figure_style.LIGHT_GREY,
    "held back": figure_style.GREY,
    "surplus": figure_style.SKY_BLUE,
    "failed": figure_style.VERMILLION,
    "abandoned": figure_style.GREY,
    "cancelled": figure_style.GREY,
}


# --- groups of tasks ---------------------------------------------------------------------------


class TaskGroup(NamedTuple):
    """Consecutive tasks that a view shows as one cell, or a single task.

    Attributes
    ----------
    first_task : int
        The number of the first task.
    n_tasks : int
        The number of tasks.
    state : str
        "failed" if a task has failed, and otherwise the most common state.
    is_late : bool
        Whether a task is late.
    is_decoded : bool
        Whether the result of a task was decoded from other results.
    """

    first_task: int
    n_tasks: int
    state: str
    is_late: bool
    is_decoded: bool


def group_tasks(snapshot: MapSnapshot, max_groups: int) -> list[TaskGroup]:
    """Divide the tasks of a map into at most `max_groups` groups, which have one task each if possible."""
    n_tasks = len(snapshot.states)
    group_size = max(1, -(-n_tasks // max(1, max_groups)))
    groups_with_decoded_blocks = {block // group_size for block in snapshot.decoded_blocks}
    groups = []
    for first_task in range(0, n_tasks, group_size):
        letters = snapshot.states[first_task : first_task + group_size]
        state = STATE_BY_LETTER[letters.lower()] if group_size == 1 else _choose_state(letters)
        is_decoded = first_task // group_size in groups_with_decoded_blocks
        groups.append(TaskGroup(first_task, len(letters), state, not letters.islower(), is_decoded))
    return groups


def _choose_state(letters: str) -> str:
    """Return the state that a group of tasks is shown in, which is the one that needs the most attention."""
    if "f" in letters or "F" in letters:
        return "failed"
    return STATE_BY_LETTER[Counter(letters.lower()).most_common(1)[0][0]]


def count_tasks_by_state(snapshot: MapSnapshot) -> dict[str, int]:
    """Return the number of tasks in each state that occurs. The last entries are late and decoded tasks.

    >>> count_tasks_by_state(MapSnapshot(1, "f", "code", "pool", 4, 3, 3, 2, 1.0, True, "aaRq"))
    {'arrived': 2, 'running': 1, 'queued': 1, 'late': 1}
    """
    counts = Counter(snapshot.states.lower())
    n_late = sum(map(str.isupper, snapshot.states))
    counts_by_state = {state: counts[letter] for letter, state in _LETTERS_IN_LEGEND_ORDER}
    counts_by_state |= {LATE: n_late, DECODED: len(snapshot.decoded_blocks)}
    return {state: count for state, count in counts_by_state.items() if count}


_LETTERS_IN_LEGEND_ORDER = sorted(STATE_BY_LETTER.items(), key=lambda item: list(STATE_COLORS).index(item[1]))


# --- text --------------------------------------------------------------------------------------


def make_printable(text: str) -> str:
    r"""Replace line breaks and control characters by spaces, so that terminals and XML accept the text.

    >>> make_printable("no \x1b[31mroute\n")
    'no  [31mroute'
    """
    return "".join(character if character.isprintable() else " " for character in text).strip()


def format_seconds(seconds: float) -> str:
    """Format a duration, such as "0.31 s", "12.4 s" or "3 min 05 s".

    >>> [format_seconds(seconds) for seconds in (0.314, 12.44, 185.2, 7500.0)]
    ['0.31 s', '12.4 s', '3 min 05 s', '2 h 05 min']
    """
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return (
        f"{minutes} min {seconds % 60:02.0f} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def format_dollars(dollars: float) -> str:
    """Format an amount with two significant digits, such as "$0.0012" or "$12.30"."""
    return f"${dollars:.2f}" if dollars >= 0.1 or not dollars else f"${dollars:.2g}"


def format_map_title(snapshot: MapSnapshot) -> str:
    """Return the title of a map, such as "map 3: negative"."""
    name = make_printable(snapshot.name)
    return f"map {snapshot.map_id}: {name}" if name else f"map {snapshot.map_id}"


def format_map_line(snapshot: MapSnapshot) -> str:
    """Describe a map in one line, such as "map 3: 24 needed, 24 arrived, done in 0.31 s"."""
    return f"map {snapshot.map_id}: {snapshot.status_text}"


def list_map_facts(snapshot: MapSnapshot) -> list[str]:
    """Return the time, moment of sufficient results, throughput and cost of a map as short texts.

    The status text already contains the duration of a finished map, and the moment of a running one.
    """
    facts = []
    if snapshot.is_running:
        facts.append(f"{format_seconds(snapshot.elapsed_seconds)} elapsed")
    elif snapshot.sufficed_at is not None:
        facts.append(f"results sufficed after {format_seconds(snapshot.sufficed_at)}")
    facts.append(f"{snapshot.results_per_second:,.4g} results/s")
    if snapshot.cost_dollars is not None:
        so_far = " so far" if snapshot.is_running else ""
        facts.append(f"{format_dollars(snapshot.cost_dollars)}{so_far}")
    return facts


def format_failure(failure: FailureSnapshot) -> str:
    """Describe the failure of a task in one line."""
    place = f" on {make_printable(failure.host)}" if failure.host else ""
    return f"task {failure.task}{place}: {make_printable(failure.message)}"


def describe_hidden_failures(snapshot: MapSnapshot, n_shown: int) -> str:
    """Describe how many tasks have failed in addition to the `n_shown` that a view shows, or return ""."""
    n_hidden = snapshot.n_failed_tasks - n_shown
    return f"{n_hidden} more {'task has' if n_hidden == 1 else 'tasks have'} failed" if n_hidden > 0 else ""


def format_iteration_line(iteration: IterationSnapshot) -> str:
    """Describe a fit in one line: the step, objective, duration of a step, and products."""
    parts = [f"{make_printable(iteration.name)}: step {iteration.n_steps}"]
    if iteration.objective is not None:
        parts.append(f"objective {iteration.objective:.6g}")
    if iteration.gradient_norm is not None:
        parts.append(f"optimality {iteration.gradient_norm:.1e}")
    if iteration.seconds_per_step is not None:
        parts.append(f"{1e3 * iteration.seconds_per_step:.3g} ms per step")
    parts.append(f"{iteration.n_products} products")
    if not iteration.is_running:
        parts.append(f"done in {format_seconds(iteration.elapsed_seconds)}")
    return ", ".join(parts)


def describe_workers(workers: Sequence[WorkerSnapshot]) -> str:
    """Count workers by state, as in "4 workers: 3 working, 1 idle"."""
    counts = Counter(worker.state for worker in workers)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), reverse=True))
    return f"{len(workers)} {'worker' if len(workers) == 1 else 'workers'}: {states}" if workers else ""


def format_program_title(snapshot: ProgramSnapshot) -> str:
    """Name a program, its process and its machine."""
    return f"{make_printable(snapshot.name)} (process {snapshot.pid} on {make_printable(snapshot.host)})"


def list_program_facts(snapshot: ProgramSnapshot) -> list[str]:
    """Return the numbers of running and finished maps, and the throughput, as short texts."""
    n_running = sum(one_map.is_running for one_map in snapshot.maps)
    facts = [f"{n_running} running", f"{snapshot.n_finished_maps} finished"]
    if snapshot.results_per_second:
        facts.append(f"{snapshot.results_per_second:,.4g} results/s")
    return facts


def format_program_line(snapshot: ProgramSnapshot) -> str:
    """Describe the program's fit, or its running or latest map, in one line."""
    running_iterations = [iteration for iteration in snapshot.iterations if iteration.is_running]
    if running_iterations:
        return format_iteration_line(running_iterations[-1])
    maps = select_maps(snapshot, 4)
    if maps:
        return "; ".join(map(format_map_line, maps))
    if snapshot.iterations:
        return format_iteration_line(snapshot.iterations[-1])
    return describe_workers(snapshot.workers) or "no map has started"


def select_maps(snapshot: ProgramSnapshot, max_maps: int) -> tuple[MapSnapshot, ...]:
    """Return the latest running maps, or the latest finished map if none is running, oldest first."""
    running_maps = tuple(one_map for one_map in snapshot.maps if one_map.is_running)
    return running_maps[-max_maps:] or snapshot.maps[-1:]


# --- SVG ---------------------------------------------------------------------------------------

WIDTH = 720  # The width of an SVG in pixels.
MARGIN = 16
CONTENT_WIDTH = WIDTH - 2 * MARGIN
MAX_SVG_MAPS = 4  # A program shows at most this many maps.
MAX_SVG_WORKERS = 16
MAX_SVG_ITERATIONS = 3
MAX_SVG_FAILURES = 3
MAX_SVG_LENGTH = 58_000  # Characters of an SVG. Most characters take one byte.
MIN_SQUARES = 50  # Fewer squares would not make an SVG much shorter.
# The maximum number of squares of all maps. If there are more tasks, a square shows several of them.
MAX_SQUARES = 1000
# The maximum number of rows of all timelines. A timeline that counts tasks has as many points in time.
MAX_TIMELINE_ROWS = 120
MAX_TIMELINE_HEIGHT = 120.0
TIMELINE_AREA_HEIGHT = 80.0
# The pitch of squares in pixels, and up to how many squares it is used for.
SQUARE_PITCHES = ((18, 152), (12, 570), (9, MAX_SQUARES))
LINE_HEIGHT = 18
CHARACTER_WIDTH = 6.8  # estimate for the 12 px font, to place the entries of the legend
MAX_LINE_LENGTH = 106  # characters; longer lines are cut off

SECONDARY_COLOR = "#595959"  # of less important text
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', sans-serif\""
# Attributes give the colours on a light page. Where the style sheet is supported, it changes them on a dark
# page. The class names are unique, because the style sheet of an inline SVG applies to the whole page.
DARK_STYLE = (
    "<style>@media (prefers-color-scheme: dark){"
    ".polarmap-card{fill:#1c1c1c}.polarmap-text{fill:#e8e8e8}.polarmap-note{fill:#b4b4b4}"
    ".polarmap-late{stroke:#f2f2f2}.polarmap-line{stroke:#d0d0d0}.polarmap-queued{fill:#505050}}</style>"
)


def render_map_svg(snapshot: MapSnapshot) -> str:
    """Draw a map as static SVG.

    The SVG shows the status, a square for each task (or group of tasks), a legend with numbers of tasks, a
    timeline that tells queued from running tasks, and the latest failures.

    Parameters
    ----------
    snapshot : MapSnapshot
        The map.

    Returns
    -------
    str
        An `svg` element of at most 60 kB, for any number of tasks.
    """
    return _limit_size(lambda max_squares: _render_map(snapshot, max_squares))


def render_program_svg(snapshot: ProgramSnapshot) -> str:
    """Draw a program as static SVG: its fits, its running maps or else its latest map, and its workers.

    Parameters
    ----------
    snapshot : ProgramSnapshot
        The program.

    Returns
    -------
    str
        An `svg` element of at most 60 kB.
    """
    return _limit_size(lambda max_squares: _render_program(snapshot, max_squares))


def _limit_size(render: Callable[[int], str]) -> str:
    """Call `render` with the number of squares, and with fewer if the result is too long."""
    max_squares, text = MAX_SQUARES, render(MAX_SQUARES)
    while len(text) > MAX_SVG_LENGTH and max_squares > MIN_SQUARES:
        max_squares //= 2
        text = render(max_squares)
    return text


def _render_map(snapshot: MapSnapshot, max_squares: int) -> str:
    canvas = _Canvas()
    _draw_map(canvas, snapshot, max_squares, MAX_TIMELINE_ROWS)
    return canvas.render(format_map_line(snapshot), _describe_map(snapshot))


def _render_program(snapshot: ProgramSnapshot, max_squares: int) -> str:
    canvas, maps = _Canvas(), select_maps(snapshot, MAX_SVG_MAPS)
    for iteration in snapshot.iterations[-MAX_SVG_ITERATIONS:]:
        canvas.add_line(format_iteration_line(iteration))
    for one_map in maps:
        canvas.add_gap()
        _draw_map(canvas, one_map, max_squares // len(maps), MAX_TIMELINE_ROWS // len(maps))
    if snapshot.workers:
        canvas.add_gap()
        _draw_workers(canvas, snapshot.workers)
    if not (snapshot.iterations or maps or snapshot.workers):
        canvas.add_line("No map has started.")
    return canvas.render(format_program_line(snapshot), " ".join(map(_describe_map, maps)))


def _describe_map(snapshot: MapSnapshot) -> str:
    """Describe a map for screen readers."""
    counts = ", ".join(f"{count} {state}" for state, count in count_tasks_by_state(snapshot).items())
    facts = ", ".join(list_map_facts(snapshot))
    return f"{format_map_title(snapshot)}. {snapshot.n} tasks: {counts}. {facts}."


class _Canvas:
    """Collects SVG elements from top to bottom. `y` is the position below the last element."""

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
        """Append a line of text."""
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
# Shapes differ too, so that states are distinguishable without colours.
_STATE_ATTRIBUTES = {
    **{state: f'fill="{color}"' for state, color in STATE_COLORS.items()},
    "queued": f'class="polarmap-queued" fill="{figure_style.LIGHT_GREY}" stroke="{figure_style.GREY}"',
    "held back": f'fill="none" stroke="{figure_style.GREY}" stroke-dasharray="1.5 1.5"',
    "cancelled": f'fill="none" stroke="{figure_style.GREY}"',
}


def _draw_squares(canvas: _Canvas, groups: Sequence[TaskGroup], n_data_tasks: int) -> None:
    """Draw a square for each group of tasks. A gap separates data tasks from parity tasks."""
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
    """Yield the x and y offsets of all squares.

    If there is more than one row, parity tasks begin in a new row.
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
_MARK_ATTRIBUTES = {_LATE_STROKE, _DECODED_ATTRIBUTES, _CROSS_ATTRIBUTES}  # drawn on top of the squares


def _trace_group(group: TaskGroup, x: float, y: float, size: float) -> Iterator[tuple[str, str]]:
    """Yield attributes and path data of a square and of the marks on it."""
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
    """Draw the number of tasks in each state that occurs, next to a square in the style of the state."""
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


class TaskTimes(NamedTuple):
    """When a task was queued and when it ran, in seconds since the start of its map.

    The task was queued from `queued_at` to `run_at`, and ran from `run_at` to `ended_at`. Each interval may
    be empty.
    """

    task: int
    queued_at: float
    run_at: float
    ended_at: float


def compute_task_times(snapshot: MapSnapshot) -> list[TaskTimes]:
    """Return the times of all tasks that were submitted, in the order of the tasks.

    If it is unknown when a task started, it counts as running from its submission if it has returned or
    is running, and as queued otherwise.
    """
    end = snapshot.elapsed_seconds
    times = []
    for task, submitted_at in enumerate(snapshot.submitted):
        if submitted_at is None:
            continue
        started_at, arrived_at = snapshot.started[task], snapshot.arrived[task]
        state = STATE_BY_LETTER[snapshot.states[task].lower()]
        if started_at is None and arrived_at is None and state in ("queued", "cancelled"):
            times.append(TaskTimes(task, submitted_at, end, end))
        else:
            run_at = submitted_at if started_at is None else max(submitted_at, started_at)
            times.append(TaskTimes(task, submitted_at, run_at, end if arrived_at is None else arrived_at))
    return times


def get_timeline_end(snapshot: MapSnapshot) -> float:
    """Return the duration of a map's timeline in seconds, which is above 0."""
    arrivals = [arrived_at for arrived_at in snapshot.arrived if arrived_at is not None]
    return max([snapshot.elapsed_seconds, *arrivals]) or 1.0


class TaskCounts(NamedTuple):
    """The numbers of tasks that are queued, running or have returned, at equidistant times."""

    queued: list[int]
    running: list[int]
    returned: list[int]


def count_tasks_over_time(snapshot: MapSnapshot, n_columns: int) -> TaskCounts:
    """Count the tasks that are queued, running or have returned in each of `n_columns` equal time steps."""
    times, end = compute_task_times(snapshot), get_timeline_end(snapshot)
    edges = [end * (column + 0.5) / n_columns for column in range(n_columns)]
    n_submitted = _count_up_to([task.queued_at for task in times], edges)
    n_started = _count_up_to([task.run_at for task in times if task.run_at < task.ended_at], edges)
    ended_at = [task.ended_at for task in times if task.run_at < task.ended_at]
    n_ended = _count_up_to(ended_at, edges)
    arrived_at = [arrival for arrival in snapshot.arrived if arrival is not None]
    return TaskCounts(
        [submitted - started for submitted, started in zip(n_submitted, n_started)],
        [started - ended for started, ended in zip(n_started, n_ended)],
        _count_up_to(arrived_at, edges),
    )


def _count_up_to(times: list[float], edges: list[float]) -> list[int]:
    """Return, for each edge, the number of times that are not later."""
    ordered = sorted(times)
    return [bisect_right(ordered, edge) for edge in edges]


def _draw_timeline(canvas: _Canvas, snapshot: MapSnapshot, max_rows: int) -> None:
    """Draw when tasks were queued and when they ran, and a line at the moment when the results sufficed."""
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
    """Draw a row for each task: a thin pale line while it was queued, and a bar while it ran."""
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
    """Draw the numbers of returned, running and queued tasks over time, stacked on each other."""
    pixels_per_task = TIMELINE_AREA_HEIGHT / max(1, snapshot.n)
    counts = count_tasks_over_time(snapshot, n_columns)
    bottom_y = [canvas.y + TIMELINE_AREA_HEIGHT] * n_columns
    for state, layer in (
        ("arrived", counts.returned),
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
    """Draw the outline of an area whose upper and lower edges are step functions."""
    step = CONTENT_WIDTH / len(top_y)
    forward = "".join(f"V{y:.1f}H{MARGIN + step * (column + 1):.1f}" for column, y in enumerate(top_y))
    backward = "".join(
        f"V{bottom_y[column]:.1f}H{MARGIN + step * column:.1f}" for column in reversed(range(len(bottom_y)))
    )
    return f"M{MARGIN} {bottom_y[0]:.1f}{forward}{backward}z"


def _draw_workers(canvas: _Canvas, workers: Sequence[WorkerSnapshot]) -> None:
    """List the workers: who they are, what they do, and for how long."""
    canvas.add_line(describe_workers(workers), is_bold=True)
    for worker in workers[:MAX_SVG_WORKERS]:
        columns = describe_worker(worker)
        for text, x in zip(columns, accumulate((110, 150, 190, 90), initial=float(MARGIN))):
            canvas.add_text(x, canvas.y + 13, text)
        canvas.y += LINE_HEIGHT
    if len(workers) > MAX_SVG_WORKERS:
        canvas.add_line(f"and {len(workers) - MAX_SVG_WORKERS} more", is_note=True)


def describe_worker(worker: WorkerSnapshot) -> tuple[str, str, str, str, str]:
    """Return a worker's process, machine, task and its age, memory, and processor time. Unknown is a dash."""
    task = worker.state if worker.task is None else f"task {worker.task}"
    if worker.state == "abandoned" and worker.task is not None:
        task += " abandoned"
    return (
        f"{worker.worker_id}: {'—' if worker.pid is None else worker.pid}",
        make_printable(worker.host) or "this machine",
        f"{task}, {format_seconds(worker.state_seconds)}",
        "—" if worker.memory_bytes is None else f"{worker.memory_bytes / 1e6:,.0f} MB",
        "—" if worker.cpu_seconds is None else f"{format_seconds(worker.cpu_seconds)} CPU",
    )
