"""Check the output and exit codes of the command line, and that errors never end in a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_lines import COMMAND, DISTRIBUTION, ENVIRONMENT, INTERRUPTED, Run

from polarmap.cli import command_group


def leaves(group: Any = command_group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return every command as the words that name it."""
    paths = []
    for name, command in group.commands.items():
        paths += leaves(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]
    return paths


@pytest.mark.parametrize("words", leaves(), ids=" ".join)
def test_every_command_explains_itself_and_takes_json(polarmap: Run, words: tuple[str, ...]) -> None:
    ran = polarmap(*words, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
    assert len(ran.out.splitlines()[2].strip()) > 10


def test_help_shows_whole_descriptions(polarmap: Run) -> None:
    output = polarmap("--help").out
    assert "..." not in output.replace("[ARGS]...", "")
    assert all(name in output for name in command_group.commands)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["plan"], "Missing option '--k'"),
        (["plan", "--k", "0", *DISTRIBUTION], "'--k'"),
        (
            ["plan", "--k", "4", *DISTRIBUTION, "--failing", "2"],
            "'--failing': 2.0 is not in the range 0<=x<=1",
        ),
        (
            ["plan", "--k", "4", *DISTRIBUTION, "--cold-starts", "3", "1"],
            "'--cold-starts': 3.0 is not in the range",
        ),
        (["plan", "--k", "4", "--stragglers", "-1", "5"], "'--stragglers': -1.0 is not in the range 0<=x<=1"),
        (["plan", "--k", "4"], "either --times FILE or --distribution NAME:A,B"),
        (
            ["plan", "--k", "4", *DISTRIBUTION, "--times", __file__],
            "either --times FILE or --distribution NAME:A,B",
        ),
        (
            ["plan", "--k", "4", "--distribution", "gauss:1"],
            "unknown distribution 'gauss'; choose one of: exponential, pareto",
        ),
        (
            ["plan", "--k", "4", "--distribution", "pareto:1"],
            "pareto takes 2 parameters, got 1 in 'pareto:1'",
        ),
        (["plan", "--k", "4", "--distribution", "pareto:1,x"], "'1,x' is not a list of numbers"),
        (["plan", "--k", "4", "--times", "no-such-file"], "'no-such-file' does not exist"),
        (["simulate", "--k", "4", *DISTRIBUTION, "--scheme", "magic"], "'magic' is not one of"),
        (["doctor", "--config", "no-such-file"], "'no-such-file' does not exist"),
        (["config", "show"], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage_is_reported_and_exits_with_2(polarmap: Run, arguments: list[str], message: str) -> None:
    ran = polarmap(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.out == ""


def test_ctrl_c_is_one_line_and_exits_with_130(tmp_path: Path) -> None:
    pipe = tmp_path / "times"
    os.mkfifo(pipe)
    # Opening the pipe blocks until the command has opened it.
    with (
        subprocess.Popen(
            [*COMMAND, "plan", "--k", "3", "--times", str(pipe)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        ) as process,
        open(pipe, "w", encoding="utf-8") as writer,
    ):
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        error = process.stderr.read()
        assert not writer.closed
    assert process.returncode == 130
    assert error.strip() == INTERRUPTED
