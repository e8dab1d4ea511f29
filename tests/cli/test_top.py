"""Check `polarmap top` with visible programs: once, as JSON, live in a pseudo-terminal, and as a page."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from command_lines import COMMAND, ROOT, Run

from polarmap.cli import command_group
from polarmap.live.program_socket import list_visible_programs
from polarmap.live.snapshots import ProgramSnapshot

DEADLINE = 60.0
# A program with a running map, which ends when its standard input is closed.
PROGRAM = """
import sys
from polarmap.live.activation import activate_until_exit
from polarmap.report import Report, TaskReport

states = "arrived", "running", "queued"
times = 0.1, None, None
tasks = tuple(TaskReport(task, states[task], times[task], None, 1) for task in range(3))
report = Report(3, 2, "rotation code", "processes", tasks, 2, seconds=0.5, is_final=False)
activate_until_exit().start_map(1, "negative\\x1b[31m", lambda: report)
print("ready", flush=True)
sys.stdin.read()
"""
TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}


def make_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process, whose temporary folder is the same as that of this test."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


@contextlib.contextmanager
def started_program() -> Iterator[subprocess.Popen[bytes]]:
    """Run a visible program until the end of this context."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=make_environment()
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    with started_program() as process:
        yield process


class Terminal:
    """A command in a pseudo-terminal. Its output is collected on a thread."""

    def __init__(self, *arguments: object) -> None:
        self._leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=make_environment(**TERMINAL),
            start_new_session=True,
        )
        os.close(follower)
        self._output = b""
        self._has_news = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._leader, 1 << 16):
                with self._has_news:
                    self._output += chunk
                    self._has_news.notify_all()

    @property
    def output(self) -> str:
        return self._output.decode(errors="replace")

    def wait_for(self, text: str) -> None:
        with self._has_news:
            assert self._has_news.wait_for(lambda: text in self.output, DEADLINE), self.output

    def type(self, keys: bytes) -> None:
        os.write(self._leader, keys)

    def close(self) -> tuple[int, str]:
        """Wait for the command, and return its exit code and output."""
        try:
            code = self.process.wait(DEADLINE)
            self._thread.join(DEADLINE)
            return code, self.output
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._leader)


def test_without_a_visible_program_the_command_says_how_to_make_one_visible(polarmap: Run) -> None:
    ran = polarmap("top")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    assert all(text in ran.out for text in ('progress="live"', "Pool(dashboard=True)", "POLARMAP_LIVE=1"))
    assert polarmap("top", "--json").json == {"programs": []}


def test_an_unknown_process_id_is_an_error(polarmap: Run, program: subprocess.Popen[bytes]) -> None:
    ran = polarmap("top", 1)
    assert (ran.code, ran.out) == (1, "")
    assert f"no visible program has the process id 1 (visible: {program.pid})" in ran.err


@pytest.mark.parametrize("arguments", [["--once"], []], ids=["once", "no terminal"])
def test_one_program_is_printed_as_plain_text(
    polarmap: Run, program: subprocess.Popen[bytes], arguments: list[str]
) -> None:
    ran = polarmap("top", *arguments)
    assert ran.code == 0, ran.err
    assert f"process {program.pid} on " in ran.out
    assert "map 1: negative [31m  rotation code, processes" in ran.out
    assert "2 needed, 1 arrived" in ran.out
    assert "\n  a r q\n" in ran.out
    assert "\x1b" not in ran.out
    assert polarmap("top", program.pid, *arguments).out.startswith(ran.out[:20])


def test_the_runner_of_click_prints_the_same(program: subprocess.Popen[bytes]) -> None:
    ran = CliRunner().invoke(command_group, ["top", "--once"])
    assert ran.exit_code == 0
    assert "2 needed, 1 arrived" in ran.stdout


def test_json_is_the_snapshot(polarmap: Run, program: subprocess.Popen[bytes]) -> None:
    ran = polarmap("top", program.pid, "--json")
    snapshot = ProgramSnapshot.from_json(ran.out)
    assert snapshot.pid == program.pid
    assert snapshot.maps[0].states == "arq"
    (listed,) = polarmap("top", "--json").json["programs"]
    assert ProgramSnapshot.from_json(json.dumps(listed)).maps[0].states == "arq"


