"""Tests that records are restored from the plain tuples in which they are sent."""

from __future__ import annotations

import pickle
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest

from polarmap.worker.locations import BucketLocation, FolderLocation
from polarmap.worker.pytree import get_layout
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import (
    MAX_ERROR_CHARACTERS,
    BlockRef,
    ErrorInfo,
    Fault,
    FaultKind,
    JobHeader,
    OutputSpec,
    ResultFileRef,
    TaskOptions,
    TaskReply,
    TaskRequest,
    WorkerIdentity,
    decode_record,
    describe_error,
    encode_record,
    pickle_value,
    to_plain_tuple,
)


class Key(NamedTuple):
    first: int
    second: int


BLOCK = np.arange(6.0).reshape(2, 3)
STORED = BlockRef(
    BucketLocation("b", "minio"), (Segment("x", 40), Segment("y", 8, 1, 4)), get_layout([BLOCK])
)
TICKETS = [
    TaskRequest(3, 1, None, None, None),
    TaskRequest(3, 1, STORED, Fault("sleep", 2.0), OutputSpec(FolderLocation("/f"), "p", 5), (1, 0)),
]


@pytest.mark.parametrize("ticket", TICKETS)
def test_tickets_are_sent_as_plain_tuples(ticket: TaskRequest) -> None:
    assert collect_classes(to_plain_tuple(ticket)) <= {tuple, str, int, float, bytes, type(None)}
    assert TaskRequest.from_tuple(pickle.loads(pickle.dumps(to_plain_tuple(ticket)))) == ticket


def test_named_tuples_of_the_caller_are_unchanged() -> None:
    [key] = round_trip(TaskReply(None, 1.0, (dict, (Key(1, 2),), (("array",),)))).structure[1]
    assert key.second == 2


def collect_classes(value: Any) -> set[type]:
    """Return the classes of a nested tuple and of all values in it."""
    inside = (collect_classes(item) for item in value) if isinstance(value, tuple) else ()
    return {type(value)}.union(*inside)


def round_trip(reply: TaskReply) -> TaskReply:
    came = TaskReply(*pickle.loads(bytearray(pickle_value(to_plain_tuple(reply)))))
    return came if came.error is None else came._replace(error=ErrorInfo(*came.error))


def round_trip_error(error: BaseException) -> ErrorInfo:
    came = round_trip(TaskReply(describe_error(error), 1.0)).error
    assert came is not None
    return came


def test_any_exception_can_be_described_and_sent() -> None:
    class HostileError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        def __reduce__(self) -> Any:
            raise RuntimeError

    error = HostileError()
    error_info = describe_error(error)
    assert error_info == ErrorInfo("HostileError", "<its __str__ raised>", error_info.traceback, error)
    assert round_trip_error(error) == error_info._replace(exception=None)
    long = round_trip_error(ValueError("x" * (2 * MAX_ERROR_CHARACTERS)))
    assert len(long.message) == len(long.traceback) == MAX_ERROR_CHARACTERS
    assert isinstance(long.exception, bytes)
    assert isinstance(pickle.loads(long.exception), ValueError)


def test_an_exception_that_would_be_restored_differently_is_not_sent() -> None:
    class Disguised(Exception):  # noqa: N818
        def __reduce__(self) -> Any:
            return ValueError, ("other",)

    class Odd(Exception):  # noqa: N818
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")

    class Trap(Exception):  # noqa: N818
        def __reduce__(self) -> Any:
            return sys.exit, (7,)

    class Interrupting(Exception):  # noqa: N818
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    for error in (Disguised("one"), Odd(1, 2), ValueError(threading.Lock()), Trap(), Interrupting()):
        assert round_trip_error(error).exception is None


@pytest.mark.parametrize("output", [None, OutputSpec(BucketLocation("b"), "p", 4)])
def test_a_header_arrives_as_it_was_sent_without_classes_of_polarmap(output: OutputSpec | None) -> None:
    header = JobHeader(["/a", "/b"], output, None, b"environment", 7, [7, 8])
    data = encode_record(header)
    assert b"polarmap" not in data
    assert decode_record(JobHeader, data) == header


@pytest.mark.parametrize("kind", ["sleep", FaultKind.SLEEP])
def test_options_of_a_task_arrive_without_classes_of_polarmap(kind: str) -> None:
    options = TaskOptions(Fault(kind, 1.0), 3)
    data = encode_record(options)
    assert b"polarmap" not in data
    assert decode_record(TaskOptions, data) == options


@pytest.mark.parametrize("data", [b"", b"10.0.0.1", b"\nhost\nlabel\nof two lines", b"\xff\xfe\n"])
def test_any_identity_that_a_worker_sends_is_parsed(data: bytes) -> None:
    assert len(WorkerIdentity.decode(data)) == 3
    identity = WorkerIdentity("10.0.0.1", "host", "place\nof two lines")
    assert WorkerIdentity.decode(identity.encode()) == identity


def test_the_name_of_a_result_file_arrives_as_it_was_sent() -> None:
    assert ResultFileRef.decode(ResultFileRef(1, "7-1").encode()) == ResultFileRef(1, "7-1")
    with pytest.raises(ValueError, match="not enough values"):
        ResultFileRef.decode(b"no reference")
