"""Run times from files, standard input and names."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from command_lines import DISTRIBUTION, Run

from polarmap.planning import completion_time


def test_tasks_that_never_end_are_simulated_as_such(polarmap: Run) -> None:
    ran = polarmap("simulate", "--k", 4, *DISTRIBUTION, "--failing", 1, "--json")
    assert ran.code == 0
    assert {one["failure_probability"] for one in ran.json["completions"]} == {1.0}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("1.0\n2.0\n4.5\n", []),
        ("1 2\n4.5\n", []),
        ("1.0,2.0,4.5", []),
        ("seconds\n1.0\n2.0\n4.5\n", []),
        ("\ufeff1.0\n2.0\n4.5\n", []),
        ("\ufeffseconds,task\n1.0,a\n2.0,b\n4.5,c\n", ["--column", "seconds"]),
        ("task,seconds\na,1.0\nb,2.0\nc,4.5\n", ["--column", "seconds"]),
    ],
)
def test_run_times_come_from_files(polarmap: Run, tmp_path: Path, text: str, options: list[str]) -> None:
    file = tmp_path / "times.txt"
    file.write_text(text)
    ran = polarmap("simulate", "--k", 3, "--scheme", "uncoded", "--times", file, *options, "--json")
    assert ran.json["completions"][0]["mean"] == completion_time(3, 3, "uncoded", [1.0, 2.0, 4.5]).mean


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "no run times given"),
        ("1.0\nfast\n", [], "run times are numbers of seconds: could not convert string to float: 'fast'"),
        ("a,b\n1,2\n", [], "has the columns a, b: --column says which is needed"),
        ("a,b\n1,2\n", ["--column", "c"], "there is no column 'c'"),
        ("\udce9\n", [], "is no UTF-8 text"),
        ("a,b\n1\n", ["--column", "b"], "could not convert string to float: ''"),
    ],
)
def test_odd_files_of_run_times(
    polarmap: Run, tmp_path: Path, text: str, options: list[str], message: str
) -> None:
    file = tmp_path / "times.csv"
    file.write_bytes(text.encode(errors="surrogateescape"))
    ran = polarmap("plan", "--k", 3, "--times", file, *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_run_times_come_from_standard_input(polarmap: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1.0 2.0\n"))
    ran = polarmap("simulate", "--k", 1, "--scheme", "uncoded", "--times", "-", "--json")
    assert ran.json["completions"][0]["mean"] == pytest.approx(1.5, rel=1e-14)
