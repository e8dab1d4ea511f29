"""Run times from files, standard input and names."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from command_lines import DISTRIBUTION, Run

from polarmap.planning import completion_time


def test_a_plan_for_times_of_a_file_is_one_json_document(polarmap: Run, tmp_path: Path) -> None:
    (tmp_path / "times").write_text("1.0\n2.0\n3.0\n")
    ran = polarmap("plan", "--k", 4, "--times", tmp_path / "times", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["plan"]["runtimes"].startswith("<Empirical: 3 tasks, 1 to 3 s")


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_a_file_that_is_no_text_is_said_to_be_none(polarmap: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "latin").write_bytes(b"1.0\n\xe9\n")
    ran = polarmap(command, "--k", 4, "--times", tmp_path / "latin")
    assert (ran.code, ran.out) == (2, "")
    assert "is no UTF-8 text" in ran.err


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
        ("a,b\n1\n", ["--column", "b"], "could not convert string to float: ''"),
    ],
)
def test_odd_files_of_run_times(
    polarmap: Run, tmp_path: Path, text: str, options: list[str], message: str
) -> None:
    file = tmp_path / "times.csv"
    file.write_text(text)
    ran = polarmap("plan", "--k", 3, "--times", file, *options)
    assert ran.code == 2
    assert message in ran.err


def test_run_times_come_from_standard_input(polarmap: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1.0 2.0\n"))
    ran = polarmap("simulate", "--k", 1, "--scheme", "uncoded", "--times", "-", "--json")
    assert ran.json["completions"][0]["mean"] == pytest.approx(1.5, rel=1e-14)
