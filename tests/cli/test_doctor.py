"""Check the findings of `polarmap doctor` and their order, and that nothing is left running."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_lines import ROOT, Ran, Run
from pool_processes import until

from polarmap.cli import deploy
from polarmap.cli.doctor import _check_latency, _check_storage

LATER = r"the first map, which starts them, takes \d+\.\d\d s, later ones \d+\.\d ms"


def states(ran: Ran) -> dict[str, str]:
    return {check["name"]: check["state"] for check in ran.json["checks"]}


def test_doctor_passes_on_this_machine_and_leaves_nothing_running(polarmap: Run) -> None:
    before = {*threading.enumerate()}
    ran = polarmap("doctor", "--json")
    # The pool's thread may remain, which ends once it is unused.
    assert until(lambda: len({*threading.enumerate()} - before) <= 1)
    assert ran.code == 0, ran.out
    assert ran.json["ok"]
    state_by_check = states(ran)
    assert state_by_check["lithops"] == state_by_check["numpy"] == state_by_check["coded map"] == "ok"
    kept = ran.json["checks"][-1]
    assert kept["name"] == "persistent workers"
    assert re.fullmatch(rf"processes here: {LATER}", kept["detail"])


@pytest.mark.parametrize(
    ("is_here", "first", "later", "busy", "advice"),
    [
        (True, 0.5, 0.005, 99.0, ""),  # Fast enough, however busy the machine.
        (True, 0.5, 0.5, 99.0, "this machine is busy (99.0 processes"),
        (True, 9.0, 0.005, 99.0, "this machine is busy (99.0 processes"),
        (True, 0.5, 0.5, 0.1, "executor=ThreadPoolExecutor"),
        (True, 9.0, 0.005, 0.1, "Pool(idle_timeout=600)"),
        (False, 90.0, 0.005, 0.1, ""),  # The first map on a cloud also deploys.
        (False, 9.0, 0.5, 0.1, "reach this machine by TCP"),
    ],
)
def test_doctor_says_why_maps_are_slow(
    is_here: bool, first: float, later: float, busy: float, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (busy, 0.0, 0.0))
    check = _check_latency("somewhere", is_here, first, later)
    assert check.state == ("note" if advice else "ok")
    assert advice in check.advice


def test_doctor_notes_little_space_and_an_unused_configuration(
    polarmap: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2e6))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".lithops_config").write_text("lithops: {backend: localhost, storage: localhost}\n")
    ran = polarmap("doctor")
    assert ran.code == 0
    assert "note  Lithops: .lithops_config is not used by executor=None" in ran.out
    assert "note  temporary folder: " in ran.out
    if Path("/dev/shm").is_dir():
        assert "note  shared memory: /dev/shm, only 0.0 GB free; blocks may take 1.1 GB" in ran.out
        assert "docker run --shm-size" in ran.out


def test_doctor_examines_a_configuration(polarmap: Run) -> None:
    ran = polarmap("doctor", "--config", ROOT / "config" / "localhost.yaml")
    assert ran.code == 0, ran.out
    assert ran.out.endswith("\npolarmap works here\n")
    assert "\nok    storage: put, get and delete of 1 KiB" in ran.out
    assert "\nok    coded map: 4 blocks in 6 tasks (lithops/localhost), right" in ran.out
    assert re.search(
        rf"persistent workers: persistent workers on lithops/localhost \(TCP\): {LATER}\n", ran.out
    )


def test_doctor_times_only_the_requests_to_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    # The time that Lithops takes before the first and after the last request does not count.
    clock, stored = SimpleNamespace(now=0.0), list[bytes]()

    def taking(seconds: float, answer: Callable[..., object] = lambda *_: None) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            clock.now += seconds
            return answer(*arguments)

        return call

    storage = SimpleNamespace(
        bucket="b",
        backend="somewhere",
        put_object=taking(0.002, lambda bucket, key, data: stored.append(data)),
        get_object=taking(0.003, lambda bucket, key: stored[0]),
        delete_objects=taking(0.004),
    )
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("polarmap.executors.lithops_invocations.open_function_executor", taking(9))
    monkeypatch.setattr(
        "polarmap.executors.lithops_invocations.open_lithops_storage", taking(9, lambda _: storage)
    )
    monkeypatch.setattr("polarmap.executors.lithops_internals.close_function_executor", taking(9))
    assert _check_storage(Path("lithops.yaml")).detail == "put, get and delete of 1 KiB in 9 ms"


@pytest.mark.parametrize(
    ("text", "check", "message"),
    [
        (
            "lithops: {backend: aws_lambda}\naws: {region: <region>}\n",
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
def test_doctor_names_the_failed_check_and_exits_with_1(
    polarmap: Run, tmp_path: Path, text: str, check: str, message: str
) -> None:
    file = tmp_path / "lithops.yaml"
    file.write_text(text)
    ran = polarmap("doctor", "--config", file, "--json")
    assert ran.code == 1
    assert not ran.json["ok"]
    bad = [one for one in ran.json["checks"] if one["state"] == "bad"]
    assert [one["name"] for one in bad] == [check]
    assert message in bad[0]["detail"]
    intervals = [one["state"] for one in ran.json["checks"] if one["name"] == "monitoring_interval"]
    assert intervals == ["note"] * (check == "Lithops" and "storage: minio" in text)


def test_doctor_names_the_extra_of_the_backend_that_lacks_its_client(
    polarmap: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The import fails as if the package were not installed.
    monkeypatch.setitem(sys.modules, "ibm_cloud_sdk_core", None)
    file = tmp_path / "code_engine.yaml"
    keys = "ibm: {iam_api_key: a, resource_group_id: b, region: us-south}\n"
    file.write_text(f"lithops: {{backend: code_engine, storage: localhost}}\n{keys}")
    ran = polarmap("doctor", "--config", file)
    assert ran.code == 1
    assert re.search(
        r"bad   Lithops: .*ibm_cloud_sdk_core.*pip install 'lithops\[ibm\]<3\.9,>=3\.8'", ran.out
    )


def test_doctor_refuses_what_deploy_refuses(
    polarmap: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lambda.yaml"
    file.write_text("lithops: {backend: aws_lambda, storage: aws_s3}\n")

    monkeypatch.setattr(deploy, "MIN_LAMBDA_PYTHON_WITH_NEW_LIBC", (9, 0))
    monkeypatch.setattr(deploy, "MIN_NUMPY_NEEDING_NEW_LIBC", (1, 0))
    ran = polarmap("doctor", "--config", file)
    assert ran.code == 1
    [message] = re.findall("bad   worker runtime: (.* has no wheel: .*)", ran.out)
    assert "coded map" not in ran.out
    refused = polarmap("deploy", "aws_lambda", file)
    assert (refused.code, refused.err) == (1, f"polarmap: {message}\n")


def test_doctor_detects_wrong_versions(polarmap: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["lithops==1.0", "numpy>=999", "none-such>=1"]
    )
    ran = polarmap("doctor", "--json")
    assert ran.code == 1
    state_by_check = states(ran)
    assert [state_by_check["lithops"], state_by_check["numpy"], state_by_check["none-such"]] == ["bad"] * 3
    advice = {check["name"]: check["advice"] for check in ran.json["checks"]}
    assert advice["lithops"] == "pip install 'lithops==1.0'"
    assert advice["none-such"] == "pip install 'none-such>=1'"
    assert "coded map" not in state_by_check
