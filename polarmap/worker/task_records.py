"""What drivers and workers tell each other: a Ticket goes out, a Reply comes back. Plain data.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from polarmap.worker.locations import Location, location_from_fields
from polarmap.worker.pytree import Layout, Structure
from polarmap.worker.segments import Segment

MAX_ERROR_CHARACTERS = 10_000  # of an error, and of its traceback, that travel
FAULT_KINDS = ("sleep", "raise", "exit", "kill", "garbage")


def to_plain_tuple(record: Any) -> Any:
    """Return a record with its named tuples and locations as plain tuples, which any process can unpickle."""
    # Named tuples of the caller, which may be keys in a structure, stay as they are. An exception is
    # pickled by itself: one that cannot be unpickled spoils nothing else.
    if type(record) is ErrorInfo:
        return (*record[:3], _pickle_if_possible(record.exception))
    if isinstance(record, Location):
        return record.fields
    if type(record) is tuple or type(record).__module__.startswith("polarmap.worker."):
        return tuple(
            [to_plain_tuple(field) if isinstance(field, (tuple, Location)) else field for field in record]
        )
    return record


class BlockRef(NamedTuple):
    """What a worker needs to read its block: the segments and their location, or the bytes themselves."""

    # segments : whose bytes in a row are the block; none if it has `data`.
    # layout : dtype and shape of each array of the block.
    # data : the bytes of a block that travels with its task; None for any other.

    location: Location
    segments: tuple[Segment, ...]
    layout: Layout
    data: bytes | None = None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> BlockRef:
        """One from what `to_plain_tuple` made of it."""
        location, segments, *rest = fields
        return cls(location_from_fields(location), tuple([Segment(*segment) for segment in segments]), *rest)


class Fault(NamedTuple):
    """A fault to inject into a task: for tests, demonstrations and benchmarks.

    Attributes
    ----------
    kind
        "sleep" (for `seconds`), "raise", "exit", "kill" (SIGKILL) or "garbage" (a wrong result).
    attempts
        How many attempts of the task suffer it.
    """

    kind: str
    seconds: float = 0.0
    attempts: int = 1


class OutputSpec(NamedTuple):
    """Where each task stores its result, of which only a sample then travels."""

    # source : a folder or bucket.
    # prefix : of the keys; an array of a result is the object `prefix/task-attempt/number`.
    # items : numbers in a part at most, so that results of different dtypes are cut alike; a part holds
    #     numbers of one array only.
    # arrays : how many a result consists of.

    location: Location
    prefix: str
    max_segment_items: int
    n_arrays: int = 1

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> OutputSpec:
        """One from what `to_plain_tuple` made of it."""
        location, *rest = fields
        return cls(location_from_fields(location), *rest)

    def make_object_key(self, task: int, attempt: int, array_index: int) -> str:
        """Of an array that an attempt at a task has given."""
        return f"{self.prefix}/{task}-{attempt}/{array_index}"


class ResultRef(NamedTuple):
    """A result that lies in storage.

    layout : dtype and shape of each of its arrays.
    segments : their bytes in a row.
    """

    layout: tuple[tuple[str, tuple[int, ...]], ...]
    segments: tuple[Segment, ...]


class TaskRequest(NamedTuple):
    """What a worker is told of one attempt of a task, a few hundred bytes."""

    # block : what to read; None if the block comes with the ticket.
    # fault : that this attempt suffers.
    # output : where to store the result instead of sending it.
    # encryption : its fields, of replies.
    # rows : of data, if rows of zeros fill the block up and f is to be evaluated without these, too.

    task: int
    attempt: int
    block_ref: BlockRef | None
    fault: Fault | None
    output: OutputSpec | None
    encryption: Any = None
    n_data_rows: int | None = None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> TaskRequest:
        """One from what `to_plain_tuple` made of it."""
        task, attempt, block, fault, output, *rest = fields
        block, fault = block and BlockRef.from_tuple(block), fault and Fault(*fault)
        return cls(task, attempt, block, fault, output and OutputSpec.from_tuple(output), *rest)


class ErrorInfo(NamedTuple):
    """An exception as plain text, and itself: pickled once it has travelled, None if it cannot."""

    type: str
    message: str
    traceback: str
    exception: BaseException | bytes | None


class UnusableWorkerError(Exception):
    """A worker failed at what is not f's: its task is lost, and it is replaced."""


class TaskReply(NamedTuple):
    """What a task reports: of a result, whose bytes travel beside, or of an error."""

    # seconds : that the worker spent.
    # stored : layout and parts of the result, if it stays in storage and a sample of it travels.
    # host : name of the worker's machine, if the driver cannot know it otherwise.

    error: ErrorInfo | None
    seconds: float
    structure: Structure = ()
    layout: Layout = ()
    result_ref: tuple[Layout, tuple[Segment, ...]] | None = None
    host: str = ""


def pickle_value(value: Any) -> bytes:
    """A value as bytes."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # what is defined in a function or a notebook
        from cloudpickle import dumps

        return bytes(dumps(value))


def describe_error(error: BaseException) -> ErrorInfo:
    """An exception in a form that always travels, whatever its own methods do."""
    message = _call_or_default(lambda error: str(error)[:MAX_ERROR_CHARACTERS], error, "<its __str__ raised>")
    text = _call_or_default(_format_traceback, error, message)
    return ErrorInfo(type(error).__name__, message, text, error)


def _call_or_default(function: Callable[[BaseException], str], error: BaseException, default: str) -> str:
    """What the caller's own code gives, if it gives anything."""
    try:
        return function(error)
    except BaseException:
        return default


def _format_traceback(error: BaseException) -> str:
    """From the first line on that is not ours; its end, where the error stands, if it is long."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("polarmap."):
        trace = trace.tb_next
    text = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return "".join(text)[-MAX_ERROR_CHARACTERS:]


def _pickle_if_possible(error: BaseException | bytes | None) -> bytes | None:
    """An exception pickled; None for one that does not come back as it was."""
    if not isinstance(error, BaseException):
        return error
    try:
        data = pickle_value(error)
        return data if type(pickle.loads(data)) is type(error) else None
    except BaseException:
        return None
