"""Processes end when nobody waits for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SLEEP = "; import time; time.sleep(60)"


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program + SLEEP], start_new_session=True)


def test_a_process_ends_as_soon_as_it_is_cancelled(tmp_path: Path) -> None:
    process = started(
        "import os; from polarmap.worker.liveness import exit_when; "
        f"exit_when(lambda: os.path.exists({str(tmp_path / 'over')!r}))"
    )
    (tmp_path / "over").touch()
    assert process.wait(30) == 0


def test_a_job_ends_with_its_driver_and_removes_its_folder(tmp_path: Path) -> None:
    driver = started("pass")
    scratch = tmp_path / "scratch"
    (scratch / "below").mkdir(parents=True)
    worker = started(
        "import shutil; from polarmap.worker.liveness import end_job, exit_when; "
        "from polarmap.worker.process_identity import is_alive; "
        f"remove = lambda: shutil.rmtree({str(scratch)!r}); "
        f"exit_when(lambda: not is_alive({driver.pid}), lambda: end_job(remove))"
    )
    assert worker.poll() is None
    driver.kill()
    driver.wait()
    assert worker.wait(30) != 0
    for _ in range(300):
        if not scratch.exists():
            break
        subprocess.run(["sleep", "0.1"])
    assert not scratch.exists()
