"""Processes end when nobody waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from polarmap.worker.liveness import is_alive

SLEEP = "; import time; time.sleep(60)"


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program + SLEEP], start_new_session=True)


def test_a_process_is_alive_until_it_ends() -> None:
    assert is_alive(os.getpid())
    process = started("pass")
    assert is_alive(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert not is_alive(process.pid) or sys.platform != "linux"
    process.wait()
    assert not is_alive(process.pid)


def test_a_process_ends_as_soon_as_it_is_cancelled(tmp_path: Path) -> None:
    process = started(
        "import os; from polarmap.worker.liveness import exit_when; "
        f"exit_when(lambda: os.path.exists({str(tmp_path / 'over')!r}))"
    )
    (tmp_path / "over").touch()
    assert process.wait(30) == 0
