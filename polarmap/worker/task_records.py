"""Records that drivers and workers send each other, and their serialization as plain tuples.

`TaskRequest` describes an attempt, `BlockRef` its block, and `TaskReply` its result or error. They are
sent as plain tuples, so that a process without polarmap can unpickle them. Runs on workers too: imports numpy
at most.
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

MAX_ERROR_CHARACTERS = 10_000  # maximum length of an error message, and of its traceback, in a reply


class Record(Protocol):
    """A named tuple that `from_tuple` restores from the result of `to_plain_tuple`."""

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> Self: ...


R = TypeVar("R", bound=Record)


def encode_record(record: Record) -> bytes:
    """Return a record as bytes for a message to a worker, which needs no polarmap to unpickle them."""
    return pickle.dumps(to_plain_tuple(record), pickle.HIGHEST_PROTOCOL)


def decode_record(record_class: type[R], data: bytes | bytearray) -> R:
    """Return the record that `encode_record` wrote. Pass bytes of the driver only: they are unpickled."""
    return record_class.from_tuple(pickle.loads(data))


def to_plain_tuple(record: Any) -> Any:
    """Return a record with its named tuples and locations as plain tuples, which any process can unpickle."""
    # Named tuples of the user, which may be keys in a structure, are not converted. An exception is pickled
    # separately, so that the rest of the record can be read even if the exception cannot be unpickled.
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
    """A reference to a block: the location of its segments, or the bytes themselves.

    Attributes
    ----------
    location : Location
        Where the segments are stored.
    segments : tuple of Segment
        Their concatenated bytes are the block. Empty if the block has `data`.
    layout : tuple
        The dtype and shape of each array of the block.
    data : bytes or None
        The bytes of a block that is sent with its task; None for any other block.
    """

    location: Location
    segments: tuple[Segment, ...]
    layout: Layout
    data: bytes | None = None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> BlockRef:
        """Return the reference that `to_plain_tuple` has converted."""
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
    kind : str
        "sleep" (for `seconds`), "raise", "exit", "kill" (SIGKILL) or "garbage" (a wrong result).
    seconds : float
        How long the task sleeps before it computes, for "sleep".
    attempts : int
        The number of attempts of the task into which the fault is injected.
    """

    kind: str
    seconds: float = 0.0
    attempts: int = 1


class OutputSpec(NamedTuple):
    """Where tasks store their results. Only a sample of a stored result is sent to the driver.

    Attributes
    ----------
    location : Location
        A folder or bucket.
    prefix : str
        Prefix of the keys: array i of a result is stored as the object `prefix/task-attempt/i`.
    max_segment_items : int
        Maximum number of items in a segment. Counting items instead of bytes divides results of different
        dtypes alike. A segment holds items of one array only.
    n_arrays : int
        The number of arrays of a result.
    """

    location: Location
    prefix: str
    max_segment_items: int
    n_arrays: int = 1

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> OutputSpec:
        """Return the specification that `to_plain_tuple` has converted."""
        location, *rest = fields
        return cls(location_from_fields(location), *rest)

    def make_object_key(self, task: int, attempt: int, array_index: int) -> str:
        """Return the key under which an attempt stores one array of its result."""
        return f"{self.prefix}/{task}-{attempt}/{array_index}"


class JobHeader(NamedTuple):
    """The header of a JOB message: everything that the tasks of a job have in common, except f.

    Attributes
    ----------
    result_folders : list of str
        Folders for large results; empty if driver and worker share no folder.
    output : OutputSpec or None
        Where tasks store their results. None: results are sent to the driver.
    encryption : tuple or None
        The fields of an `Encryption`; None if replies are not encrypted.
    environment : bytes
        The pickled fields of a `ProcessEnvironment`; empty to keep that of the worker.
    block_set_id : int or None
        The id of the set of blocks with which cached bytes are evicted. None: until room is needed.
    live_block_set_ids : list of int
        The ids of all sets of blocks that the driver still has.
    """

    result_folders: list[str]
    output: OutputSpec | None
    encryption: Any
    environment: bytes
    block_set_id: int | None
    live_block_set_ids: list[int]

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> JobHeader:
        """Return the header that `to_plain_tuple` has converted."""
        result_folders, output, *rest = fields
        return cls(result_folders, output and OutputSpec.from_tuple(output), *rest)


class TaskOptions(NamedTuple):
    """The data of a TASK message, which are empty if both fields are None. See `TaskRequest`."""

    fault: Fault | None
    n_data_rows: int | None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> TaskOptions:
        """Return the options that `to_plain_tuple` has converted."""
        fault, n_data_rows = fields
        return cls(fault and Fault(*fault), n_data_rows)


class ResultFileRef(NamedTuple):
    """The data of a reply whose result is in a file.

    Attributes
    ----------
    folder_index : int
        The index of the folder in the `result_folders` of the job.
    file_name : str
        The name of the file in that folder.
    """

    folder_index: int
    file_name: str

    def encode(self) -> bytes:
        """Return the reference as text, which the driver can parse without unpickling."""
        return f"{self.folder_index}/{self.file_name}".encode()

    @classmethod
    def decode(cls, data: bytes) -> ResultFileRef:
        """Return the reference that `encode` wrote; raise ValueError for anything else."""
        folder_index, file_name = data.decode().split("/")
        return cls(int(folder_index), file_name)


