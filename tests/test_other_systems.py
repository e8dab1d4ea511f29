"""Run maps on Linux without the functions that Windows and macOS lack, which all interpreters remove."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pool_processes import assert_nothing_is_left

FOLDER = Path(__file__).parent / "other_systems"


def test_maps_run_without_functions_that_only_linux_has(tmp_path: Path) -> None:
    path = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(FOLDER / "maps.py"), str(tmp_path)]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as driver:
        output, _ = driver.communicate()
    lacks, *workers = output.splitlines()
    assert lacks == "poll fork register_at_fork getuid killpg"
    assert workers
    assert driver.returncode == 0
    assert_nothing_is_left(driver.pid, set(map(int, workers)))
