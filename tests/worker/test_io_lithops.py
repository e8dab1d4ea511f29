"""A task of Lithops with a storage in memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.worker import io_lithops
from polarmap.worker.io_lithops import INLINE_BYTES, Address, make_task
from polarmap.worker.messages import Reply, StoredBlock, Ticket, parsed_reply, plain, reply_of_bytes
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import layout_of, pack

BLOCK = np.arange(1000.0)
STORED = StoredBlock(Place("bucket", "b"), (Part("p/block/3", BLOCK.nbytes),), ("array",), layout_of([BLOCK]))
TICKET = Ticket(3, 1, STORED, None, None)
ADDRESS = Address("b", "p", is_fresh=False)


class Storage(DictStorage):
    """With a map that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.put_object("b", "p/block/3", BLOCK.tobytes())
        self.put_object("b", ADDRESS.liveness_key, b"")

    @property
    def results(self) -> set[str]:
        """What workers stored."""
        return {key for _, key in self.objects} - {"p/block/3", ADDRESS.liveness_key}


@pytest.fixture(autouse=True)
def nobody_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_lithops, "exit_when", lambda is_cancelled: None)
    monkeypatch.setattr(io_lithops, "exit_with_driver", lambda driver, scratch: None)


def sent(f: Any, storage: Storage, ticket: Ticket = TICKET, address: Address = ADDRESS) -> Reply | None:
    fields = make_task(f)((plain(ticket), tuple(address)), storage)
    return None if fields is None else parsed_reply(fields)


def test_a_small_result_travels_with_the_reply() -> None:
    storage = Storage()
    reply = sent(np.sum, storage)
    assert reply is not None
    assert reply.result == pack(np.sum(BLOCK))
    assert storage.results == set()


def test_a_large_result_is_an_object() -> None:
    storage = Storage()
    reply = sent(np.negative, storage)
    assert BLOCK.nbytes > INLINE_BYTES
    assert reply is not None and reply.result is not None
    assert (reply.result.layout, bytes(reply.result.data)) == (layout_of([BLOCK]), b"")
    assert storage.objects["b", ADDRESS.result_key(3, 1)] == (-BLOCK).tobytes()


def test_pieces_are_objects_too() -> None:
    storage = Storage()
    reply = sent(np.negative, storage, TICKET._replace(subtask_order=(1, 0)))
    assert reply is not None
    assert reply.subtasks == (0,)
    first = reply_of_bytes(storage.objects["b", ADDRESS.subtask_key(3, 1, 1)])
    assert first is not None
    assert first.result == pack([-BLOCK[500:]])


def test_what_nobody_waits_for_any_more_does_not_stay() -> None:
    storage = Storage()

    def f(block: Any) -> Any:
        storage.objects.pop(("b", ADDRESS.liveness_key), None)
        return -block

    sent(f, storage)
    sent(f, storage, TICKET._replace(subtask_order=(1, 0)))
    assert storage.results == set()


def test_a_block_may_come_later_if_it_is_fresh() -> None:
    storage = Storage()
    data = storage.objects.pop(("b", "p/block/3"))
    reply = sent(np.sum, storage)
    assert reply is not None and reply.error is not None
    assert reply.error.type == "DamagedError"
    threading.Timer(0.1, storage.put_object, ("b", "p/block/3", data)).start()
    late = sent(np.sum, storage, address=ADDRESS._replace(is_fresh=True))
    assert late is not None
    assert late.result == pack(np.sum(BLOCK))


def test_one_copy_of_an_attempt_runs(tmp_path: Path) -> None:
    address = ADDRESS._replace(driver=os.getpid(), locks=str(tmp_path))
    assert sent(np.sum, Storage(), address=address) is not None
    assert sent(np.sum, Storage(), address=address) is None
    assert (tmp_path / "3-1").read_text() == str(os.getpid())
    assert sent(np.sum, Storage(), TICKET._replace(attempt=2), address) is not None
