"""The records that drivers and workers send each other, and the codec of those that travel pickled.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from polarmap.worker.locations import Location, location_from_fields
from polarmap.worker.pytree import Layout, Structure
from polarmap.worker.segments import Segment

MAX_ERROR_CHARACTERS = 10_000  # of an error, and of its traceback, that travel


class Record(Protocol):
    """A named tuple that `from_tuple` makes of what `to_plain_tuple` has made of it."""

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> Self: ...


R = TypeVar("R", bound=Record)


def encode_record(record: Record) -> bytes:
    """Return a record as it travels in a message to a worker, which needs no polarmap to unpickle it."""
    return pickle.dumps(to_plain_tuple(record), pickle.HIGHEST_PROTOCOL)


def decode_record(record_class: type[R], data: bytes | bytearray) -> R:
    """Return the record that `encode_record` wrote. Only for what comes from the driver: it is unpickled."""
    return record_class.from_tuple(pickle.loads(data))


def to_plain_tuple(record: Any) -> Any:
    """Return a record with its named tuples and locations as plain tuples, which any process can unpickle."""
    # Named tuples of the caller, which may be keys in a structure, stay as they are. An exception is
    # pickled by itself: one that cannot be unpickled spoils nothing else.
    if type(record) is ErrorInfo:
        return (*record[:3], _pickle_if_possible(record.exception))
    if isinstance(record, Location):
        return record.fields
    if type(record) is Fault:
        return (str(record.kind), *record[1:])
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


class FaultKind(StrEnum):
    """The kinds of faults that can be injected."""

    SLEEP = "sleep"  # the task sleeps before it computes
    RAISE = "raise"  # the task raises an exception
    EXIT = "exit"  # the process of the task ends itself
    KILL = "kill"  # the process of the task is killed by SIGKILL
    GARBAGE = "garbage"  # the result is wrong


FAULT_KINDS = tuple(FaultKind)


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


class JobHeader(NamedTuple):
    """The header of a JOB message: all that the tasks of a map have in common, besides f.

    result_folders : folders for large results; empty where driver and worker share none.
    output : where the tasks store their results, if they do.
    encryption : the fields of an `Encryption`; None without.
    environment : the pickled fields of a `ProcessEnvironment`; empty for that of the worker.
    block_set_id : the id by which the worker caches the blocks of the map; None if it does not.
    live_block_set_ids : the ids of all sets of blocks that the driver has.
    """

    result_folders: list[str]
    output: OutputSpec | None
    encryption: Any
    environment: bytes
    block_set_id: int | None
    live_block_set_ids: list[int]

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> JobHeader:
        """Return the header that `to_plain_tuple` made a plain tuple of."""
        result_folders, output, *rest = fields
        return cls(result_folders, output and OutputSpec.from_tuple(output), *rest)


class TaskOptions(NamedTuple):
    """The data of a TASK message. The message has none if both fields are None.

    n_data_rows : as in `TaskRequest`.
    """

    fault: Fault | None
    n_data_rows: int | None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> TaskOptions:
        """Return the options that `to_plain_tuple` made a plain tuple of."""
        fault, n_data_rows = fields
        return cls(fault and Fault(*fault), n_data_rows)


class ResultFileRef(NamedTuple):
    """The data of a reply whose result is in a file.

    folder_index : the index of its folder among the `result_folders` of the job.
    """

    folder_index: int
    file_name: str

    def encode(self) -> bytes:
        """Return the reference as text: nothing that a worker sends is unpickled for it."""
        return f"{self.folder_index}/{self.file_name}".encode()

    @classmethod
    def decode(cls, data: bytes) -> ResultFileRef:
        """Return the reference that `encode` wrote; ValueError for anything else."""
        folder_index, file_name = data.decode().split("/")
        return cls(int(folder_index), file_name)


class WorkerIdentity(NamedTuple):
    """The data of a HELLO message.

    machine : the address of the worker's machine, by which the engine knows it; empty if it has none.
    host : the name of the machine.
    label : what the engine calls the worker.
    """

    machine: str = ""
    host: str = ""
    label: str = ""

    def encode(self) -> bytes:
        """Return the fields as text, a line each: nothing that a worker sends is unpickled for it."""
        return "\n".join(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> WorkerIdentity:
        """Return the identity that `encode` wrote. Lines that are missing are empty."""
        return cls(*data.decode(errors="replace").split("\n", 2))


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
