"""Check what a live view shows in a terminal, and that it never disturbs or delays the program."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from polarmap.live import refreshing
from polarmap.live.refreshing import Refresher
from polarmap.live.snapshots import (
    ExecutorSnapshot,
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
)
from polarmap.live.terminal import (
    PlainLines,
    TerminalView,
    can_show_symbols,
    render_final_state,
    render_program,
)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0

SUBMITTED = (0.0, 0.0, 0.0, 0.0, None)
RUNNING = MapSnapshot(
    *(3, "negative", "rotation code", "processes", 5, 4, 4, 1, 1.0, True, "aRqfh"),
    submitted=SUBMITTED,
    started=(0.1, 0.2, None, 0.3, None),
    ended=(0.6, None, None, None, None),
    next_result_seconds=0.3,
    results_per_second=1.0,
    cost_dollars=0.00123,
    failures=(FailureSnapshot(3, "ValueError: bad\x1b[31m\nrow", "node-7"),),
    n_failed_tasks=3,
)
FINISHED = replace(
    RUNNING,
    states="aaXsc",
    n_arrived=4,
    is_running=False,
    decoded_blocks=(2,),
    ended=(0.6, 0.7, None, 0.9, None),
    sufficed_at=0.9,
    failures=(),
    n_failed_tasks=0,
)
WORKERS = (
    WorkerSnapshot("pool 1", 0, 4711, "", "working", 1, 0.8, 120_000_000, 1.5),
    WorkerSnapshot("pool 1", 1, None, "node-7", "idle", None, 3.0),
)
FIT = IterationSnapshot("Lasso", 3, 0.5, 1e-3, 0.0123, 12, 0.1, True)
CALLS = ExecutorSnapshot("Executor 1", "processes", 200, 120, 4, 1)


def program_of(*maps: MapSnapshot, **values: Any) -> ProgramSnapshot:
    return ProgramSnapshot(7, "fit.py", "node-1", 0.0, maps=maps, **values)


def large_map(n: int) -> MapSnapshot:
    """Return a running map in which the first half has arrived and the rest is queued, except three tasks."""
    states = "a" * (n // 2) + "q" * (n // 2 - 3) + "Rrf"
    started: tuple[float | None, ...] = (0.1,) * (n // 2) + (None,) * (n // 2 - 3) + (0.5,) * 3
    ended: tuple[float | None, ...] = (0.5,) * (n // 2) + (None,) * (n // 2)
    return replace(
        *(RUNNING,), n=n, k=n - 8, states=states, submitted=(0.0,) * n, started=started, ended=ended
    )


def lines_of(text: Text) -> list[str]:
    return text.plain.split("\n")


# --- lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 60, 100])
@pytest.mark.parametrize("max_lines", [2, 3, 5, 8, 13, 24, 60])
@pytest.mark.parametrize(
    "program",
    [
        program_of(),
        program_of(RUNNING, workers=WORKERS * 9, iterations=(FIT,), executors=(CALLS,) * 9),
        program_of(*[replace(RUNNING, map_id=number) for number in range(5)]),
        program_of(large_map(10_000), workers=WORKERS),
    ],
    ids=["empty", "workers", "five maps", "10,000 tasks"],
)
@pytest.mark.parametrize("use_symbols", [True, False])
def test_lines_fit_the_terminal(
    program: ProgramSnapshot, width: int, max_lines: int, use_symbols: bool
) -> None:
    lines = lines_of(render_program(program, width, max_lines, use_symbols))
    assert len(lines) <= max_lines
    assert max(map(len, lines)) <= width


def test_a_running_map_shows_status_tasks_failures_cost_and_workers() -> None:
    program = program_of(RUNNING, workers=WORKERS, iterations=(FIT,), n_finished_maps=2)
    text = render_program(program, 100, 40).plain
    assert "fit.py (process 7 on node-1)  1 running  2 finished" in text
    assert "Lasso: step 3, objective 0.5, optimality 1.0e-03, 12.3 ms per step, 12 products" in text
    assert "map 3: negative  rotation code, processes" in text
    assert "4 needed, 1 arrived, next expected in about 0.3 s" in text
    assert "1.00 s elapsed, 1 results/s, $0.0012 so far" in text
    assert "■ ▲ □ × ·" in text
    assert "■ 1 arrived  ■ 1 running  □ 1 queued  · 1 held back  × 1 failed  ▲ 1 late" in text
    assert "× task 3 on node-7: ValueError: bad [31m row" in text
    assert "2 more tasks have failed" in text
    assert "2 workers: 1 working, 1 idle" in text
    assert re.search(r"0: 4711 +here +task 1, 0.80 s +120 MB +1.50 s CPU", text)
    assert re.search(r"1: — +node-7 +idle, 3.00 s +— +—", text)


def test_calls_of_an_executor_have_one_line() -> None:
    line = "Executor 1: 120 of 200 calls done, 4 running, 1 failed"
    assert lines_of(render_program(program_of(executors=(CALLS,)), 80, 24))[1:] == [line]
    assert lines_of(render_final_state(program_of(FINISHED, executors=(CALLS,)), 80))[0] == line
    stream = io.StringIO()
    PlainLines(stream).close(program_of(executors=(CALLS,)))
    assert stream.getvalue() == line + "\n"


def test_without_colours_tasks_are_letters() -> None:
    text = render_program(program_of(RUNNING), 60, 40, use_symbols=False).plain
    assert "\n  a R q f h\n" in text
    assert "a: 1 arrived  r: 1 running  q: 1 queued  h: 1 held back" in text
    assert "upper case: 1 late" in text
    assert "\n  a a D s c\n" in render_program(program_of(FINISHED), 60, 40, use_symbols=False).plain


def test_bars_of_the_timeline_tell_queued_from_running_tasks() -> None:
    lines = lines_of(render_program(program_of(RUNNING), 61, 40))
    rows = {int(line[:10]): line[11:] for line in lines if re.match(r" {9}\d ", line)}
    assert list(rows) == [0, 1, 2, 3]
    assert re.fullmatch(r"·{5}━{25}", rows[0])
    assert re.fullmatch(r"·{10}━{40}", rows[1])
    assert re.fullmatch(r"·{50}", rows[2])
    assert lines[-1].split() == ["0", "s", "1.00", "s"]


def test_the_bar_of_a_failed_task_ends_at_its_failure() -> None:
    failed = replace(RUNNING, ended=(0.6, None, None, 0.7, None))
    lines = lines_of(render_program(program_of(failed), 61, 40))
    rows = [line[11:] for line in lines if line.startswith(" " * 9 + "3 ")]
    assert rows == ["·" * 15 + "━" * 20]


def test_failed_tasks_are_counted_if_there_is_space() -> None:
    many = large_map(1000)
    program = program_of(replace(many, ended=(*many.ended[:-1], 0.7)))
    lines = lines_of(render_program(program, 60, 40))
    [failed] = [line[11:] for line in lines if line.strip().startswith("failed ")]
    assert (len(failed.lstrip()), failed.strip()) == (15, "▇" * 15)
    n_lines = len(lines) - 1  # Without the row of failed tasks, the axis remains.
    assert lines_of(render_program(program, 60, n_lines))[-1] == lines[-1]


def test_the_timeline_of_many_tasks_counts_them() -> None:
    lines = lines_of(render_program(program_of(large_map(1000)), 60, 40))
    rows = {line.split()[0]: line[11:] for line in lines if line.strip().startswith(("queued ", "running "))}
    assert set(rows) == {"queued", "running"}
    assert rows["queued"].startswith("▇" * 5 + "▄")
    assert rows["running"].startswith("     ▇▇")


def test_the_moment_when_results_sufficed_is_marked() -> None:
    lines = lines_of(render_program(program_of(FINISHED), 61, 40))
    assert "4 needed, 4 arrived, done in 1.00 s" in lines[2]
    assert any("results sufficed after 0.90 s" in line for line in lines)
    assert lines[-1].index("sufficed ▲") + 9 == 11 + 45


def test_many_tasks_are_shown_in_groups() -> None:
    text = render_program(program_of(large_map(10_000)), 80, 30).plain
    assert "tasks per symbol)" in text
    cells = "".join(line.strip() for line in text.split("\n") if set(line) <= set(" ■□▲×") and line.strip())
    assert 100 < len(cells) <= 1000
    assert abs(cells.count("■") - cells.count("□")) < 4
    assert cells.endswith("×")


def test_the_final_state_is_short() -> None:
    program = program_of(replace(RUNNING, map_id=1), FINISHED, n_finished_maps=2)
    lines = lines_of(render_final_state(program, 80))
    assert lines[0].startswith("map 3: negative")
    assert lines[-1] == "2 maps finished"
    assert len(lines) <= 10
    with_fit = lines_of(render_final_state(replace(program, iterations=(FIT,)), 80))
    assert [line[:10] for line in with_fit] == ["Lasso: ste", "2 maps fin"]


def test_a_failed_map_shows_its_error() -> None:
    text = render_program(program_of(replace(FINISHED, error="Too many\nlosses")), 80, 30).plain
    assert "failed after 1.00 s" in text
    assert "The map failed: Too many losses" in text


@pytest.mark.parametrize(
    ("options", "has_symbols"),
    [({}, True), ({"no_color": True}, False), ({"color_system": None}, False)],
)
def test_symbols_need_colours(options: dict[str, Any], has_symbols: bool) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(**{"file": stream, "force_terminal": True, "color_system": "256", **options})
    assert can_show_symbols(console) == has_symbols


# --- plain lines -------------------------------------------------------------------------------


def test_without_a_terminal_each_map_has_a_line_at_its_start_and_end() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    lines.show(program_of(RUNNING))
    lines.show(program_of(RUNNING))
    lines.show(program_of(FINISHED, replace(FINISHED, map_id=4)))
    lines.close(
        program_of(FINISHED, replace(FINISHED, map_id=4), iterations=(replace(FIT, is_running=False),))
    )
    assert stream.getvalue().splitlines() == [
        "map 3, negative: 5 tasks, 4 needed",
        "map 3, negative: 4 needed, 4 arrived, done in 1.00 s",
        "map 4, negative: 4 needed, 4 arrived, done in 1.00 s",
        "Lasso: step 3, objective 0.5, optimality 1.0e-03, 12.3 ms per step, 12 products, done in 0.10 s",
    ]


# --- updates -----------------------------------------------------------------------------------


class Source:
    """A source of snapshots that the test controls."""

    def __init__(self, *maps: MapSnapshot) -> None:
        self.maps = maps
        self.has_called = threading.Semaphore(0)

    def __call__(self, is_final: bool = False) -> ProgramSnapshot:
        self.has_called.release()
        return program_of(*self.maps, n_finished_maps=sum(not one.is_running for one in self.maps))

    def wait_for_calls(self, count: int) -> None:
        for _ in range(count):
            assert self.has_called.acquire(timeout=DEADLINE)


class FakeTerminal(io.StringIO):
    """Text written to a terminal. Writing blocks while `is_stuck` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.can_write = threading.Event()
        self.can_write.set()
        self.has_blocked = threading.Event()

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not self.can_write.is_set():
            self.has_blocked.set()
            assert self.can_write.wait(DEADLINE)
        return super().write(text)


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let views update quickly, whatever the terminal of the tests, and check that all threads end."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Refresher.__init__, "__defaults__", (0.01,))
    yield
    for thread in threading.enumerate():
        if thread.name == "polarmap-view":
            thread.join(DEADLINE)
            assert not thread.is_alive()


