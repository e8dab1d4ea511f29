"""Tests of a Lithops task with a storage in memory."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.worker import lithops_tasks
from polarmap.worker.lithops_tasks import (
    LIVENESS_KEY,
    MAX_STATUS_BYTES,
    LithopsTaskAddress,
    make_lithops_task,
)
from polarmap.worker.locations import BucketLocation
from polarmap.worker.pytree import get_layout
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import BlockRef, TaskReply, TaskRequest, to_plain_tuple

BLOCK = np.arange(2000.0)
STORED = BlockRef(BucketLocation("b"), (Segment("p/block/3", BLOCK.nbytes),), get_layout([BLOCK]))
TICKET = TaskRequest(3, 1, STORED, None, None)
ADDRESS: LithopsTaskAddress = {
    "bucket": "b",
    "key_prefix": "p",
    "niceness": 0,
    "driver_pid": None,
    "scratch_folder": None,
    "job_prefixes": (),
}


class Storage(DictStorage):
    """A storage in memory that holds the block and the liveness object of a running map."""

    def __init__(self) -> None:
        super().__init__()
        self.put_object("b", "p/block/3", BLOCK.tobytes())
        self.put_object("b", f"p/{LIVENESS_KEY}", b"")

    @property
    def results(self) -> set[str]:
        """The set of keys of the objects that workers have stored."""
        return {key for _, key in self.objects} - {"p/block/3", f"p/{LIVENESS_KEY}"}


@pytest.fixture(autouse=True)
def keep_this_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lithops_tasks, "exit_process_when", lambda *how: None)


def run_lithops_task(
    f: Any, storage: Storage, ticket: TaskRequest = TICKET, address: LithopsTaskAddress = ADDRESS
) -> tuple[TaskReply, bytes] | None:
    reply = make_lithops_task(f, ("array",))((to_plain_tuple(ticket), address), storage)
    return None if reply is None else (TaskReply(*pickle.loads(reply[0])), reply[1])


def test_results_of_cancelled_tasks_are_removed() -> None:
    storage = Storage()

    def f(block: Any) -> Any:
        storage.objects.pop(("b", f"p/{LIVENESS_KEY}"), None)
        return -block

    assert BLOCK.nbytes > MAX_STATUS_BYTES
    assert run_lithops_task(f, storage) is None
    assert storage.results == set()


def test_only_objects_and_folders_of_a_killed_driver_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The watcher removes the objects of the driver and of Lithops, or the folder that contains all of them.
    cleanups: list[Any] = []
    monkeypatch.setattr(lithops_tasks, "exit_process_when", lambda is_cancelled, end: cleanups.append(end))
    monkeypatch.setattr(lithops_tasks, "kill_job_and_clean_up", lambda remove_all, _seconds: remove_all())
    storage, scratch = Storage(), tmp_path / "scratch"
    for key in ("lithops.jobs/x-0-M000/00000/status.json", "lithops.jobs/y-0-M000/func", "p2/block/1"):
        storage.put_object("b", key, b"")
    (scratch / "below").mkdir(parents=True)
    here = {**ADDRESS, "driver_pid": os.getpid(), "job_prefixes": ["lithops.jobs/x-0-"]}
    for address in (here, {**here, "scratch_folder": str(scratch)}):
        run_lithops_task(np.sum, storage, address=address)
    cleanups[1]()
    assert (scratch.exists(), len(storage.objects)) == (False, 5)
    cleanups[0]()
    assert {key for _, key in storage.objects} == {"lithops.jobs/y-0-M000/func", "p2/block/1"}
