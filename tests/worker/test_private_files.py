"""Tests that shared files are read only from folders that other users cannot write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarmap.worker.pickled_values import pickle_to_array, unpickle_data_or_file
from polarmap.worker.private_files import ensure_private_folder, read_private_segment
from polarmap.worker.segments import DamagedError, Segment, write_file


def spoil(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "a link":
        folder.rename(f"{folder}-away")
        folder.symlink_to(f"{folder}-away")
    elif how == "somebody else's":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        folder.chmod(0o770)


@pytest.mark.parametrize("how", ["a link", "somebody else's", "open to others"])
def test_files_below_a_folder_writable_by_others_are_not_read(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, part = tmp_path / "own", Segment("own/blocks/x", 8)
    ensure_private_folder(str(folder))
    write_file(str(folder), "blocks/x", bytes(8))
    write_file(str(folder), "map/f", pickle_to_array(7).data)
    assert read_private_segment(str(tmp_path), part) == bytes(8)
    assert unpickle_data_or_file(f"{folder}/map/f") == 7
    spoil(folder, how, monkeypatch)
    with pytest.raises(DamagedError, match="own/blocks/x is missing"):
        read_private_segment(str(tmp_path), part)
    with pytest.raises(PermissionError, match=r"not a folder that belongs|must not be accessible"):
        unpickle_data_or_file(f"{folder}/map/f")


def test_a_file_system_without_permissions_has_no_private_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    assert ensure_private_folder(str(folder))
    assert not ensure_private_folder(str(folder))
    folder.chmod(0o777)
    monkeypatch.setattr(os, "chmod", lambda path, mode: None)  # FAT ignores modes like this.
    with pytest.raises(PermissionError, match=f"{folder} must not be accessible to other users"):
        ensure_private_folder(str(folder))
