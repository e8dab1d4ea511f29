"""Tests that processes are identified, checked for liveness, and ended, and that their files are removed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polarmap.worker import processes
from polarmap.worker.processes import ProcessIdentity, _get_start_time, exit_process_when, is_process_alive

SLEEP = "; import time; time.sleep(60)"


def test_identities_of_processes_tell_which_are_dead() -> None:
    here = ProcessIdentity.current()
    assert ProcessIdentity.parse(str(here)) == here
    assert here.is_on_this_machine()
    assert not here.is_dead()
    assert here._replace(start_time="1").is_dead()  # Another process has the same id.
    assert here._replace(pid=10**20).is_dead()
    assert not here._replace(host="elsewhere", pid=2**22 + 1).is_dead()
    assert not ProcessIdentity.parse("nonsense").is_dead()
    assert is_process_alive(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = here._replace(pid=child.pid, start_time=_get_start_time(child.pid))
        assert is_process_alive(child.pid)
        assert not other.is_dead()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_process_alive(child.pid)  # The child has not been reaped yet.
        assert other.is_dead()
    assert not is_process_alive(child.pid)
    assert other.is_dead()


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program + SLEEP], start_new_session=True)


def test_the_watcher_stops_polling_once_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LIVENESS_INTERVAL", 0.01)
    looks, others = list[int](), set(threading.enumerate())  # Other tests may have left such threads.
    stop = exit_process_when(lambda: bool(looks.append(1)), lambda: None)
    stop()
    seen = len(looks)
    time.sleep(10 * processes.LIVENESS_INTERVAL)
    assert len(looks) == seen
    assert not any(thread.name == "polarmap-watch" for thread in {*threading.enumerate()} - others)


def test_a_process_ends_as_soon_as_it_is_cancelled(tmp_path: Path) -> None:
    process = started(
        "import os; from polarmap.worker.processes import exit_process_when; "
        f"exit_process_when(lambda: os.path.exists({str(tmp_path / 'over')!r}))"
    )
    (tmp_path / "over").touch()
    assert process.wait(30) == 0
