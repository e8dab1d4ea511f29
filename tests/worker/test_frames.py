"""What a worker says is plain data: nothing in it can do anything."""

from __future__ import annotations

import json
import os
import struct
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest

from polarmap.worker.frames import LENGTHS, FrameError, Frames, frame, parsed_reply, plain_reply
from polarmap.worker.messages import Error, Reply
from polarmap.worker.parts import Part
from polarmap.worker.pytree import pack, unflatten
from polarmap.worker.stored_output import StoredOutput


class Pair(NamedTuple):
    """A container of the caller's."""

    a: Any
    b: Any


def travelled(reply: Reply) -> Reply:
    data = b"" if reply.result is None else reply.result.data
    [(fields, raw)] = Frames().of(frame(plain_reply(reply), data))
    return parsed_reply(fields, raw, {})


@pytest.mark.parametrize(
    "tree",
    [
        1.0,
        np.zeros((2, 3)),
        Pair(1, [np.float32(2)]),
        OrderedDict(b=True, a="x"),
        {(1, "a"): 1, None: 2, b"k": 3, 1 + 2j: 4, np.int64(7): 5, Pair(1, 2): 6, True: 7},
        np.zeros(2, [("a", "i4"), ("b", "f8", (2,))]),
        np.array(["2001-01-01"], "M8[D]"),
    ],
    ids=repr,
)
def test_results_of_all_types_travel(tree: Any) -> None:
    reply = Reply(3, 1, pack(tree), None, 1.5, 2.5, None, (2, 0))
    came = travelled(reply)
    assert came.result is not None
    assert reply.result is not None
    assert came.result.structure == reply.result.structure
    assert came._replace(result=None) == reply._replace(result=None)
    found = unflatten(came.result.structure, came.result.unpack())
    assert type(found) is type(tree)
    assert str(found) == str(tree)
    if isinstance(tree, dict):
        assert [*map(type, found)] == [*map(type, tree)]


def test_errors_and_stored_results_travel() -> None:
    stored = StoredOutput((("<f8", (3,)),), (Part("a/b", 24, 7, 0),))
    for reply in (
        Reply(0, 0, None, Error("ValueError", "\ud800", "trace", None), 0.0, float("inf")),
        Reply(0, 0, pack(1.0)._replace(structure=("sample", (3,), ("array",))), None, 0.0, 1.0, stored),
    ):
        came = travelled(reply)
        assert came._replace(result=None) == reply._replace(result=None)
        assert (came.result is None) == (reply.result is None)


def test_no_pickle_of_an_exception_travels() -> None:
    came = travelled(Reply(0, 0, None, Error("E", "m", "t", b"pickled"), 0.0, 1.0))
    assert came.error == Error("E", "m", "t", None)


@pytest.mark.parametrize(
    "structure",
    [[["os", "system"], [], []], [["subprocess", "Popen"], [], []], [["nowhere", "x"], [], []], [1], {}, 3],
)
def test_only_containers_can_be_named(structure: Any) -> None:
    fields = {"task": 0, "attempt": 0, "started": 0, "ended": 1, "subtasks": [], "layout": []}
    with pytest.raises(FrameError):
        parsed_reply({**fields, "structure": structure}, b"", {})


@pytest.mark.parametrize("fields", [None, 3, [], {}, {"task": "x"}, {"task": 0, "attempt": 0, "started": []}])
def test_what_is_no_reply_is_refused(fields: Any) -> None:
    with pytest.raises(FrameError):
        parsed_reply(fields, b"", {})


def test_bytes_that_are_no_messages_are_refused() -> None:
    for sent in (
        struct.pack(LENGTHS, 2**31, 0),
        struct.pack(LENGTHS, 0, 2**60),
        struct.pack(LENGTHS, 3, 0) + b"{]}",
        struct.pack(LENGTHS, 10**6, 0) + b"[" * 10**6,
        os.urandom(64),
    ):
        with pytest.raises(FrameError):
            list(Frames().of(sent + bytes(2**16)))


def test_messages_may_come_in_any_pieces() -> None:
    sent = b"".join(frame({"number": number}, bytes(number)) for number in range(20))
    for step in (1, 7, len(sent)):
        frames = Frames()
        found = [one for start in range(0, len(sent), step) for one in frames.of(sent[start : start + step])]
        assert found == [({"number": number}, bytearray(number)) for number in range(20)]
    assert json.loads(json.dumps({"number": 1})) == found[1][0]
