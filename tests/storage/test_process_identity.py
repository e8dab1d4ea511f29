"""Which process is meant, and whether it has ended."""

from __future__ import annotations

import os
import subprocess
import sys

from polarmap.storage.process_identity import ProcessIdentity


def test_owners_know_who_is_dead():
    here = ProcessIdentity.current()
    assert ProcessIdentity.parse(str(here)) == here
    assert here.is_on_this_machine()
    assert not here.is_dead()
    assert here._replace(started="1").is_dead()  # the number was given out again
    assert not here._replace(host="elsewhere", process=2**22 + 1).is_dead()
    assert not ProcessIdentity.parse("nonsense").is_dead()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = here._replace(process=child.pid, started=started(child.pid))
        assert not other.is_dead()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert other.is_dead()  # though nobody has reaped it yet


def started(process):
    from polarmap.storage.process_identity import _started

    return _started(process)
