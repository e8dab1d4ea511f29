"""The run of a map on workers that stay: what it decides; what it does is tested with the pool."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarmap.executors.pool_run import surroundings


def test_workers_get_the_surroundings_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("POLARMAP_TEST", "yes")
    found = surroundings(2)
    assert found.folder == str(tmp_path)
    assert found.environment["OMP_NUM_THREADS"] == "2"
    assert found.environment["POLARMAP_TEST"] == "yes"
    assert all(map(os.path.isabs, found.module_path))
