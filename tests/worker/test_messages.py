"""What travels comes back as it was, as plain tuples and as bytes."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest

from polarmap.worker.faults import Fault
from polarmap.worker.messages import MESSAGE_CHARACTERS, Error, Reply, StoredBlock, Ticket, describe, plain
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import layout_of, pack
from polarmap.worker.stored_output import OutputSpec, StoredOutput


class Key(NamedTuple):
    first: int
    second: int


BLOCK = np.arange(6.0).reshape(2, 3)
STORED = StoredBlock(
    Place("bucket", "b", "minio"), (Part("x", 40), Part("y", 8, 1, 4)), ("array",), layout_of([BLOCK])
)
TICKETS = [
    Ticket(3, 1, None, None, None),
    Ticket(3, 1, STORED, Fault("sleep", 2.0), OutputSpec(Place("folder", "/f"), "p", 5), (1, 0)),
]
REPLIES = [
    Reply(3, 1, pack([1, BLOCK]), None, 1.0, 2.0, None, (4,)),
    Reply(3, 1, pack(BLOCK), None, 1.0, 2.0, StoredOutput((("<f8", (2, 3)),), (Part("x", 48, 7),))),
    Reply(3, 1, None, Error("ValueError", "no", "...", None), 1.0, 2.0),
]


@pytest.mark.parametrize("ticket", TICKETS)
def test_tickets_travel_as_plain_tuples(ticket: Ticket) -> None:
    assert classes_in(plain(ticket)) <= {tuple, str, int, float, type(None)}
    assert Ticket.parse(pickle.loads(pickle.dumps(plain(ticket)))) == ticket


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_travel_as_plain_tuples_and_as_bytes(reply: Reply) -> None:
    assert Reply.parse(pickle.loads(pickle.dumps(plain(reply)))) == reply
    data = reply.to_bytes()
    assert Reply.from_bytes(data) == reply
    for few in (0, 7, 8, len(data) - 1):
        assert Reply.from_bytes(data[:few]) is None


def test_named_tuples_of_the_caller_stay_as_they_are() -> None:
    structure = (dict, (Key(1, 2),), (("array",),))
    ticket = TICKETS[1]._replace(block=STORED._replace(structure=structure))
    block = Ticket.parse(plain(ticket)).block
    assert block is not None
    [key] = block.structure[1]
    assert key.second == 2


def classes_in(value: Any) -> set[type]:
    """Of a nested tuple and all in it."""
    inside = (classes_in(one) for one in value) if isinstance(value, tuple) else ()
    return {type(value)}.union(*inside)


def test_a_stored_block_is_its_parts_in_a_row() -> None:
    data = BLOCK.tobytes()
    parts = (Part("", 0, None, 0), Part("a", 24, None, 0), Part("a", 24, None, 24))
    block = StoredBlock(Place("folder", ""), parts, ("array",), layout_of([BLOCK]))
    loaded = block.load(lambda part: data[part.offset : part.offset + part.size])
    np.testing.assert_array_equal(loaded, BLOCK)
    loaded[...] = 0


def test_any_exception_can_be_described() -> None:
    class HostileError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        def __reduce__(self) -> Any:
            raise RuntimeError

    assert describe(HostileError()) == Error(
        "HostileError", "<its __str__ raised>", describe(HostileError()).traceback, None
    )
    long = describe(ValueError("x" * (2 * MESSAGE_CHARACTERS)))
    assert len(long.message) == len(long.traceback) == MESSAGE_CHARACTERS
    assert long.pickled is not None
    assert isinstance(pickle.loads(long.pickled), ValueError)
