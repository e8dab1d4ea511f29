"""Show the maps of a program in a terminal, updated in place, or as plain lines if there is no terminal.

`TerminalView` shows the running program, and `polarmap top` uses it for another one. The words come from
`descriptions`, the groups of tasks from `task_groups`, the times from `task_times`, and the thread that
updates a view from `refreshing`. rich (an extra) is imported when a view starts.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from polarmap.live.descriptions import (
    describe_hidden_failures,
    describe_workers,
    format_executor_line,
    format_failure,
    format_iteration_line,
    format_map_line,
    format_map_start,
    format_map_title,
    format_program_title,
    format_seconds,
    format_worker_columns,
    list_map_facts,
    list_program_facts,
    make_printable,
    select_executors,
    select_maps,
)
from polarmap.live.refreshing import Refresher, SnapshotSource, ViewScope
from polarmap.live.snapshots import (
    STATE_BY_LETTER,
    STATE_LETTERS,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
)
from polarmap.live.task_groups import (
    DECODED,
    LATE,
    STATE_COLORS,
    TaskGroup,
    count_tasks_by_state,
    group_tasks,
)
from polarmap.live.task_times import compute_task_times, count_tasks_over_time, get_timeline_end
from polarmap.optional import require_extra
from polarmap.plot import figure_style

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

MAX_FINAL_LINES = 10  # After a view is closed, at most this many lines remain on the screen.
MAX_FAILURE_LINES = 3
MAX_ITERATION_LINES = 3
MAX_EXECUTOR_LINES = 3
# A timeline shows a row for each task if a map has at most this many tasks. Otherwise, it shows how many
# tasks were running at each time.
MAX_BAR_ROWS = 32
MIN_HOST_WIDTH = 8  # the minimum number of characters shown of the name of a worker's machine
MIN_MAP_LINES = 6  # A second or further map is shown only if each map can have at least this many lines.

DECODED_LETTER = "d"  # shown instead of the state's letter if the task's result was decoded
# The symbols that represent tasks. Most states differ in symbol as well as in colour. A task that is late or
# whose result was decoded has another symbol.
STATE_SYMBOLS = {
    "held back": "·",
    "queued": "□",
    "running": "■",
    "arrived": "■",
    "surplus": "■",
    "failed": "×",
    "cancelled": "○",
    "abandoned": "▪",
    LATE: "▲",
    DECODED: "◆",
}
LEVELS = " ▁▂▃▄▅▆▇"  # bars of increasing height; a full block would touch the row above


# --- lines of text -----------------------------------------------------------------------------


def render_program(snapshot: ProgramSnapshot, width: int, max_lines: int, use_symbols: bool = True) -> Text:
    """Format a program for a terminal.

    The running maps are shown, or the latest map if none is running. Timelines and workers are shown only if
    there is enough space.

    Parameters
    ----------
    snapshot : ProgramSnapshot
        The program.
    width : int
        The number of columns. Longer lines are cut off.
    max_lines : int
        The maximum number of lines.
    use_symbols : bool
        Whether to show tasks as coloured symbols. If False, each task is shown as the letter of its state,
        which is legible without colours.

    Returns
    -------
    rich.text.Text
        The lines, which rich can print.
    """
    lines = [_render_header(snapshot, width), *_render_iterations_and_calls(snapshot)]
    n_free = max_lines - len(lines)
    worker_lines = _render_workers(snapshot.workers, width, max(2, n_free // 3)) if n_free >= 12 else []
    maps = select_maps(snapshot, max(1, (n_free - len(worker_lines)) // MIN_MAP_LINES))
    n_free -= len(worker_lines)
    for n_later_maps, one_map in zip(reversed(range(len(maps))), maps):
        map_lines = _render_map(one_map, width, n_free // (n_later_maps + 1), use_symbols)
        lines += map_lines
        n_free -= len(map_lines)
    if not (maps or snapshot.iterations or snapshot.executors):
        lines.append(_make_text("  no map has started", "dim"))
    return _join_lines([*lines, *worker_lines][:max_lines], width)


def render_final_state(snapshot: ProgramSnapshot, width: int, use_symbols: bool = True) -> Text:
    """Format the lines that remain on the terminal after a view is closed.

    The lines show the fits and calls, the latest map, and the number of finished maps.
    """
    lines = _render_iterations_and_calls(snapshot)
    n_maps = sum(not one_map.is_running for one_map in snapshot.maps)
    if snapshot.maps and not snapshot.iterations:
        n_lines = MAX_FINAL_LINES - 1 - len(lines)
        lines += _render_map(snapshot.maps[-1], width, n_lines, use_symbols, has_timeline=False)
    if max(n_maps, snapshot.n_finished_maps) > 1:
        lines.append(_make_text(f"{max(n_maps, snapshot.n_finished_maps)} maps finished", "dim"))
    return _join_lines(lines, width)


def _make_text(text: str = "", style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style, end="", no_wrap=True)


def _join_lines(lines: Iterable[Text], width: int) -> Text:
    """Join lines to a single text. Lines with more than `width` columns are cut off."""
    shortened = []
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        shortened.append(line)
    joined = _make_text("\n").join(shortened)
    joined.no_wrap, joined.end = True, "\n"
    return joined


def _render_header(snapshot: ProgramSnapshot, width: int) -> Text:
    """Format the first line of a view: the name of the program, the numbers of maps, and the throughput.

    If the line would be longer than `width` columns, it contains only the name.
    """
    line = _make_text(format_program_title(snapshot), "bold")
    facts = "  ".join(list_program_facts(snapshot))
    if line.cell_len + len(facts) + 2 <= width:
        line.append(f"  {facts}", "not bold dim")
    return line


def _render_iterations_and_calls(snapshot: ProgramSnapshot) -> list[Text]:
    lines = [*map(format_iteration_line, snapshot.iterations[-MAX_ITERATION_LINES:])]
    lines += map(format_executor_line, select_executors(snapshot, MAX_EXECUTOR_LINES))
    return [*map(_make_text, lines)]


# --- maps --------------------------------------------------------------------------------------


def _render_map(
    snapshot: MapSnapshot, width: int, max_lines: int, use_symbols: bool, has_timeline: bool = True
) -> list[Text]:
    """Format a map in at most `max_lines` lines.

    The timeline comes last, and is shown only if there is enough space.
    """
    title = _make_text(format_map_title(snapshot), "bold")
    title.append(f"  {make_printable(snapshot.code)}, {make_printable(snapshot.executor)}", "not bold dim")
    status_style = "bold red" if snapshot.error else "green" if not snapshot.is_running else ""
    status = _make_text(f"  {snapshot.status_text}", status_style)
    facts = _make_text(f"  {', '.join(list_map_facts(snapshot))}", "dim")
    below = [facts, *_render_failures(snapshot)]
    max_cell_lines = max(1, min(max_lines - 3 - len(below), max(3, max_lines // 2)))
    cells, tasks_per_cell = _render_task_symbols(snapshot, width - 2, max_cell_lines, use_symbols)
    legend = _render_legend(snapshot, width, use_symbols, tasks_per_cell)
    lines = [title, status, *cells, *legend, *below]
    if has_timeline:
        lines += _render_timeline(snapshot, width - 2, max_lines - len(lines))
    return lines[: max(1, max_lines)]


def _get_cell(group: TaskGroup, use_symbols: bool) -> tuple[str, str]:
    """Return the character and the colour of a task or a group of tasks."""
    if not use_symbols:
        letter = DECODED_LETTER if group.is_decoded else STATE_LETTERS[group.state]
        return letter.upper() if group.is_late else letter, ""
    if group.is_decoded:
        return STATE_SYMBOLS[DECODED], figure_style.GREEN
    if group.is_late and group.state != "failed":
        return STATE_SYMBOLS[LATE], STATE_COLORS[group.state]
    return STATE_SYMBOLS[group.state], _get_color(group.state)


def _get_color(state: str) -> str:
    """Return the colour in which a terminal shows a task state.

    Queued tasks are darker than in other views, because light grey is hard to see on a white terminal.
    """
    return figure_style.GREY if state == "queued" else STATE_COLORS.get(state, "")


def _render_task_symbols(
    snapshot: MapSnapshot, width: int, max_lines: int, use_symbols: bool
) -> tuple[list[Text], int]:
    """Format a symbol for each task, or for each group of tasks if there are too many.

    Return the lines, and the number of tasks that each symbol represents. If there is enough space, the
    symbols are separated by spaces.
    """
    groups = group_tasks(snapshot, max(1, width * max_lines))
    separator = " " if 2 * len(groups) <= width else ""
    per_line = max(1, width // (1 + len(separator)))
    lines = []
    for first in range(0, len(groups), per_line):
        line, run, run_color = _make_text("  "), "", ""
        for group in groups[first : first + per_line]:
            symbol, color = _get_cell(group, use_symbols)
            if color != run_color:
                line.append(run, run_color)
                run, run_color = "", color
            run += symbol + separator
        line.append(run.rstrip(), run_color)
        lines.append(line)
    return lines, max((group.n_tasks for group in groups), default=1)


def _render_legend(snapshot: MapSnapshot, width: int, use_symbols: bool, tasks_per_cell: int) -> list[Text]:
    """Format a legend, which lists the symbol or letter of each state with the number of tasks in it."""
    letters = STATE_LETTERS | {LATE: "upper case", DECODED: DECODED_LETTER}
    entries = []
    for state, count in count_tasks_by_state(snapshot).items():
        entry = _make_text(f" {count:,} {state}")
        if use_symbols:
            color = figure_style.GREEN if state == DECODED else _get_color(state)
            entry = _make_text().append(STATE_SYMBOLS[state], color).append_text(entry)
        else:
            entry = _make_text(f"{letters[state]}:").append_text(entry)
        entries.append(entry)
    if tasks_per_cell > 1:
        entries.append(_make_text(f"({tasks_per_cell} tasks per symbol)", "dim"))
    return _wrap_entries(entries, width)


def _wrap_entries(entries: Iterable[Text], width: int) -> list[Text]:
    """Arrange short texts in lines of at most `width` columns. No text is divided between two lines."""
    lines = [_make_text(" ")]
    for entry in entries:
        if lines[-1].cell_len + 2 + entry.cell_len > width and lines[-1].cell_len > 1:
            lines.append(_make_text(" "))
        lines[-1].append(" ").append_text(entry).append(" ")
    return lines


def _render_failures(snapshot: MapSnapshot) -> list[Text]:
    lines = [_make_text(f"  The map failed: {make_printable(snapshot.error)}")] if snapshot.error else []
    failures = snapshot.failures[-MAX_FAILURE_LINES:]
    for failure in failures:
        line = _make_text("  × ", figure_style.VERMILLION)
        lines.append(line.append(format_failure(failure), "default"))
    hidden_text = describe_hidden_failures(snapshot, len(failures))
    return [*lines, _make_text(f"    {hidden_text}", "dim")] if hidden_text else lines


# --- timeline ----------------------------------------------------------------------------------


def _render_timeline(snapshot: MapSnapshot, width: int, max_lines: int) -> list[Text]:
    """Format a timeline that shows when the tasks of a map were queued and when they ran.

    If there are enough lines, each task has a row. Otherwise, there is a row for each of the numbers of
    queued, running, returned and failed tasks. If `max_lines` is less than 4, return no lines.
    """
    if max_lines < 4 or not compute_task_times(snapshot):
        return []
    label_width = 9
    n_columns = max(10, width - label_width)
    if snapshot.n <= min(MAX_BAR_ROWS, max_lines - 1):
        lines = _render_bars(snapshot, n_columns, label_width)
    else:
        lines = _render_counts(snapshot, n_columns, label_width)
    return [*lines[: max_lines - 1], _render_time_axis(snapshot, n_columns, label_width)]


def _render_bars(snapshot: MapSnapshot, n_columns: int, label_width: int) -> list[Text]:
    """Format a row for each submitted task: dots while it was queued, and a bar while it ran."""
    columns_per_second = n_columns / get_timeline_end(snapshot)
    lines = []
    for times in compute_task_times(snapshot):
        queued, run, end = (min(n_columns, int(columns_per_second * moment)) for moment in times[1:])
        state = STATE_BY_LETTER[snapshot.states[times.task].lower()]
        has_run = times.ended_at > times.run_at
        run = min(run, n_columns - 1) if has_run else run
        line = _make_text(f"  {times.task:>{label_width - 1}} {' ' * queued}")
        line.append("·" * (run - queued), figure_style.GREY)
        line.append("━" * (max(1, end - run) if has_run else 0), _get_color(state))
        lines.append(line)
    return lines


def _render_counts(snapshot: MapSnapshot, n_columns: int, label_width: int) -> list[Text]:
    """Format the numbers of queued, running, returned and failed tasks over time, each as a row of bars.

    Each bar is a character whose height represents the number of tasks at one point in time.
    """
    counts = count_tasks_over_time(snapshot, n_columns)
    rows = [("queued", counts.queued), ("running", counts.running), ("arrived", counts.returned)]
    if any(counts.failed):
        rows.append(("failed", counts.failed))
    max_level = len(LEVELS) - 1
    lines = []
    for state, values in rows:
        maximum = max(values) or 1
        bars = "".join(LEVELS[-(-value * max_level // maximum)] for value in values)
        lines.append(_make_text(f"  {state:<{label_width}}").append(bars, _get_color(state)))
    return lines


def _render_time_axis(snapshot: MapSnapshot, n_columns: int, label_width: int) -> Text:
    """Format the time axis of a timeline.

    A mark shows the time when enough results had arrived to compute all others.
    """
    end = get_timeline_end(snapshot)
    end_text = format_seconds(end)
    axis = f"0 s{' ' * (n_columns - 3 - len(end_text))}{end_text}"
    if snapshot.sufficed_at is not None:
        column = min(n_columns - 1, int(n_columns * snapshot.sufficed_at / end))
        label = "sufficed ▲" if column >= 14 else "▲ sufficed"
        first = column - len(label) + 1 if column >= 14 else column
        axis = f"{axis[:first]}{label}{axis[first + len(label) :]}"[:n_columns]
    return _make_text(f"  {'':<{label_width}}{axis}", "dim")


# --- workers -----------------------------------------------------------------------------------


def _render_workers(workers: Sequence[WorkerSnapshot], width: int, max_lines: int) -> list[Text]:
    """Format a line with the number of workers in each state, and below it a line for each worker."""
    if not workers:
        return []
    n_shown = len(workers) if len(workers) < max_lines else max_lines - 2
    # Show idle workers last, because there may not be space for all workers.
    shown = sorted(workers, key=lambda worker: worker.state == "idle")[: max(0, n_shown)]
    rows = [format_worker_columns(worker) for worker in shown]
    column_widths = _fit_columns([max(map(len, column)) for column in zip(*rows)], width)
    lines = [_make_text(describe_workers(workers), "bold")]
    for worker, row in zip(shown, rows):
        cells = [f"{cell[:cell_width]:<{cell_width}}" for cell, cell_width in zip(row, column_widths)]
        lines.append(_make_text(f"  {'  '.join(cells)}", "dim" if worker.state == "idle" else ""))
    if len(shown) < len(workers):
        lines.append(_make_text(f"  and {len(workers) - len(shown)} more", "dim"))
    return lines[:max_lines]


def _fit_columns(column_widths: list[int], width: int) -> list[int]:
    """Return the widths of the table columns that fit into `width` characters.

    If the table is too wide, the names of machines are shortened. If this is not enough, the last columns are
    left out.
    """
    for n_columns in range(len(column_widths), 2, -1):
        fitted = column_widths[:n_columns]
        n_missing = max(0, sum(fitted) + 2 * n_columns - width)
        host_width = fitted[1] - n_missing
        if not n_missing or host_width >= MIN_HOST_WIDTH:
            return [fitted[0], host_width, *fitted[2:]]
    return column_widths[:3]


# --- updates -----------------------------------------------------------------------------------


class TerminalView:
    """Shows the maps of a program in a terminal until it is closed, and then leaves their final state.

    Anything that the program prints in the meantime appears above the view. If the stream is not a terminal,
    the view writes a line for each map that starts or finishes.

    Parameters
    ----------
    take_snapshot : SnapshotSource
        Returns the state of the program. Called on the view's thread, and in `start` and `close`.
    stream : text file, optional
        The stream to write to. The default is standard error.
    shows_all : bool
        Whether to show maps that had finished before the view started, too.

    Examples
    --------
    >>> from polarmap.live.hub import LiveHub
    >>> view = TerminalView(LiveHub().take_snapshot)
    >>> view.start()  # doctest: +SKIP
    >>> view.close()
    """

    def __init__(
        self, take_snapshot: SnapshotSource, stream: TextIO | None = None, shows_all: bool = False
    ) -> None:
        self._take_snapshot, self._stream, self._shows_all = take_snapshot, stream, shows_all
        self._scope: ViewScope | None = None
        self._open_screens: list[LiveScreen | PlainLines] = []  # at most one
        self._is_closing = False
        self._refresher = Refresher(self._refresh)

    def start(self) -> None:
        """Start to show the program.

        Raises
        ------
        ImportError
            If rich is not installed. The message says how to install it.
        """
        with require_extra("a live view in a terminal", "rich", "live"):
            import rich.live  # noqa: F401
        stream = sys.stderr if self._stream is None else self._stream
        self._scope = ViewScope(None if self._shows_all else self._take_snapshot(is_final=True))
        self._open_screens.append(LiveScreen(stream) if is_terminal(stream) else PlainLines(stream))
        atexit.register(self.close)  # Otherwise, the cursor would stay hidden if the program exits.
        self._refresher.start()

    def close(self) -> None:
        """Show the final state and end the thread.

        This takes at most a second. If the terminal accepts no output during this time, the final state is
        shown later.
        """
        atexit.unregister(self.close)
        self._is_closing = True
        if self._refresher.close():
            self._show_final_state()

    def _refresh(self) -> bool:
        assert self._scope is not None
        for screen in self._open_screens:
            screen.show(self._scope.select(self._take_snapshot()))
        # If `close` has stopped waiting for this thread, it has not shown the final state. So show it here.
        if self._is_closing:
            self._show_final_state()
        return True

    def _show_final_state(self) -> None:
        """Show the final state, unless it has already been shown."""
        with contextlib.suppress(Exception):  # A closed terminal must not make the map fail.
            while self._open_screens and self._scope is not None:
                screen = self._open_screens.pop()
                screen.close(self._scope.select(self._take_snapshot(is_final=True)))


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal on which lines can be updated in place."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # The stream is closed, or is not a file.
        return False


class PlainLines:
    """Shows a program in a file or pipe, by writing a line for each map that starts or finishes.

    Parameters
    ----------
    stream : text file
        The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started_ids, self._finished_ids = set[int](), set[int]()

    def show(self, snapshot: ProgramSnapshot) -> None:
        """Write a line for each map that has started or finished since the last call."""
        for one_map in snapshot.maps:
            map_id = one_map.map_id
            if one_map.is_running and map_id not in self._started_ids:
                self._write(format_map_start(one_map))
            elif not one_map.is_running and map_id not in self._finished_ids:
                self._finished_ids.add(map_id)
                self._write(format_map_line(one_map))
            self._started_ids.add(map_id)

    def close(self, snapshot: ProgramSnapshot) -> None:
        """Write the lines of maps that are still missing, and a line for each fit and each executor."""
        self.show(snapshot)
        for iteration in snapshot.iterations:
            self._write(format_iteration_line(iteration))
        for executor in snapshot.executors:
            self._write(format_executor_line(executor))

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class LiveScreen:
    """Shows a program in a terminal, in lines that are updated in place.

    Parameters
    ----------
    stream : text file
        A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console: Console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self._live: Live | None = None
        self._use_symbols = can_show_symbols(self._console)

    def show(self, snapshot: ProgramSnapshot) -> None:
        """Replace the lines of the view on the screen by the state of the program in `snapshot`."""
        width, height = self._console.size
        text = render_program(snapshot, width, max(2, height - 1), self._use_symbols)
        if self._live is None:
            self._live = self._start_live()
        self._live.update(text, refresh=True)

    def close(self, snapshot: ProgramSnapshot) -> None:
        """Replace the lines of the view by a few lines that show the final state of the program.

        If the view has not shown anything yet, print one line for each map, fit and executor instead.
        """
        if self._live is None:
            lines = [*map(format_map_line, snapshot.maps)]
            lines += map(format_iteration_line, snapshot.iterations)
            lines += map(format_executor_line, snapshot.executors)
            self._console.print("\n".join(lines), soft_wrap=True)
            return
        self._live.update(render_final_state(snapshot, self._console.width, self._use_symbols))
        self._live.stop()

    def _start_live(self) -> Live:
        """Start a live display of the library rich, which updates lines in place.

        Text that the program prints to the terminal appears above the live display.
        """
        from rich.live import Live

        live = Live(
            console=self._console,
            auto_refresh=False,
            # Do not redirect output to a file, because rich would print it to the terminal.
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )
        live.start()
        _register_fork_handler()
        return live


def can_show_symbols(console: Console) -> bool:
    """Return whether a terminal supports colours and Unicode. Otherwise, views show tasks as letters."""
    return bool(console.color_system and not console.no_color and console.encoding.startswith("utf"))


_has_fork_handler = False


def _register_fork_handler() -> None:
    """Arrange that a forked child process prints directly to the terminal, without the live display.

    Otherwise, the child could inherit a lock that the view holds, and block when it prints.
    """
    global _has_fork_handler
    if not _has_fork_handler and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_restore_streams)
        _has_fork_handler = True


def _restore_streams() -> None:
    """Restore `sys.stdout` and `sys.stderr`, which rich has redirected for its live display."""
    for name in ("stdout", "stderr"):
        original = getattr(getattr(sys, name), "rich_proxied_file", None)
        if original is not None:
            setattr(sys, name, original)