class WorkerIdentity(NamedTuple):
    """The data of a HELLO message: where a worker runs.

    Attributes
    ----------
    machine : str
        The address by which the cluster engine identifies the machine; empty if it has none.
    host : str
        The host name of the machine.
    label : str
        The name of the worker in the cluster engine.
    """

    machine: str = ""
    host: str = ""
    label: str = ""

    def encode(self) -> bytes:
        """Return the fields as lines of text, which the driver can parse without unpickling."""
        return "\n".join(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> WorkerIdentity:
        """Return the identity that `encode` wrote. Missing lines become empty fields."""
        return cls(*data.decode(errors="replace").split("\n", 2))


class ResultRef(NamedTuple):
    """A reference to a result that is stored.

    Attributes
    ----------
    layout : tuple
        The dtype and shape of each of its arrays.
    segments : tuple of Segment
        Their concatenated bytes are the bytes of the arrays.
    """

    layout: tuple[tuple[str, tuple[int, ...]], ...]
    segments: tuple[Segment, ...]


class TaskRequest(NamedTuple):
    """The description of one attempt of a task, a few hundred bytes when it is sent to a worker.

    Attributes
    ----------
    task, attempt : int
        The index of the task, and the number of the attempt, from 0 on.
    block_ref : BlockRef or None
        The block to read; None if the block itself is sent with the request.
    fault : Fault or None
        The fault to inject into this attempt.
    output : OutputSpec or None
        Where to store the result; None to send it to the driver.
    encryption : tuple or None
        The fields of an `Encryption` for the reply; None for no encryption.
    n_data_rows : int or None
        The number of rows before the padding, if f is also to be called without the padding.
    """

    task: int
    attempt: int
    block_ref: BlockRef | None
    fault: Fault | None
    output: OutputSpec | None
    encryption: Any = None
    n_data_rows: int | None = None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> TaskRequest:
        """Return the request that `to_plain_tuple` has converted."""
        task, attempt, block, fault, output, *rest = fields
        block, fault = block and BlockRef.from_tuple(block), fault and Fault(*fault)
        return cls(task, attempt, block, fault, output and OutputSpec.from_tuple(output), *rest)


class ErrorInfo(NamedTuple):
    """An exception as text, and the exception itself: pickled in a reply, None if it cannot be pickled."""

    type: str
    message: str
    traceback: str
    exception: BaseException | bytes | None


class UnusableWorkerError(Exception):
    """Raised if a worker fails for a reason other than f: its task is lost, and the worker is replaced."""


class TaskReply(NamedTuple):
    """The header of a reply: metadata of a result, whose bytes are sent as data, or an error.

    Attributes
    ----------
    error : ErrorInfo or None
        What the task has raised; None if it has returned a result.
    seconds : float
        How long the task took on the worker.
    structure, layout : tuple
        The structure and layout of the data: of the result, or of a sample of a stored result.
    result_ref : tuple or None
        Layout and segments of a stored result; None if the result is sent whole.
    host : str
        The name of the worker's machine if the driver does not know it, otherwise empty.
    """

    error: ErrorInfo | None
    seconds: float
    structure: Structure = ()
    layout: Layout = ()
    result_ref: tuple[Layout, tuple[Segment, ...]] | None = None
    host: str = ""


def pickle_value(value: Any) -> bytes:
    """Return a pickle of a value, with cloudpickle if pickle cannot serialize it."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # For example, a class that is defined in a function or a notebook.
        from cloudpickle import dumps

        return bytes(dumps(value))


def describe_error(error: BaseException) -> ErrorInfo:
    """Return an exception in a form that can always be sent, even if its own methods raise."""
    message = _call_or_default(lambda error: str(error)[:MAX_ERROR_CHARACTERS], error, "<its __str__ raised>")
    text = _call_or_default(_format_traceback, error, message)
    return ErrorInfo(type(error).__name__, message, text, error)


def _call_or_default(function: Callable[[BaseException], str], error: BaseException, default: str) -> str:
    """Return `function(error)`, or `default` if the methods of the user's exception raise."""
    try:
        return function(error)
    except BaseException:
        return default


def _format_traceback(error: BaseException) -> str:
    """Return the traceback from the first frame outside polarmap on, cut at its beginning if it is long."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("polarmap."):
        trace = trace.tb_next
    text = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return "".join(text)[-MAX_ERROR_CHARACTERS:]


def _pickle_if_possible(error: BaseException | bytes | None) -> bytes | None:
    """Return a pickled exception, or None if unpickling does not restore an exception of the same type."""
    if not isinstance(error, BaseException):
        return error
    try:
        data = pickle_value(error)
        return data if type(pickle.loads(data)) is type(error) else None
    except BaseException:
        return None
