"""Which process is meant, whether it has ended, and what goes with it."""

from __future__ import annotations

import os
import subprocess
import sys

from polarmap.worker.process_identity import ProcessIdentity, _started, is_alive


def test_owners_know_who_is_dead() -> None:
    here = ProcessIdentity.current()
    assert ProcessIdentity.parse(str(here)) == here
    assert here.is_on_this_machine()
    assert not here.is_dead()
    assert here._replace(started="1").is_dead()  # the number was given out again
    assert not here._replace(host="elsewhere", process=2**22 + 1).is_dead()
    assert not ProcessIdentity.parse("nonsense").is_dead()
    assert is_alive(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = here._replace(process=child.pid, started=_started(child.pid))
        assert is_alive(child.pid)
        assert not other.is_dead()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(child.pid)  # though nobody has reaped it yet
        assert other.is_dead()
    assert not is_alive(child.pid)
    assert other.is_dead()
