"""The command line: what it prints, its exit codes, and that a mistake never ends in a traceback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import yaml
import zarr

from polarmap import open_coded
from polarmap.cli import commands, main
from polarmap.planning import ShiftedExponential, completion_time, plan, stragglers

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = ["--distribution", "exponential:1,0.1", "--stragglers", "0.02", "5"]
COMMAND = [sys.executable, "-m", "polarmap"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one document of standard JSON."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


Run = Callable[..., Ran]


@pytest.fixture
def polarmap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["polarmap", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main() sets its own
    return run


def leaves(group: Any = commands, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command there is, as the words that name it."""
    found = []
    for name, command in group.commands.items():
        found += leaves(command, (*path, name)) if hasattr(command, "commands") else [(*path, name)]
    return found


# --- every command -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", leaves(), ids=" ".join)
def test_every_command_explains_itself_and_takes_json(polarmap: Run, words: tuple[str, ...]) -> None:
    ran = polarmap(*words, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
    assert len(ran.out.splitlines()[2].strip()) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["plan"], "Missing option '--k'"),
        (["plan", "--k", "0", *DISTRIBUTION], "'--k'"),
        (["plan", "--k", "4"], "either --times FILE or --distribution NAME:A,B"),
        (
            ["plan", "--k", "4", *DISTRIBUTION, "--times", __file__],
            "either --times FILE or --distribution NAME:A,B",
        ),
        (
            ["plan", "--k", "4", "--distribution", "gauss:1"],
            "there is no distribution 'gauss'; there are: exponential, pareto",
        ),
        (["plan", "--k", "4", "--distribution", "pareto:1"], "pareto has 2 parameters, 'pareto:1' gives 1"),
        (["plan", "--k", "4", "--distribution", "pareto:1,x"], "'1,x' is not a list of numbers"),
        (["plan", "--k", "4", "--times", "no-such-file"], "'no-such-file' does not exist"),
        (["simulate", "--k", "4", *DISTRIBUTION, "--scheme", "magic"], "'magic' is not one of"),
        (["doctor", "--config", "no-such-file"], "'no-such-file' does not exist"),
        (["config", "show"], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage_is_said_and_exits_with_2(polarmap: Run, arguments: list[str], message: str) -> None:
    ran = polarmap(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.out == ""


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
    ("arguments", "kind", "message"),
    [
        (["config", "show", "mars"], "ExecutorError", "there is no configuration 'mars'; there are: "),
        (
            ["plan", "--k", "4", "--distribution", "pareto:0,1"],
            "CodeError",
            "scale must be a finite number above 0",
        ),
        (
            ["plan", "--k", "9", *DISTRIBUTION, "--max-workers", "8"],
            "CodeError",
            "k = 9 blocks need at least as many",
        ),
        (["plan", "--k", "9", *DISTRIBUTION, "--deadline", "0.5"], "CodeError", "the deadline 0.5 s"),
        (
            ["plan", "--k", "4", *DISTRIBUTION, "--failing", "1"],
            "CodeError",
            "never completes with a probability of at",
        ),
        (
            ["plan", "--k", "100000000", *DISTRIBUTION],
            "CodeError",
            "k = 100000000 is more than the 65536 workers",
        ),
        (["simulate", "--k", "4", "--n", "100000000", *DISTRIBUTION], "CodeError", "n and trials go up to"),
        (["simulate", "--k", "9", "--n", "8", *DISTRIBUTION, "--scheme", "mds"], "CodeError", "8"),
    ],
)
def test_a_refusal_is_one_line_and_exits_with_1(
    polarmap: Run, arguments: list[str], kind: str, message: str
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


# --- plan and simulate ---------------------------------------------------------------------------


def test_plan_is_that_of_the_library(polarmap: Run) -> None:
    expected = plan(24, stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0), "p99", max_workers=36)
    arguments = ["plan", "--k", 24, *DISTRIBUTION, "--max-workers", 36]
    assert polarmap(*arguments).out == f"{expected}\n"
    found = polarmap(*arguments, "--json").json["plan"]
    assert (found["n"], found["k"], found["objective"]) == (expected.n, 24, "p99")
    assert found["expected"]["p99"] == expected.expected.p99
    assert len(found["frontier"]) == len(expected.frontier)


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
        ("", [], "is empty"),
        ("1.0\nfast\n", [], "holds 'fast', which is no number"),
        ("a,b\n1,2\n", [], "has the columns a, b: --column says which is needed"),
        ("a,b\n1,2\n", ["--column", "c"], "there is no column 'c'"),
        ("a,b\n1\n", ["--column", "b"], "holds '', which is no number"),
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


def test_what_never_ends_is_null_in_json(polarmap: Run) -> None:
    ran = polarmap("simulate", "--k", 8, *DISTRIBUTION, "--failing", 0.5, "--scheme", "uncoded", "--json")
    assert ran.json["completions"][0]["p99"] is None


def test_every_scheme_is_simulated(polarmap: Run) -> None:
    ran = polarmap("simulate", "--k", 12, *DISTRIBUTION, "--cold-starts", 0.1, 4, "--trials", 20)
    schemes = [line.split()[0] for line in ran.out.splitlines()[1:]]
    assert schemes == ["uncoded", "replication", "backup", "sequential", "rotation"]


# --- configurations ------------------------------------------------------------------------------

CONFIGURATIONS = sorted(path.stem for path in (ROOT / "config").glob("*.yaml"))


def test_list_names_every_configuration(polarmap: Run) -> None:
    found = polarmap("config", "list", "--json").json["configurations"]
    assert [one["name"] for one in found] == CONFIGURATIONS
    assert all(len(one["purpose"]) > 10 for one in found)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_show_prints_the_file_and_only_that(polarmap: Run, name: str) -> None:
    text = (ROOT / "config" / f"{name}.yaml").read_text()
    assert polarmap("config", "show", name).out == text
    shown = polarmap("config", "show", name, "--json").json
    assert shown["text"] == text
    assert "README.md" in shown["files"]
    assert yaml.safe_load(text)["lithops"]["backend"]


def test_copy_never_overwrites(polarmap: Run, tmp_path: Path) -> None:
    assert polarmap("config", "copy", "localhost", tmp_path).code == 0
    assert (tmp_path / "config" / "localhost.yaml").is_file()
    assert (tmp_path / "backends" / "localhost" / "README.md").is_file()
    (tmp_path / "config" / "localhost.yaml").unlink()
    ran = polarmap("config", "copy", "localhost", tmp_path)
    assert (ran.code, "exists already" in ran.err) == (1, True)
    assert not (tmp_path / "config" / "localhost.yaml").exists()


# --- coded arrays --------------------------------------------------------------------------------


@pytest.fixture
def stored(polarmap: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one coded array of integers, "small"."""
    monkeypatch.setenv("POLARMAP_STORE", str(tmp_path / "store"))
    np.save(tmp_path / "small.npy", np.arange(60).reshape(12, 5))
    ran = polarmap("encode", tmp_path / "small.npy", "small", "--blocks", 4, "--workers", 6)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("<CodedArray 'small': 12 x 5 int64, 4 of 6 blocks are data")
    return tmp_path / "store"


def parts(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.suffix != ".json")


def test_arrays_are_listed_checked_repaired_and_deleted(polarmap: Run, stored: Path) -> None:
    listed = polarmap("list", "--json").json["arrays"]
    assert [(one["name"], one["shape"], one["n"], one["k"]) for one in listed] == [("small", [12, 5], 6, 4)]
    assert polarmap("check", "small").code == 0
    victim = max(parts(stored), key=lambda path: path.stat().st_size)
    victim.write_bytes(b"x" * victim.stat().st_size)
    damaged = polarmap("check", "small", "--json")
    assert (damaged.code, damaged.json["ok"]) == (1, False)
    assert [one["kind"] for one in damaged.json["audit"]["damaged"]] == ["corrupt"]
    assert polarmap("repair", "small").out.startswith("repaired 1 part of 'small', in blocks [")
    assert polarmap("repair", "small").out.startswith("nothing to repair")
    assert np.array_equal(open_coded("small")[:], np.arange(60).reshape(12, 5))
    asked = polarmap("delete", "small")
    assert (asked.code, "say --yes" in asked.err) == (2, True)
    assert polarmap("delete", "small", "--yes").code == 0
    assert polarmap("list").out == "no coded arrays\n"
    assert parts(stored) == []


def test_an_array_that_cannot_be_opened_is_listed_with_the_reason(polarmap: Run, stored: Path) -> None:
    for manifest in stored.rglob("*.json"):
        manifest.write_text("{")
    ran = polarmap("list")
    assert ran.code == 1
    assert "cannot be opened" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none"], "none"),
        (["repair", "none"], "none"),
        (["delete", "none", "--yes"], "none"),
        (["check", "../up"], "../up"),
        (["encode", "no-such.npy", "a"], "there is no file 'no-such.npy'"),
        (["encode", "{folder}", "a"], "is no Zarr array"),
        (["encode", "{folder}/small.npy", "small"], "'small'"),
    ],
)
def test_what_cannot_be_done_with_arrays_is_said(
    polarmap: Run, stored: Path, arguments: list[str], message: str
) -> None:
    ran = polarmap(*(one.format(folder=stored.parent) for one in arguments))
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_zarr_and_hdf5_are_sources(polarmap: Run, stored: Path) -> None:
    data = np.arange(24.0).reshape(8, 3)
    zarr.save_array(str(stored.parent / "data.zarr"), data)
    with h5py.File(stored.parent / "data.h5", "w") as file:
        file["group/data"] = data
    sources = {"zarr": "data.zarr", "hdf5": "data.h5::group/data"}
    for name, source in sources.items():
        assert polarmap("encode", stored.parent / source, name, "--blocks", 4).code == 0
        assert np.array_equal(open_coded(name)[:], data)
    ran = polarmap("encode", stored.parent / "data.h5::other", "x")
    assert (ran.code, "no dataset 'other'; it holds group" in ran.err) == (1, True)


# --- doctor and demo -----------------------------------------------------------------------------


def states(ran: Ran) -> dict[str, str]:
    return {check["name"]: check["state"] for check in ran.json["checks"]}


def test_doctor_finds_this_machine_in_order(polarmap: Run) -> None:
    ran = polarmap("doctor", "--json")
    assert ran.code == 0, ran.out
    assert ran.json["ok"]
    found = states(ran)
    assert found["lithops"] == found["numpy"] == found["coded map"] == "ok"


def test_doctor_examines_a_configuration(polarmap: Run) -> None:
    ran = polarmap("doctor", "--config", ROOT / "config" / "localhost.yaml")
    assert ran.code == 0, ran.out
    assert ran.out.endswith("\npolarmap works here\n")
    assert "\nok    storage: put, get and delete of 1 KiB" in ran.out
    assert "\nok    coded map: 4 blocks on 6 workers (lithops/localhost), right" in ran.out


@pytest.mark.parametrize(
    ("text", "check", "message"),
    [
        ("lithops: [", "configuration", "is not YAML"),
        ("just text\n", "configuration", "holds no Lithops configuration"),
        (
            "lithops: {backend: aws_lambda, storage: aws_s3}\naws: {region: <region>}\n",
            "configuration",
            "aws.region: <region>",
        ),
        ("lithops: {backend: mars, storage: localhost}\n", "Lithops", "mars"),
        (
            "lithops: {backend: localhost, storage: minio}\nminio: {endpoint: 'http://127.0.0.1:1', "
            "access_key_id: a, secret_access_key: b, storage_bucket: c}\n",
            "Lithops",
            "http://127.0.0.1:1",
        ),
    ],
)
def test_doctor_names_what_is_wrong_and_exits_with_1(
    polarmap: Run, tmp_path: Path, text: str, check: str, message: str
) -> None:
    file = tmp_path / "lithops.yaml"
    file.write_text(text)
    ran = polarmap("doctor", "--config", file, "--json")
    assert ran.code == 1
    assert not ran.json["ok"]
    bad = [one for one in ran.json["checks"] if one["state"] == "bad"]
    assert [one["name"] for one in bad] == [check]
    assert message in bad[0]["found"]


def test_doctor_notes_a_configuration_that_is_not_used(
    polarmap: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".lithops_config").write_text("lithops: {backend: localhost, storage: localhost}\n")
    ran = polarmap("doctor")
    assert ran.code == 0
    assert "note  Lithops: .lithops_config is not used by executor=None" in ran.out


def test_doctor_sees_a_wrong_lithops(polarmap: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["lithops==1.0", "numpy>=999", "none-such>=1"]
    )
    ran = polarmap("doctor", "--json")
    assert ran.code == 1
    found = states(ran)
    assert [found["lithops"], found["numpy"], found["none-such"]] == ["bad"] * 3
    assert "coded map" not in found


def test_demo_multiplies_right_and_tells_both_times(polarmap: Run) -> None:
    ran = polarmap("demo", "--rows", 480, "--columns", 16, "--sleep", 1, "--json")
    assert ran.code == 0
    assert ran.json["plain_seconds"] >= 1
    assert ran.json["error"] < 1e-10
    assert ran.json["report"]["n"] == 32


# --- as a process --------------------------------------------------------------------------------


def test_the_module_runs_and_stdout_is_one_document() -> None:
    run = subprocess.run(
        [*COMMAND, "config", "list", "--json"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert json.loads(run.stdout)["configurations"]
    assert run.stderr == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
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
    assert process.returncode == 141


INTERRUPTED = b"polarmap: interrupted; nothing was left running"


def test_ctrl_c_is_one_line_and_exits_with_130(tmp_path: Path) -> None:
    pipe = tmp_path / "times"
    os.mkfifo(pipe)
    with (
        subprocess.Popen(
            [*COMMAND, "plan", "--k", "3", "--times", str(pipe)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        ) as process,
        open(pipe, "w", encoding="utf-8") as writer,
    ):  # opens when the command has
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        error = process.stderr.read()
        assert not writer.closed
    assert process.returncode == 130
    assert error.strip() == INTERRUPTED


def test_ctrl_c_ends_the_workers_too() -> None:
    """It says that nothing was left running: nothing of its process group may be."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--sleep", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and len(children.read_text().split()) < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error.strip()) == (130, b"", INTERRUPTED)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_nothing_of_the_command_line_is_left_running(polarmap: Run) -> None:
    before = threading.active_count()
    polarmap("doctor")
    assert threading.active_count() <= before + 1  # a pool thread may be on its way out
