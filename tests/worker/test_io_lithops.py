"""A task of Lithops with a storage in memory."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.worker import io_lithops
from polarmap.worker.io_lithops import ALIVE, STATUS_BYTES, make_task
from polarmap.worker.messages import Reply, StoredBlock, Ticket, plain
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import layout_of

BLOCK = np.arange(2000.0)
STORED = StoredBlock(Place("bucket", "b"), (Part("p/block/3", BLOCK.nbytes),), layout_of([BLOCK]))
TICKET = Ticket(3, 1, STORED, None, None)
ADDRESS: dict[str, Any] = {"bucket": "b", "prefix": "p", "nice": 0}


class Storage(DictStorage):
    """With a map that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.put_object("b", "p/block/3", BLOCK.tobytes())
        self.put_object("b", f"p/{ALIVE}", b"")

    @property
    def results(self) -> set[str]:
        """What workers stored."""
        return {key for _, key in self.objects} - {"p/block/3", f"p/{ALIVE}"}


@pytest.fixture(autouse=True)
def nobody_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_lithops, "exit_when", lambda *how: None)


def sent(
    f: Any, storage: Storage, ticket: Ticket = TICKET, address: dict[str, Any] = ADDRESS
) -> tuple[Reply, bytes] | None:
    told = make_task(f, ("array",))((plain(ticket), address), storage)
    return None if told is None else (Reply(*pickle.loads(told[0])), told[1])


def test_what_nobody_waits_for_any_more_does_not_stay() -> None:
    storage = Storage()

    def f(block: Any) -> Any:
        storage.objects.pop(("b", f"p/{ALIVE}"), None)
        return -block

    assert BLOCK.nbytes > STATUS_BYTES
    assert sent(f, storage) is None
    assert storage.results == set()


def test_what_a_killed_driver_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its objects and those of Lithops, or the folder that holds them all."""
    found: list[Any] = []
    monkeypatch.setattr(io_lithops, "exit_when", lambda is_cancelled, end: found.append(end))
    monkeypatch.setattr(io_lithops, "end_job", lambda remove_all, _seconds: remove_all())
    storage, scratch = Storage(), tmp_path / "scratch"
    for key in ("lithops.jobs/x-0-M000/00000/status.json", "lithops.jobs/y-0-M000/func", "p2/block/1"):
        storage.put_object("b", key, b"")
    (scratch / "below").mkdir(parents=True)
    here = ADDRESS | {"driver": os.getpid(), "scratch": None, "jobs": ["lithops.jobs/x-0-"]}
    for address in (here, here | {"scratch": str(scratch)}):
        sent(np.sum, storage, address=address)
    found[1]()
    assert (scratch.exists(), len(storage.objects)) == (False, 5)
    found[0]()
    assert {key for _, key in storage.objects} == {"lithops.jobs/y-0-M000/func", "p2/block/1"}
