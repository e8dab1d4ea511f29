"""Folders whose owner is written in them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from polarmap.executors.owned_folder import OWNER, disk_folder

LEAVE = "from polarmap.executors.owned_folder import disk_folder; print(disk_folder())"


def test_what_a_dead_process_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine, foreign = disk_folder(), tmp_path / "polarmap-1-x"
    foreign.mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, env=environment)
    left = Path(told.stdout.strip())
    assert (left / OWNER).exists()
    assert disk_folder() != mine
    assert not left.exists()
    assert mine.exists()
    assert foreign.exists()  # it does not say whose it is