def test_several_programs_are_listed(polarmap: Run, program: subprocess.Popen[bytes]) -> None:
    with started_program() as other:
        ran = polarmap("top")
        assert len(polarmap("top", "--json").json["programs"]) == 2
        assert f"process {other.pid} on " in polarmap("top", other.pid).out
    lines = ran.out.splitlines()
    assert lines[0].split() == ["PID", "PROGRAM", "VISIBLE", "SINCE", "RUNNING", "MAPS"]
    assert [line.split()[0] for line in lines[1:3]] == [str(program.pid), str(other.pid)]
    assert re.search(r"python +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +1$", lines[1])
    assert "polarmap top PID" in lines[3]


@pytest.mark.parametrize("end", ["q", "Ctrl-C"])
def test_a_program_is_shown_live_until_the_user_quits(program: subprocess.Popen[bytes], end: str) -> None:
    terminal = Terminal("top")
    terminal.wait_for("2 needed, 1 arrived")
    terminal.wait_for("1 running")
    if end == "q":
        terminal.type(b"xq")
    else:
        terminal.process.send_signal(signal.SIGINT)
    code, output = terminal.close()
    assert code == 0, output
    assert "Traceback" not in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # The cursor is visible again.
    assert program.poll() is None


def test_the_view_ends_with_the_program() -> None:
    with started_program() as program:
        terminal = Terminal("top", program.pid)
        terminal.wait_for("2 needed, 1 arrived")
    code, output = terminal.close()
    assert code == 0, output
    assert f"(process {program.pid}) has exited or is no longer visible" in output


def test_in_a_terminal_one_print_has_colours(program: subprocess.Popen[bytes]) -> None:
    code, output = Terminal("top", "--once").close()
    assert code == 0, output
    assert "■" in output
    assert "\x1b[38;5;" in output


def test_web_serves_all_programs_until_ctrl_c(program: subprocess.Popen[bytes]) -> None:
    pytest.importorskip("tornado")
    terminal = Terminal("top", "--web")
    terminal.wait_for("Ctrl-C")
    assert re.search(r"Open http://127\.0\.0\.1:\d+/\?token=\S+ \(Ctrl-C", terminal.output)
    terminal.process.send_signal(signal.SIGINT)
    code, output = terminal.close()
    assert code == 0, output
    assert "Traceback" not in output


def test_connections_follow_programs_that_start_and_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    from polarmap.cli import top

    monkeypatch.setattr(top, "LISTING_INTERVAL", 0.0)
    with contextlib.closing(top.ProgramConnections()) as connections:
        assert connections.take_snapshots() == []
        with started_program() as program:
            assert [snapshot.pid for snapshot in connections.take_snapshots()] == [program.pid]
            assert [snapshot.pid for snapshot in connections.take_snapshots()] == [program.pid]
        assert connections.take_snapshots() == []
    assert list_visible_programs() == []


def test_a_program_that_does_not_answer_ends_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    from polarmap.cli import top

    snapshot = ProgramSnapshot(7, "fit.py", "node-1", 0.0)
    answers: list[Any] = [snapshot, snapshot, TimeoutError("no answer")]

    class Connection:
        def read_snapshot(self) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def close(self) -> None:
            answers.append("closed")

    class Program:
        name, pid = "fit.py", 7

        def connect(self) -> Connection:
            return Connection()

    watcher = top.ProgramWatcher(Program())  # type: ignore[arg-type]
    assert watcher.take_snapshot() is snapshot
    assert not watcher.has_ended.is_set()
    assert watcher.take_snapshot() is watcher.take_snapshot() is watcher.take_snapshot(is_final=True)
    assert watcher.has_ended.is_set()
    assert watcher.end_reason == "fit.py (process 7): no answer"
    watcher.close()
    assert answers == ["closed"]
