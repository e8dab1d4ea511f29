"""How many tasks run at once on one machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from polarmap.executors import slots
from polarmap.executors.slots import BusyTasks, extra_slots, processor_seconds_of


@pytest.mark.parametrize("queued", [0, 1, 50])
def test_no_more_slots_than_tasks_that_wait_and_none_while_the_cores_are_busy(queued: int) -> None:
    assert extra_slots(cores=4, busy=4, idle=20, queued=queued) == 0
    assert extra_slots(cores=4, busy=0, idle=20, queued=queued) == min(queued, 10)
    assert extra_slots(cores=4, busy=1, idle=0, queued=queued) == min(queued, 3)


def test_a_task_idles_after_two_looks_without_work_and_may_work_again() -> None:
    tasks = BusyTasks()
    used = [0.0, 1.0, 1.0, 1.0, 2.0]
    assert [tasks.look(float(now), {7: seconds}) for now, seconds in enumerate(used)] == [1, 1, 1, 0, 1]
    assert tasks.look(9.0, {}) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells")
def test_processor_time_of_processes_that_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert processor_seconds_of([os.getpid(), process.pid]).keys() == {os.getpid(), process.pid}
    process.communicate(b"\n")
    assert processor_seconds_of([process.pid]) == {}
    assert slots.first_slots(2) > 2
