"""Workers as maps take them, give them back, and leave them."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import first_ends
from pool_processes import opened, taken, until

from polarmap import Pool
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.executors import worker_processes
from polarmap.executors.base import Payload
from polarmap.executors.worker_processes import WorkerProcesses, ends_soon, is_waiting
from polarmap.executors.worker_table import KeptWorker, Lease
from polarmap.testing import Fault
from polarmap.worker.blas_threads import THREAD_LIMIT_VARIABLES
from polarmap.worker.environment import ProcessEnvironment
from polarmap.worker.socket_channel import wait_until_ready


class Recorded(WorkerProcesses):
    """All that were ever taken are known."""

    def __init__(self) -> None:
        super().__init__(1, 3, [])
        self.taken: list[KeptWorker] = []

    def take(self, lease: Lease, *waiting: Any) -> KeptWorker | None:
        worker = super().take(lease, *waiting)
        self.taken += [] if worker is None else [worker]
        return worker


@pytest.fixture
def workers() -> Iterator[WorkerProcesses]:
    found = Recorded()
    yield found
    found.close()
    for worker in found.taken:
        worker.link.close()
    assert len(found) == 0


def stuck(workers: WorkerProcesses) -> KeptWorker:
    """One at a task of a map that has ended, which never comes to its end."""
    lease = opened(workers)
    worker = taken(workers, lease)
    worker.note((0, 0, 0), "this")
    workers.leave(lease)
    return worker


def test_there_are_no_more_than_there_may_be_beside_those_that_nobody_waits_for(
    workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(worker_processes, "MOMENT_SECONDS", 0.0)
    stuck(workers)
    lease = opened(workers)
    first, *_ = [taken(workers, lease) for _ in range(3)]
    for _ in range(2):
        assert workers.take(lease, 1) is None
        assert workers._another() is None  # though its slots were more
        assert len(workers) == 4
        workers.remove(first)
        first = taken(workers, lease)


def test_none_is_started_while_one_may_be_free_in_a_moment(
    workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(worker_processes, "MOMENT_SECONDS", 60.0)
    others = opened(workers)
    taken(workers, others)
    stuck(workers)
    assert workers.take(others, 1) is None
    monkeypatch.setattr(worker_processes, "MOMENT_SECONDS", 0.0)
    assert workers.take(others, 1) is not None


def test_a_map_takes_workers_that_are_free_in_a_moment_rather_than_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_processes, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(worker_processes, "MOMENT_SECONDS", 60.0)
    blocks = UncodedBlocks([[np.ones(3)]], ("array",))
    with Pool() as pool:
        with closing(pool.open(Payload(np.negative, blocks, {0: Fault("sleep", 0.3)}))) as run:
            run.submit([(0, 0)])
            known = list(run._workers._workers)
        with closing(pool.open(Payload(np.negative, blocks))) as run:
            run.submit([(0, 0)])
            assert list(run._workers._workers) == known
            assert first_ends(run, 1, 60.0)[0].failure is None


def test_a_worker_whose_tasks_are_short_is_free_sooner_than_a_new_one_would_be(
    workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(worker_processes, "MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(worker_processes, "NEW_SECONDS", 60.0)
    worker = stuck(workers)
    assert not ends_soon(worker)  # how long its tasks take is not known
    worker.took = 59.0
    assert ends_soon(worker)
    worker.since -= 2 * worker.took
    assert not ends_soon(worker)


def test_one_that_does_not_come_to_its_end_is_killed(
    workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "GRACE_SECONDS", 0.0)
    worker = stuck(workers)
    assert wait_until_ready([worker.link], select.POLLIN, 30.0)
    worker.receive()
    assert worker.process is not None
    assert taken(workers, opened(workers)) is not worker
    assert until(lambda: not os.path.exists(f"/proc/{worker.process}"))


def test_one_that_is_gone_says_no_more(workers: WorkerProcesses) -> None:
    worker = taken(workers, opened(workers))
    workers.remove(worker)
    workers.remove(worker)
    assert worker.receive() == ([], False)
    assert len(workers) == 0


def test_those_that_were_not_needed_lately_end_but_for_as_many_as_keep_the_cores_busy(
    workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "count_available_cores", lambda: 1)
    monkeypatch.setattr(worker_processes, "SPARE_WORKERS", 0)
    first, second, third = (taken(workers, opened(workers)) for _ in range(3))
    for worker in (second, first):
        workers.give_back(worker)
    monkeypatch.setattr(worker_processes, "SPARE_SECONDS", 0.0)
    workers.tend()
    assert len(workers) == 3  # as many as were asked for
    monkeypatch.setattr(workers, "_most", None)
    monkeypatch.setattr(worker_processes, "SPARE_SECONDS", 600.0)
    workers.tend()
    assert len(workers) == 3  # they may be needed in a moment
    monkeypatch.setattr(worker_processes, "SPARE_SECONDS", 0.0)
    workers.tend()
    assert len(workers) == 1  # that is busy
    workers.give_back(third)
    workers.tend()
    assert taken(workers, opened(workers)) is third


def test_workers_get_the_surroundings_of_the_driver(
    workers: WorkerProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.surroundings(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("POLARMAP_TEST", "yes")
    monkeypatch.syspath_prepend("modules")
    told = workers.surroundings(b"")
    assert told is workers.surroundings(b"")  # as long as nothing changes
    found = ProcessEnvironment(*pickle.loads(told))
    assert found.working_directory == str(tmp_path)
    assert workers.paid() is None
    assert found.variables == {**os.environ, **dict.fromkeys(THREAD_LIMIT_VARIABLES, "1")}
    assert found.sys_path[0] == str(tmp_path / "modules")
    assert all(map(os.path.isabs, found.sys_path))


def test_a_process_that_sleeps_is_told_from_one_that_computes() -> None:
    for program, waits in {"import time; time.sleep(600)": True, "while True: pass": False}.items():
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            try:
                assert until(lambda waits=waits, process=process: is_waiting(process.pid) == waits)
            finally:
                process.kill()
    assert not is_waiting(process.pid)  # nobody knows


def test_all_tasks_start_at_once_where_nobody_sees_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "SEES_CORES", False)
    for most, limit in {None: sys.maxsize, 3: 3}.items():
        assert WorkerProcesses(1, most, [])._first_limit() == limit
