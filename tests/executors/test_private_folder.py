"""The temporary folder of a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from polarmap.executors.owned_folder import OWNER
from polarmap.executors.private_folder import interpreter, named_for_lithops, private_folder
from polarmap.storage.process_identity import ProcessIdentity


def in_another_process(program: str, folder: Path) -> str:
    environment = {**os.environ, "TMPDIR": str(folder)}
    code = f"from polarmap.executors.private_folder import private_folder; {program}"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_it_is_made_once_and_gone_after_exit(tmp_path: Path) -> None:
    told = in_another_process("print(private_folder()); assert private_folder().is_dir()", tmp_path)
    assert Path(told).parent == tmp_path.resolve()
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_remove_it(tmp_path: Path) -> None:
    program = (
        "import os, sys; folder = private_folder()\n"
        "if os.fork() == 0: sys.exit(0)\n"
        "os.wait(); print(folder.is_dir())"
    )
    assert in_another_process(program, tmp_path) == "True"


def test_it_is_swept_by_its_owner_not_by_a_number(tmp_path: Path) -> None:
    """A process of this number runs in another container that shares the temporary folder."""
    theirs, left = tmp_path / "polarmap-999999999-theirs", tmp_path / "polarmap-999999999-left"
    for folder, host in ((theirs, "another-machine"), (left, ProcessIdentity.current().host)):
        folder.mkdir()
        (folder / OWNER).write_text(str(ProcessIdentity(host, 999_999_999, "1")))
    in_another_process("private_folder()", tmp_path)
    assert list(tmp_path.iterdir()) == [theirs]


def test_a_forked_child_has_its_own(tmp_path: Path) -> None:
    program = (
        "import os; folder = private_folder()\n"
        "if os.fork() == 0: os._exit(private_folder() == folder)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    assert in_another_process(program, tmp_path) == "0"


def test_the_interpreter_is_a_script_in_it() -> None:
    script = interpreter()
    assert script.parent == private_folder()
    assert os.access(script, os.X_OK)
    assert str(private_folder()).startswith(str(Path(tempfile.gettempdir()).resolve()))


def test_lithops_gets_a_path_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_for_lithops() == sys.executable
    monkeypatch.setattr("sys.executable", "/a folder/python")
    script = Path(named_for_lithops())
    try:
        assert '"/a folder/python"' in script.read_text()
    finally:
        script.unlink()


def test_it_is_made_again_when_somebody_has_removed_it() -> None:
    folder = private_folder()
    shutil.rmtree(folder)
    assert private_folder() == folder
    assert interpreter().is_file()
