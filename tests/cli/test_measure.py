"""Check that `polarmap measure` prints and stores the library's measurements, and that `plan` reads them."""

from __future__ import annotations

from pathlib import Path

from command_lines import Run


def test_measured_times_can_be_passed_to_plan(polarmap: Run, tmp_path: Path) -> None:
    file, picture = tmp_path / "times.json", tmp_path / "times.svg"
    ran = polarmap("measure", "--tasks", 3, "--seconds", 0.01, "--out", file, "--plot", picture)
    assert ran.code == 0, ran.err
    assert "3 tasks of 0.01 s on processes here" in ran.out
    assert "<svg" in picture.read_text()
    for column in ([], ["--column", "cold"]):
        assert polarmap("plan", "--k", 3, "--times", file, *column).code == 0
    refused = polarmap("simulate", "--k", 3, "--times", file, "--column", "hot")
    assert refused.code == 2
    assert "is not a file of `polarmap measure` with 'hot' times" in refused.err


def test_json_output_has_all_times(polarmap: Run) -> None:
    ran = polarmap("measure", "--tasks", 2, "--seconds", 0.01, "--json")
    assert len(ran.json["cold"]) == len(ran.json["warm"]) == 2


def test_localhost_means_lithops_on_this_machine(polarmap: Run) -> None:
    ran = polarmap("measure", "localhost", "--tasks", 2, "--seconds", 0.01)
    assert ran.code == 0, ran.err
    assert "2 tasks of 0.01 s on localhost" in ran.out
    assert polarmap("measure", "nowhere.yaml").code == 2
