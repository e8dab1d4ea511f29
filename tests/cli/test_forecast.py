"""`polarmap plan` and `polarmap simulate`: what the library says."""

from __future__ import annotations

from pathlib import Path

from command_lines import DISTRIBUTION, ROOT, Run

from polarmap.planning import ShiftedExponential, cold_starts, completion_time, plan, stragglers


def test_plan_is_that_of_the_library(polarmap: Run) -> None:
    expected = plan(24, stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0), "p99", max_workers=36)
    arguments = ["plan", "--k", 24, *DISTRIBUTION, "--max-workers", 36]
    assert polarmap(*arguments).out == f"{expected}\n"
    found = polarmap(*arguments, "--json").json["plan"]
    assert (found["n"], found["k"], found["objective"]) == (expected.n, 24, "p99")
    assert found["expected"]["p99"] == expected.expected.p99
    assert len(found["frontier"]) == len(expected.frontier)


def test_a_plan_is_drawn_where_it_is_told(polarmap: Run, tmp_path: Path) -> None:
    file = tmp_path / "frontier.png"
    ran = polarmap("plan", "--k", 4, *DISTRIBUTION, "--plot", file, "--json")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert ran.json["plan"]["runtimes"].startswith("Mixture(")
    other = polarmap("plan", "--k", 4, *DISTRIBUTION, "--plot", tmp_path / "frontier.xyz")
    assert (other.code, "frontier.xyz" in other.err) == (1, True)


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
    here = polarmap("plan", "--k", 24, *DISTRIBUTION, "--config", ROOT / "config" / "localhost.yaml")
    assert (here.code, "no runtime_memory" in here.err) == (1, True)


def test_a_plan_may_start_parity_when_tasks_are_late(polarmap: Run) -> None:
    ran = polarmap(
        "plan", "--k", 8, *DISTRIBUTION, "--objective", "cost", "--schedule", "on_demand", "--json"
    )
    assert ran.code == 0
    assert ran.json["plan"]["schedule"] == "on_demand"


def test_every_scheme_is_simulated(polarmap: Run) -> None:
    ran = polarmap("simulate", "--k", 12, *DISTRIBUTION, "--cold-starts", 0.1, 4, "--trials", 20)
    schemes = [line.split()[0] for line in ran.out.splitlines()]
    assert schemes == ["uncoded", "replication", "backup", "sequential", "rotation"]
    runtimes = cold_starts(stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0), 0.1, 4.0)
    assert ran.out.startswith(f"{completion_time(12, 12, 'uncoded', runtimes)}\n")
