"""Check the parts of `make release-check` that need neither a network nor a new environment."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from release_check import __main__ as command
from release_check import environments, outcomes, smoke
from release_check.archives import ROOT, Archives, check_licences, copy_checkout
from release_check.outcomes import CheckError, Checklist, Outcome

LICENSE = (ROOT / "LICENSE").read_bytes()


def write_archives(folder: Path, sdist_licence: bytes, wheel_licence: bytes) -> Archives:
    archives = Archives(folder / "one-1.0.tar.gz", folder / "one-1.0-py3-none-any.whl")
    with tarfile.open(archives.sdist, "w:gz") as sdist:
        member = tarfile.TarInfo("one-1.0/LICENSE")
        member.size = len(sdist_licence)
        sdist.addfile(member, io.BytesIO(sdist_licence))
    with zipfile.ZipFile(archives.wheel, "w") as wheel:
        wheel.writestr("one-1.0.dist-info/licenses/LICENSE", wheel_licence)
    return archives


def test_every_extra_is_used_or_for_development() -> None:
    extras = set(environments.list_extras())
    assert extras == {*smoke.PROGRAMS, *command.DEVELOPMENT_EXTRAS} - {"base"}
    assert set(smoke.PROGRAMS).isdisjoint(command.DEVELOPMENT_EXTRAS)


def test_configurations_of_clouds_exist() -> None:
    names = {name for names in smoke.CONFIGURATIONS.values() for name in names}
    assert names == {path.stem for path in (ROOT / "config").glob("*.yaml")} - {"localhost", "minio"}


def test_agreements_name_existing_tests() -> None:
    for test in command.AGREEMENTS.values():
        file, _, function = test.partition("::")
        assert f"def {function}()" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_supported_pythons_are_those_of_the_classifiers() -> None:
    assert environments.list_supported_pythons() == ["3.11", "3.12", "3.13", "3.14"]


def test_the_first_example_of_readme_is_complete() -> None:
    example = environments.read_first_example()
    compile(example, "README.md", "exec")
    assert "polarmap.coded_map(" in example


def test_an_interpreter_is_recognized_by_its_version(tmp_path: Path) -> None:
    assert environments.is_version(Path(sys.executable), environments.CURRENT_PYTHON)
    assert not environments.is_version(Path(sys.executable), "3.99")
    shim = tmp_path / "python3.12"  # like those of pyenv for versions that are not selected
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert not environments.is_version(shim, "3.12")


def test_a_copy_of_the_checkout_has_all_tests_and_no_products(tmp_path: Path) -> None:
    copy = copy_checkout(tmp_path / "copy")
    assert (copy / "setup.cfg").is_file() and (copy / ".ci" / "run").is_file()
    assert (copy / "tests" / "site" / "conftest.py").is_file()
    assert not {".git", ".venv", "build", "dist", "site"} & {path.name for path in copy.iterdir()}


def test_archives_with_the_licence_pass(tmp_path: Path) -> None:
    assert "LICENSE" in check_licences(write_archives(tmp_path, LICENSE, LICENSE))


def test_archives_with_another_licence_fail(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"one-1.0.tar.gz must contain"):
        check_licences(write_archives(tmp_path, b"", LICENSE))
    with pytest.raises(CheckError, match=r"one-1.0-py3-none-any.whl must contain"):
        check_licences(write_archives(tmp_path, LICENSE, b""))


def test_a_failing_command_is_reported_with_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    def check() -> None:
        outcomes.run_command([sys.executable, "-c", "print('found'); raise SystemExit(3)"], ROOT)

    checklist = Checklist()
    assert not checklist.run("one", check, "3.11")
    assert checklist.run("two", lambda: "all of it")
    assert [outcome.state for outcome in checklist.outcomes] == ["failed", "passed"]
    printed = capsys.readouterr().out
    assert "Python 3.11, one ...\n    failed in" in printed
    assert "ended with exit code 3.\n    | found\n" in printed
    assert printed.endswith(": all of it\n")


def test_a_command_that_hangs_fails() -> None:
    with pytest.raises(CheckError, match=r"did not end within 0\.1 seconds"):
        outcomes.run_command(
            [sys.executable, "-c", "import threading; threading.Event().wait()"], ROOT, timeout=0.1
        )


def test_only_a_wheel_that_passed_counts_as_checked() -> None:
    passed = [Outcome("metadata", "", "passed"), Outcome("wheel", "3.12", "passed")]
    assert outcomes.is_checked(passed, "3.12")
    assert not outcomes.is_checked(passed, "3.11")
    assert not outcomes.is_checked([Outcome("wheel", "3.12", "not checked")], "3.12")


def test_the_table_has_a_line_for_each_outcome() -> None:
    checked = [
        Outcome("wheel", "3.11", "passed", "", 12.3),
        Outcome("wheel", "3.14", "not checked", "It is not installed."),
    ]
    assert outcomes.format_table(checked).splitlines() == [
        "check  Python  result       seconds",
        "-----------------------------------",
        "wheel  3.11    passed       12",
        "wheel  3.14    not checked           It is not installed.",
    ]
    assert outcomes.summarize(checked) == "1 passed, 1 not checked"


def test_a_release_without_a_python_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoPythons:
        def __init__(self, folder: Path) -> None:
            pass

        def find_python(self, version: str) -> None:
            return None

    monkeypatch.setattr(command, "AGREEMENTS", {})
    monkeypatch.setattr(command, "build_archives", lambda folder: write_archives(folder, LICENSE, LICENSE))
    monkeypatch.setattr(command, "check_metadata", lambda archives: "")
    monkeypatch.setattr(command, "Workshop", NoPythons)
    checklist = Checklist()
    command.check_release(checklist, tmp_path, ["3.99"], ["glm", "dev"])
    assert [(one.check, one.state) for one in checklist.outcomes[3:]] == [
        ("wheel", "not checked"),
        ("extra glm", "not checked"),
        ("extra dev", "skipped"),
    ]
    assert "Python 3.99 is not installed on this machine" in capsys.readouterr().out


@pytest.mark.parametrize("extra", ["crypto", "linalg"])
def test_programs_of_extras_pass_here(extra: str, tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, smoke.__file__, extra], cwd=tmp_path, env=environ, check=True)
