"""Check `polarmap plan` and `polarmap simulate` against the library, for run times from files and names."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from command_lines import DISTRIBUTION, ROOT, Run

from polarmap.planning import ShiftedExponential, completion_time, plan, with_cold_starts, with_stragglers


def test_plan_prints_the_plan_of_the_library(polarmap: Run) -> None:
    expected = plan(8, with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0), "p99", max_workers=12)
    arguments = ["plan", "--k", 8, *DISTRIBUTION, "--max-workers", 12]
    assert polarmap(*arguments).out == f"{expected}\n"
    printed_plan = polarmap(*arguments, "--json").json["plan"]
    assert (printed_plan["n"], printed_plan["k"], printed_plan["objective"]) == (expected.n, 8, "p99")
    assert printed_plan["expected"]["p99"] == expected.expected.p99
    assert len(printed_plan["frontier"]) == len(expected.frontier)


def test_a_plan_is_drawn_into_the_given_file(polarmap: Run, tmp_path: Path) -> None:
    file = tmp_path / "frontier.png"
    ran = polarmap("plan", "--k", 4, *DISTRIBUTION, "--plot", file, "--json")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert ran.json["plan"]["run_times"].startswith("Mixture(")
    refused = polarmap("plan", "--k", 4, *DISTRIBUTION, "--plot", tmp_path / "frontier.xyz")
    assert (refused.code, "frontier.xyz" in refused.err) == (1, True)


def test_a_plan_keeps_to_the_limits_of_a_configuration_and_names_its_cost(
    polarmap: Run, tmp_path: Path
) -> None:
    file = tmp_path / "lambda.yaml"
    file.write_text(
        "lithops: {backend: aws_lambda, storage: aws_s3}\n"
        "aws_lambda: {runtime_memory: 1769, runtime_timeout: 180, max_workers: 26}\n"
    )
    ran = polarmap("plan", "--k", 24, *DISTRIBUTION, "--config", file, "--json")
    assert ran.code == 0
    assert 24 <= ran.json["plan"]["n"] <= 26
    assert ran.json["cost"] is not None
    slow = polarmap("plan", "--k", 24, "--distribution", "exponential:1000,1", "--config", file)
    assert (slow.code, "180" in slow.err) == (1, True)
    local = polarmap("plan", "--k", 24, *DISTRIBUTION, "--config", ROOT / "config" / "localhost.yaml")
    assert (local.code, "no runtime_memory" in local.err) == (1, True)


def test_a_plan_may_start_parity_when_tasks_are_late(polarmap: Run) -> None:
    ran = polarmap(
        "plan", "--k", 8, *DISTRIBUTION, "--objective", "cost", "--schedule", "on_demand", "--json"
    )
    assert ran.code == 0
    assert ran.json["plan"]["schedule"] == "on_demand"


def test_every_scheme_is_simulated(polarmap: Run) -> None:
    ran = polarmap("simulate", "--k", 12, *DISTRIBUTION, "--cold-starts", 0.1, 4, "--trials", 20)
    schemes = [line.split()[0] for line in ran.out.partition("\nNotes: ")[0].splitlines()]
    assert schemes == ["uncoded", "replication", "backup", "sequential", "rotation"]
    runtimes = with_cold_starts(with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0), 0.1, 4.0)
    assert ran.out.startswith(f"{completion_time(12, 12, 'uncoded', runtimes)}\n")


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
        ("", [], "run times must not be empty"),
        (
            "1.0\nfast\n",
            [],
            "run times must be numbers of seconds: could not convert string to float: 'fast'",
        ),
        ("a,b\n1,2\n", [], "has the columns a, b: choose one with --column"),
        ("a,b\n1,2\n", ["--column", "c"], "column must be one of a, b, not 'c'"),
        ("\udce9\n", [], "is not UTF-8 text"),
        ("a,b\n1\n", ["--column", "b"], "could not convert string to float: ''"),
    ],
)
def test_invalid_files_of_run_times(
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
