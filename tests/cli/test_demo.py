"""Check both products of `polarmap demo`, and that an interrupt leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from command_lines import COMMAND, ENVIRONMENT, INTERRUPTED, Run
from pool_processes import descendants, until


def test_demo_is_right_and_prints_both_times(polarmap: Run) -> None:
    ran = polarmap("demo", "--rows", 480, "--columns", 16, "--sleep", 1, "--json")
    assert ran.code == 0
    assert ran.json["plain_seconds"] >= 1
    assert ran.json["error"] < 1e-10
    assert ran.json["report"]["n"] == 32


def test_ctrl_c_ends_the_workers_too() -> None:
    # The message promises that nothing was left running, so no process of the group may be.
    with subprocess.Popen(
        [*COMMAND, "demo", "--sleep", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
    ) as process:
        while process.poll() is None and len(descendants(process.pid)) < 4:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error.strip()) == (130, b"", INTERRUPTED)
    # The process that forks workers ends when it notices that the command has ended.
    assert until(lambda: not has_group(process.pid), 10.0)


def has_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
