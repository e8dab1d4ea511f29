"""Processes end when nobody waits for them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polarmap.worker import liveness
from polarmap.worker.liveness import exit_when

SLEEP = "; import time; time.sleep(60)"


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program + SLEEP], start_new_session=True)


def test_nobody_looks_once_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "LIVENESS_SECONDS", 0.01)
    looks, others = list[int](), set(threading.enumerate())  # a task that sleeps may be watched still
    stop = exit_when(lambda: bool(looks.append(1)), lambda: None)
    stop()
    seen = len(looks)
    time.sleep(10 * liveness.LIVENESS_SECONDS)
    assert len(looks) == seen
    assert not any(thread.name == "polarmap-watch" for thread in {*threading.enumerate()} - others)


def test_a_process_ends_as_soon_as_it_is_cancelled(tmp_path: Path) -> None:
    process = started(
        "import os; from polarmap.worker.liveness import exit_when; "
        f"exit_when(lambda: os.path.exists({str(tmp_path / 'over')!r}))"
    )
    (tmp_path / "over").touch()
    assert process.wait(30) == 0
