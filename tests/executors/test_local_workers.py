"""The pool of local workers, which jobs acquire, release and abandon."""

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
from polarmap.executors import local_workers
from polarmap.executors.interface import JobSpec
from polarmap.executors.local_workers import LocalWorkerPool, is_about_to_finish, is_process_idle
from polarmap.executors.worker_pool import Allocation, WorkerHandle
from polarmap.testing import Fault
from polarmap.worker.blas_threads import THREAD_LIMIT_VARIABLES
from polarmap.worker.environment import ProcessEnvironment
from polarmap.worker.polling import wait_until_ready


class RecordingPool(LocalWorkerPool):
    """A pool that records all workers that were acquired."""

    def __init__(self) -> None:
        super().__init__(1, 3, [])
        self.taken: list[WorkerHandle] = []

    def acquire_worker(self, allocation: Allocation, *n_queued: Any) -> WorkerHandle | None:
        worker = super().acquire_worker(allocation, *n_queued)
        self.taken += [] if worker is None else [worker]
        return worker


@pytest.fixture
def workers() -> Iterator[LocalWorkerPool]:
    pool = RecordingPool()
    yield pool
    pool.close()
    for worker in pool.taken:
        worker.channel.close()
    assert len(pool) == 0


def make_stuck_worker(workers: LocalWorkerPool) -> WorkerHandle:
    """Return a worker that is busy with an abandoned task, which never ends."""
    lease = opened(workers)
    worker = taken(workers, lease)
    worker.assign_task((0, 0, 0), "this")
    workers.close_allocation(lease)
    return worker


def test_number_of_workers_is_limited_apart_from_abandoned_ones(
    workers: LocalWorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(local_workers, "FINISH_SOON_SECONDS", 0.0)
    make_stuck_worker(workers)
    lease = opened(workers)
    first, *_ = [taken(workers, lease) for _ in range(3)]
    for _ in range(2):
        assert workers.acquire_worker(lease, 1) is None
        assert workers._start_worker() is None  # the limit on all workers holds, although a slot is free
        assert len(workers) == 4
        workers.remove_worker(first)
        first = taken(workers, lease)


def test_no_worker_starts_while_one_is_about_to_finish(
    workers: LocalWorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(local_workers, "FINISH_SOON_SECONDS", 60.0)
    others = opened(workers)
    taken(workers, others)
    make_stuck_worker(workers)
    assert workers.acquire_worker(others, 1) is None
    monkeypatch.setattr(local_workers, "FINISH_SOON_SECONDS", 0.0)
    assert workers.acquire_worker(others, 1) is not None


def test_map_prefers_workers_about_to_finish_to_new_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_workers, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(local_workers, "FINISH_SOON_SECONDS", 60.0)
    blocks = UncodedBlocks([[np.ones(3)]], ("array",))
    with Pool() as pool:
        with closing(pool.open(JobSpec(np.negative, blocks, {0: Fault("sleep", 0.3)}))) as run:
            run.submit([(0, 0)])
            known = list(run._worker_pool._workers)
        with closing(pool.open(JobSpec(np.negative, blocks))) as run:
            run.submit([(0, 0)])
            assert list(run._worker_pool._workers) == known
            assert first_ends(run, 1, 60.0)[0].failure is None


def test_worker_with_short_tasks_is_about_to_finish(
    workers: LocalWorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "GRACE_SECONDS", 60.0)
    monkeypatch.setattr(local_workers, "FINISH_SOON_SECONDS", 0.0)
    monkeypatch.setattr(local_workers, "WORKER_START_SECONDS", 60.0)
    worker = make_stuck_worker(workers)
    assert not is_about_to_finish(worker)  # the duration of its tasks is not known yet
    worker.last_task_seconds = 59.0
    assert is_about_to_finish(worker)
    worker.state_since -= 2 * worker.last_task_seconds
    assert not is_about_to_finish(worker)


def test_worker_with_an_endless_task_is_killed(
    workers: LocalWorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "GRACE_SECONDS", 0.0)
    worker = make_stuck_worker(workers)
    assert wait_until_ready([worker.channel], select.POLLIN, 30.0)
    worker.receive_messages()
    assert worker.pid is not None
    assert taken(workers, opened(workers)) is not worker
    assert until(lambda: not os.path.exists(f"/proc/{worker.pid}"))


def test_removed_worker_receives_no_messages(workers: LocalWorkerPool) -> None:
    worker = taken(workers, opened(workers))
    workers.remove_worker(worker)
    workers.remove_worker(worker)
    assert worker.receive_messages() == ([], False)
    assert len(workers) == 0


def test_idle_workers_beyond_the_number_of_cores_end(
    workers: LocalWorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "count_available_cores", lambda: 1)
    monkeypatch.setattr(local_workers, "N_SPARE_WORKERS", 0)
    first, second, third = (taken(workers, opened(workers)) for _ in range(3))
    for worker in (second, first):
        workers.release_worker(worker)
    monkeypatch.setattr(local_workers, "SPARE_WORKER_IDLE_SECONDS", 0.0)
    workers.maintain_workers()
    assert len(workers) == 3  # the requested number of workers
    monkeypatch.setattr(workers, "_max_workers", None)
    monkeypatch.setattr(local_workers, "SPARE_WORKER_IDLE_SECONDS", 600.0)
    workers.maintain_workers()
    assert len(workers) == 3  # the workers have not been idle for long enough
    monkeypatch.setattr(local_workers, "SPARE_WORKER_IDLE_SECONDS", 0.0)
    workers.maintain_workers()
    assert len(workers) == 1  # The remaining worker is busy.
    workers.release_worker(third)
    workers.maintain_workers()
    assert taken(workers, opened(workers)) is third


def test_workers_get_the_environment_of_the_driver(
    workers: LocalWorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.get_pickled_environment(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("POLARMAP_TEST", "yes")
    monkeypatch.syspath_prepend("modules")
    pickled_environment = workers.get_pickled_environment(b"")
    assert pickled_environment is workers.get_pickled_environment(
        b""
    )  # cached as long as the environment does not change
    environment = ProcessEnvironment(*pickle.loads(pickled_environment))
    assert environment.working_directory == str(tmp_path)
    assert workers.take_billed_usage() is None
    assert environment.variables == {**os.environ, **dict.fromkeys(THREAD_LIMIT_VARIABLES, "1")}
    assert environment.sys_path[0] == str(tmp_path / "modules")
    assert all(map(os.path.isabs, environment.sys_path))


def test_sleeping_and_computing_processes_are_distinguished() -> None:
    for program, waits in {"import time; time.sleep(600)": True, "while True: pass": False}.items():
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            try:
                assert until(lambda waits=waits, process=process: is_process_idle(process.pid) == waits)
            finally:
                process.kill()
    assert not is_process_idle(process.pid)  # The state of a dead process is unknown.


def test_all_tasks_start_at_once_if_processes_cannot_be_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers, "CAN_SEE_IDLE_CORES", False)
    for most, limit in {None: sys.maxsize, 3: 3}.items():
        assert LocalWorkerPool(1, most, [])._get_initial_concurrency_limit() == limit
