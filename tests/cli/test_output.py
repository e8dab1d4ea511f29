"""Check text and JSON output, errors on one line, and readers that close the pipe."""

from __future__ import annotations

import json
import subprocess

import pytest
from command_lines import COMMAND, DISTRIBUTION, ENVIRONMENT, Run


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            ["config", "show", "mars"],
            "ExecutorError",
            "no configuration template is named 'mars'; choose one of: ",
        ),
        (
            ["plan", "--k", "4", "--distribution", "pareto:0,1"],
            "CodeError",
            "scale must be a finite number above 0",
        ),
        (["plan", "--k", "100000000", *DISTRIBUTION], "CodeError", "k must be at most 65536"),
        (
            ["simulate", "--k", "4", "--n", "100000000", *DISTRIBUTION],
            "CodeError",
            "n and n_trials must be at most",
        ),
        (["plan", "--k", 4, "--distribution", "exponential:-1,1"], "CodeError", "-1,1: shift must be"),
    ],
)
def test_an_error_is_one_line_and_exits_with_1(
    polarmap: Run, arguments: list[object], kind: str, message: str
) -> None:
    ran = polarmap(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("polarmap: ")
    assert ran.err.count("\n") == 1
    assert message in ran.err
    as_json = polarmap(*arguments, "--json")
    assert as_json.code == 1
    assert as_json.json == {
        "error": {"type": kind, "message": as_json.err.removeprefix("polarmap: ").strip()}
    }


def test_infinite_times_are_null_in_json(polarmap: Run) -> None:
    ran = polarmap("simulate", "--k", 8, *DISTRIBUTION, "--failing", 0.5, "--scheme", "uncoded", "--json")
    assert ran.json["completions"][0]["p99"] is None


def test_the_module_runs_and_stdout_is_one_document() -> None:
    run = subprocess.run(
        [*COMMAND, "config", "list", "--json"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert json.loads(run.stdout)["configurations"]
    assert run.stderr == ""


def test_a_closed_pipe_causes_no_message() -> None:
    with subprocess.Popen(
        [*COMMAND, "config", "show", "localhost"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
