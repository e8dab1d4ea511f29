"""Workers as maps take them, give them back, and leave them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from polarmap.executors import worker_processes
from polarmap.executors.worker_processes import Lease, Worker, WorkerProcesses
from polarmap.worker.io_sockets import Call
from polarmap.worker.messages import StoredBlock, Ticket
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import layout_of


@pytest.fixture
def workers() -> Iterator[WorkerProcesses]:
    found = WorkerProcesses(1, 3, [])
    found.start([])
    yield found
    found.close()
    assert len(found) == 0


def taken(workers: WorkerProcesses, lease: Lease, may_wait: bool = False) -> Worker:
    worker = workers.take(lease, may_wait)
    assert worker is not None
    return worker


def call(folder: Path, seconds: float) -> Call:
    """A task that sleeps."""

    def nap(block: Any) -> Any:
        time.sleep(seconds)
        return block

    data = np.zeros(1)
    (folder / "block").write_bytes(data.tobytes())
    place = Place("folder", str(folder))
    block = StoredBlock(place, (Part("block", 8),), ("array",), layout_of([data]))
    f = cloudpickle.dumps((nap, ("array",)))
    return Call(0, (str(folder),), Ticket(0, 0, block, None, None), f, None)


def replied(worker: Worker) -> dict[str, Any]:
    poll = select.poll()
    poll.register(worker.connection, select.POLLIN)
    while poll.poll(30_000):
        said, is_there = worker.receive()
        assert is_there
        if said:
            [(fields, _)] = said
            return dict(fields)
    raise AssertionError


def test_a_worker_that_is_given_back_is_taken_again(workers: WorkerProcesses, tmp_path: Path) -> None:
    lease = Lease()
    worker = taken(workers, lease)
    assert worker.send(call(tmp_path, 0.0))
    assert replied(worker)["kind"] == "end"
    workers.give_back(worker)
    assert taken(workers, Lease()) is worker
    assert taken(workers, Lease()) is not worker
    assert len(workers) == 2


def test_there_are_no_more_than_there_may_be(workers: WorkerProcesses) -> None:
    lease = Lease()
    for _ in range(3):
        taken(workers, lease)
    assert workers.take(lease, may_wait=False) is None


def test_one_that_comes_to_its_end_after_its_map_is_free_again(
    workers: WorkerProcesses, tmp_path: Path
) -> None:
    lease = Lease()
    worker = taken(workers, lease)
    worker.task = "this"
    worker.send(call(tmp_path, 0.3))
    lease.ended = time.monotonic()
    assert workers.abandoned_tasks() == {"this"}
    assert workers.take(Lease(), may_wait=True) is None
    deadline = time.monotonic() + 30.0
    while workers.abandoned_tasks():
        assert time.monotonic() < deadline
    assert taken(workers, Lease()) is worker


def test_one_that_does_not_is_killed(
    workers: WorkerProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "GRACE_SECONDS", 0.0)
    lease = Lease()
    worker = taken(workers, lease)
    worker.send(call(tmp_path, 0.0))
    replied(worker)
    assert worker.process is not None
    worker.send(call(tmp_path, 600.0))
    lease.ended = time.monotonic()
    assert taken(workers, Lease()) is not worker
    deadline = time.monotonic() + 30.0
    while os.path.exists(f"/proc/{worker.process}"):
        assert time.monotonic() < deadline


def test_one_that_is_gone_says_no_more(workers: WorkerProcesses) -> None:
    worker = taken(workers, Lease())
    workers.remove(worker)
    workers.remove(worker)
    assert worker.receive() == ([], False)
    assert len(workers) == 0