def screen_of(output: str) -> list[str]:
    """Return the lines on a terminal after it has received this output."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", output):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b"):
            if token.endswith("A"):
                row -= int(token[2:-1] or 1)
            elif token == "\x1b[2K":
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines]


def test_a_view_leaves_the_final_state_on_the_terminal() -> None:
    stream, source = FakeTerminal(), Source(RUNNING)
    view = TerminalView(source, stream)
    view.start()
    source.wait_for_calls(4)
    source.maps = (FINISHED,)
    view.close()
    view.close()
    output = stream.getvalue()
    assert "next expected in about 0.3 s" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # The cursor is visible again.
    screen = screen_of(output.replace("\n", "\r\n"))
    assert screen[0].startswith("map 3: negative")
    assert screen[1] == "  4 needed, 4 arrived, done in 1.00 s"
    assert len([line for line in screen if line]) <= 8


def test_a_short_map_leaves_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refresher.__init__, "__defaults__", (DEADLINE,))
    stream, source = FakeTerminal(), Source(replace(FINISHED, map_id=2))
    view = TerminalView(source, stream)
    view.start()
    source.maps += (FINISHED,)
    view.close()
    assert stream.getvalue() == "map 3, negative: 4 needed, 4 arrived, done in 1.00 s\n"


def test_a_stuck_terminal_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshing, "CLOSE_TIMEOUT", 0.01)
    stream, source = FakeTerminal(), Source(RUNNING)
    stream.can_write.clear()
    view = TerminalView(source, stream)
    view.start()
    assert stream.has_blocked.wait(DEADLINE)
    source.maps = (FINISHED,)
    view.close()
    assert stream.getvalue() == ""
    stream.can_write.set()  # The terminal continues. Its cursor must become visible again.
    for thread in threading.enumerate():
        if thread.name == "polarmap-view":
            thread.join(DEADLINE)
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")
    assert "done in 1.00 s" in stream.getvalue()


@pytest.mark.parametrize("broken", ["source", "stream"])
def test_a_broken_view_does_not_fail_the_program(broken: str) -> None:
    stream, source = FakeTerminal(), Source(RUNNING)
    view = TerminalView(source, stream)
    view.start()
    if broken == "source":
        source.maps = (None,)  # type: ignore[assignment]
    else:
        stream.close()
    source.wait_for_calls(2)
    view.close()


def test_a_missing_rich_is_reported_before_the_view_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with pytest.raises(ImportError, match=r"a live view in a terminal needs rich: pip install "):
        TerminalView(Source(RUNNING), FakeTerminal()).start()


# --- in a pseudo-terminal ----------------------------------------------------------------------

SCRIPT = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from test_terminal import FINISHED, RUNNING, Source
from polarmap.live.refreshing import Refresher
from polarmap.live.terminal import TerminalView
Refresher.__init__.__defaults__ = (0.01,)
source = Source(RUNNING)
view = TerminalView(source)
view.start()
source.wait_for_calls(3)
for number in range(30):
    source.wait_for_calls(1)
    print("printed line", number)
    print("error line", number, file=sys.stderr)
print("half a line", end=" ", flush=True)
source.wait_for_calls(3)
print("and the rest")
child = os.fork()
if not child:
    print("forked line")
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
source.maps = FINISHED,
if sys.argv[2] == "close":
    view.close()
"""


