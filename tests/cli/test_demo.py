"""`polarmap demo`: both products, and that an interrupt leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_lines import COMMAND, ENVIRONMENT, INTERRUPTED, Run


def test_demo_multiplies_right_and_tells_both_times(polarmap: Run) -> None:
    ran = polarmap("demo", "--rows", 480, "--columns", 16, "--sleep", 1, "--json")
    assert ran.code == 0
    assert ran.json["plain_seconds"] >= 1
    assert ran.json["error"] < 1e-10
    assert ran.json["report"]["n"] == 32


def test_ctrl_c_ends_the_workers_too() -> None:
    """It says that nothing was left running: nothing of its process group may be."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--sleep", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and len(children.read_text().split()) < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error.strip()) == (130, b"", INTERRUPTED)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
