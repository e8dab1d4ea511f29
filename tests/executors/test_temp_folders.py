"""Temporary folders whose names identify their owner."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from pool_processes import code_of_child

from polarmap.errors import ExecutorError
from polarmap.executors import temp_folders
from polarmap.executors.temp_folders import (
    get_process_temp_folder,
    make_shared_memory_folder,
    make_temp_folder,
    remove_owned_folder,
)
from polarmap.worker.processes import ProcessIdentity

MAKE = (
    "import os; from polarmap.executors.temp_folders import make_temp_folder; "
    "print(make_temp_folder(), flush=True)"
)


def made_by_another_process(place: Path, end: str) -> Path:
    environment = {**os.environ, "TMPDIR": str(place)}
    command = [sys.executable, "-c", f"{MAKE}; {end}"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    return Path(process.stdout.split()[0])


@pytest.mark.parametrize("place", ["", "memory"])
def test_only_folders_of_dead_processes_are_removed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temp_folders, "SHARED_MEMORY_ROOT", str(tmp_path / "memory"))
    mine, foreign = (
        make_temp_folder(),
        [tmp_path / f"polarmap-{name}" for name in ("1-x", "a_1_x", "a__1_x", "a_1_x_y")],
    )
    for folder in foreign:
        folder.mkdir()
    # os._exit ends a process without cleanup, like a killed process.
    orphan = made_by_another_process(tmp_path / place, "os._exit(0)")
    assert orphan.exists()
    assert make_temp_folder() != mine
    assert not orphan.exists()
    assert mine.exists()
    assert all(
        folder.exists() for folder in foreign
    )  # the names of these folders do not identify their owner


@pytest.mark.parametrize("change", [("host", "another-machine-12345678-4026531836"), ("pid", 1 << 30)])
def test_folders_of_other_containers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, object]
) -> None:
    # Containers may share a temporary folder, but the same process id means different processes in them.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    owner = ProcessIdentity.current()._replace(pid=1 << 30)._replace(**dict([change]))
    foreign_folder = tmp_path / f"{owner.folder_prefix}theirs"
    foreign_folder.mkdir()
    (foreign_folder / "block").touch()
    remove_owned_folder(make_temp_folder())
    assert foreign_folder.exists() == (change[0] == "host")


def test_process_removes_its_folder_at_exit(tmp_path: Path) -> None:
    # The folder is removed at exit, because an interrupt may come before the caller can remove it.
    assert made_by_another_process(tmp_path, "raise KeyboardInterrupt").parent == tmp_path
    assert os.listdir(tmp_path) == []


def test_no_folder_is_made_without_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temp_folders, "SHARED_MEMORY_ROOT", str(tmp_path / "none"))
    assert make_shared_memory_folder() is None
    monkeypatch.setattr(temp_folders, "SHARED_MEMORY_ROOT", str(tmp_path))
    folder = make_shared_memory_folder()
    assert folder is not None
    assert folder.parent == tmp_path
    remove_owned_folder(folder)


def test_shared_memory_is_used_if_no_temporary_folder_is_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr(temp_folders, "SHARED_MEMORY_ROOT", str(tmp_path))
    folder = make_temp_folder()
    assert folder.parent == tmp_path
    remove_owned_folder(folder)
    monkeypatch.setattr(temp_folders, "SHARED_MEMORY_ROOT", str(tmp_path / "none"))
    with pytest.raises(ExecutorError, match="no folder can be created for the files of workers"):
        make_temp_folder()


def test_removed_folder_is_made_again_for_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temp_folders, "_make_process_folder", cache(lambda process: make_temp_folder()))
    folder = get_process_temp_folder()
    assert get_process_temp_folder() == folder
    folder.rmdir()
    assert get_process_temp_folder() == folder
    folder.chmod(0o755)
    assert get_process_temp_folder().stat().st_mode & 0o777 == 0o700
    remove_owned_folder(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(ExecutorError, match=f"{folder} is not a folder that belongs to this user"):
        get_process_temp_folder()
    folder.unlink()
    folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ExecutorError, match=f"{folder} is not a folder that belongs to this user"):
        get_process_temp_folder()


def test_forked_child_has_a_separate_folder_and_keeps_its_parents_folders() -> None:
    private, folder = get_process_temp_folder(), make_temp_folder()

    def others() -> None:
        assert get_process_temp_folder() != private
        remove_owned_folder(folder)
        temp_folders._remove_all_owned_folders()

    assert code_of_child(others, []) == 0
    assert private.exists() and folder.exists()
    assert get_process_temp_folder() == private
    remove_owned_folder(folder)
    assert not folder.exists()


def test_folder_is_removed_at_exit_if_its_creation_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, mode: int) -> None:
        os.mkdir(folder, mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_temp_folder()
    [left] = tmp_path.iterdir()
    remove_owned_folder(left)  # This is done at exit for each folder of this process.
    assert not left.exists()