def read_all(descriptor: int) -> str:
    """Return everything that is written to a pseudo-terminal until all its writers have ended."""
    chunks = []
    with contextlib.suppress(OSError):
        while chunk := os.read(descriptor, 1 << 16):
            chunks.append(chunk)
    return b"".join(chunks).decode()


def run_in_terminal(command: list[str], stdout: Any = None) -> tuple[int, str]:
    """Run a command in a pseudo-terminal, and return its exit code and its output there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower if stdout is None else stdout, stderr=follower
    )
    os.close(follower)
    timer = threading.Timer(DEADLINE, process.kill)
    timer.start()
    try:
        output = read_all(leader)
        return process.wait(), output
    finally:
        timer.cancel()
        os.close(leader)


@pytest.mark.parametrize("end", ["close", "exit"])
def test_output_of_the_program_appears_intact_above_the_view(end: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), end]
    code, output = run_in_terminal(command)
    screen = screen_of(output)
    assert code == 0, output
    lines = [line for number in range(30) for line in (f"printed line {number}", f"error line {number}")]
    assert [line for line in screen if line.startswith(("printed", "error"))] == lines
    assert "half a line and the rest" in "\n".join(screen).replace("\n", " ").replace("  ", " ")
    assert "forked line" in output
    assert "  4 needed, 4 arrived, done in 1.00 s" in screen
    assert sum("needed" in line for line in screen) == 1
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_output_into_a_file_stays_in_the_file(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), "close"]
        code, output = run_in_terminal(command, file)
    written = (tmp_path / "out").read_text()
    assert code == 0, output
    assert [line for line in written.splitlines() if line.startswith("printed")] == [
        f"printed line {number}" for number in range(30)
    ]
    assert "printed line" not in output
    assert "needed" not in written
