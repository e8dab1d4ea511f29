"""What travels comes back as it was, as plain tuples and as bytes."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest

from polarmap.worker.faults import Fault
from polarmap.worker.messages import (
    MESSAGE_CHARACTERS,
    Error,
    Reply,
    StoredBlock,
    Ticket,
    describe,
    parsed_reply,
    plain,
    reply_of_bytes,
    reply_of_parts,
)
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import layout_of, pack, unflatten
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
    assert classes_in(plain(ticket)) <= {tuple, str, int, float, bytes, type(None)}
    assert Ticket.parse(pickle.loads(pickle.dumps(plain(ticket)))) == ticket


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_travel_as_plain_tuples_and_as_bytes(reply: Reply) -> None:
    assert parsed_reply(pickle.loads(pickle.dumps(plain(reply)))) == reply
    data = reply.to_bytes()
    assert reply_of_bytes(data) == reply
    for few in (0, 7, 16, len(data) - 1):
        assert reply_of_bytes(data[:few]) is None


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


def travelled(error: BaseException) -> Error:
    reply = reply_of_bytes(Reply(0, 0, None, describe(error), 0.0, 1.0).to_bytes())
    assert reply is not None
    assert reply.error is not None
    return reply.error


def test_any_exception_can_be_described_and_travels() -> None:
    class HostileError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        def __reduce__(self) -> Any:
            raise RuntimeError

    error = HostileError()
    said = describe(error)
    assert said == Error("HostileError", "<its __str__ raised>", said.traceback, error)
    assert travelled(error) == said._replace(exception=None)
    long = travelled(ValueError("x" * (2 * MESSAGE_CHARACTERS)))
    assert len(long.message) == len(long.traceback) == MESSAGE_CHARACTERS
    assert isinstance(long.exception, bytes)
    assert isinstance(pickle.loads(long.exception), ValueError)


def test_one_that_would_come_back_as_another_does_not_travel() -> None:
    class Disguised(Exception):  # noqa: N818
        def __reduce__(self) -> Any:
            return ValueError, ("other",)

    class Odd(Exception):  # noqa: N818
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")

    for error in (Disguised("one"), Odd(1, 2), ValueError(threading.Lock())):
        assert travelled(error).exception is None


def test_what_pickle_refuses_travels_by_cloudpickle() -> None:
    class Mine(Exception):  # noqa: N818
        pass

    error = Mine("a", 2)
    error.more = [1, 2]  # type: ignore[attr-defined]
    data = travelled(error).exception
    assert isinstance(data, bytes)
    found = pickle.loads(data)
    assert (type(found), found.args, found.more) == (Mine, ("a", 2), [1, 2])


def test_results_of_all_types_travel() -> None:
    class Local(NamedTuple):
        a: Any

    trees = [
        1.0,
        Key(1, [np.float32(2)]),  # type: ignore[arg-type]
        Local({"x": np.zeros((2, 3))}),
        OrderedDict(b=True, a="x"),
        {(1, "a"): 1, None: 2, b"k": 3, 1 + 2j: 4, np.int64(7): 5, Key(1, 2): 6, frozenset("x"): 7},
        np.zeros(2, [("a", "i4"), ("b", "f8", (2,))]),
        np.array(["2001-01-01"], "M8[D]"),
    ]
    for tree in trees:
        reply = Reply(3, 1, pack(tree), None, 1.5, 2.5, None, (2, 0))
        header, data = reply.to_parts()
        came = reply_of_parts(bytearray(header), bytearray(data))
        assert came.result is not None
        assert came == reply_of_bytes(reply.to_bytes()) == reply
        found = unflatten(came.result.structure, came.result.unpack())
        assert type(found) is type(tree)
        assert str(found) == str(tree)


def test_arrays_lie_where_their_bytes_were_received() -> None:
    header, data = REPLIES[1].to_parts()
    received = bytearray(data)
    result = reply_of_parts(header, received).result
    assert result is not None
    [array] = result.unpack()
    array[0, 0] = 7.0
    assert received[:8] == np.float64(7.0).tobytes()
