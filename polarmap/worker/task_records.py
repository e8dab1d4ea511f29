"""Records that drivers and workers send each other, and their serialization as plain tuples.

`TaskRequest` describes an attempt (one run of a task), `BlockRef` its data block, and `TaskReply` its result
or error. They are sent as plain tuples, so that a process without polarmap can unpickle them. This module
also runs on workers, so it imports at most numpy.
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

MAX_ERROR_CHARACTERS = 10_000  # maximum length of an error message or a traceback in a worker's reply


class Record(Protocol):
    """The interface of records: named tuples that drivers and workers send each other as plain tuples.

    The class method `from_tuple` is the inverse of `to_plain_tuple`.
    """

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> Self: ...


R = TypeVar("R", bound=Record)


def encode_record(record: Record) -> bytes:
    """Pickle a record for a worker, which can unpickle it even without polarmap."""
    return pickle.dumps(to_plain_tuple(record), pickle.HIGHEST_PROTOCOL)


def decode_record(record_class: type[R], data: bytes | bytearray) -> R:
    """Restore a record that `encode_record` has pickled.

    Unpickling can run arbitrary code, so `data` must come from the driver.
    """
    return record_class.from_tuple(pickle.loads(data))


def to_plain_tuple(record: Any) -> Any:
    """Convert a record to a plain tuple, so that a process without polarmap can unpickle it.

    Named tuples and locations inside the record are converted, too.
    """
    # Named tuples of other modules are returned unchanged, because they may be values of the user, such as
    # dict keys. Exceptions are pickled separately, so that the driver can read the rest of a record even if
    # it cannot unpickle the exception.
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
    """A reference to a data block, from which a worker loads the block.

    Attributes
    ----------
    location : Location
        Where the block is stored.
    segments : tuple of Segment
        The stored byte ranges that, concatenated, are the bytes of the block. Empty if `data` is given.
    layout : tuple
        The dtype and shape of each array of the block.
    data : bytes or None
        The bytes of the block itself; None if the block is stored.
    """

    location: Location
    segments: tuple[Segment, ...]
    layout: Layout
    data: bytes | None = None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> BlockRef:
        """Restore a reference from the plain tuple that `to_plain_tuple` has returned."""
        location, segments, *rest = fields
        return cls(location_from_fields(location), tuple([Segment(*segment) for segment in segments]), *rest)


class FaultKind(StrEnum):
    """The kinds of faults that can be injected into a task, to simulate slow and failing workers."""

    SLEEP = "sleep"  # The task sleeps before it computes.
    RAISE = "raise"  # The task raises an exception.
    EXIT = "exit"  # The process that runs the task exits.
    KILL = "kill"  # The process that runs the task is killed by SIGKILL.
    GARBAGE = "garbage"  # The task returns a wrong result.


FAULT_KINDS = tuple(FaultKind)


class Fault(NamedTuple):
    """A fault to inject into a task, to simulate a slow or failing worker in tests and benchmarks.

    Attributes
    ----------
    kind : str
        "sleep", "raise" (raise an exception), "exit" (exit the process), "kill" (kill the process by SIGKILL)
        or "garbage" (return a wrong result).
    seconds : float
        How long the task sleeps if the kind is "sleep".
    attempts : int
        How many attempts of the task have this fault. Later attempts run normally.
    """

    kind: str
    seconds: float = 0.0
    attempts: int = 1


class OutputSpec(NamedTuple):
    """A specification of where tasks store their results, instead of sending them to the driver.

    The driver (the process that runs the user's program) then receives only a small sample of each result.

    Attributes
    ----------
    location : Location
        The folder or bucket in which results are stored.
    prefix : str
        The prefix of the keys. Array i of a result is stored under the key `prefix/task-attempt/i`.
    max_segment_items : int
        The maximum number of array entries in a segment (a byte range that is read separately). It does not
        count bytes, so that results with different dtypes are divided in the same way.
    n_arrays : int
        The number of arrays of each result.
    """

    location: Location
    prefix: str
    max_segment_items: int
    n_arrays: int = 1

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> OutputSpec:
        """Restore a specification from the plain tuple that `to_plain_tuple` has returned."""
        location, *rest = fields
        return cls(location_from_fields(location), *rest)

    def make_object_key(self, task: int, attempt: int, array_index: int) -> str:
        """Return the key under which one run of a task stores an array of its result."""
        return f"{self.prefix}/{task}-{attempt}/{array_index}"


class JobHeader(NamedTuple):
    """The settings shared by all tasks of a job (one parallel map), as the header of a JOB message.

    The driver sends a JOB message to a worker before the first task of the job.

    Attributes
    ----------
    result_folders : list of str
        Folders through which the worker can pass large results to the driver. Empty if they share no folder.
    output : OutputSpec or None
        Where tasks store their results; None if results are sent to the driver.
    encryption : tuple or None
        The fields of an `Encryption` for replies; None if replies are not encrypted.
    environment : bytes
        The working directory, `sys.path` and variables of the driver, as the pickled fields of a
        `ProcessEnvironment`. Empty if the worker keeps its own.
    block_set_id : int or None
        The id of the set of blocks (the blocks of one data set) that the job uses. The worker evicts these
        blocks once the set no longer exists. If None, it evicts them only to make room.
    live_block_set_ids : list of int
        The ids of all sets of blocks that exist on the driver.
    """

    result_folders: list[str]
    output: OutputSpec | None
    encryption: Any
    environment: bytes
    block_set_id: int | None
    live_block_set_ids: list[int]

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> JobHeader:
        """Restore a header from the plain tuple that `to_plain_tuple` has returned."""
        result_folders, output, *rest = fields
        return cls(result_folders, output and OutputSpec.from_tuple(output), *rest)


class TaskOptions(NamedTuple):
    """Rarely used options of a task: the fields `fault` and `n_data_rows` of a `TaskRequest`.

    These options form the data of a TASK message. If both fields are None, the message has no data.
    """

    fault: Fault | None
    n_data_rows: int | None

    @classmethod
    def from_tuple(cls, fields: tuple[Any, ...]) -> TaskOptions:
        """Restore options from the plain tuple that `to_plain_tuple` has returned."""
        fault, n_data_rows = fields
        return cls(fault and Fault(*fault), n_data_rows)


class ResultFileRef(NamedTuple):
    """A reference to a file with a large result, sent to the driver instead of the result itself.

    Attributes
    ----------
    folder_index : int
        The index of the folder in `JobHeader.result_folders`.
    file_name : str
        The name of the file in that folder.
    """

    folder_index: int
    file_name: str

    def encode(self) -> bytes:
        """Return the reference as text, not as a pickle, because the driver does not unpickle it."""
        return f"{self.folder_index}/{self.file_name}".encode()

    @classmethod
    def decode(cls, data: bytes) -> ResultFileRef:
        """Decode a reference that `encode` has encoded. Raises ValueError if the bytes are invalid."""
        folder_index, file_name = data.decode().split("/")
        return cls(int(folder_index), file_name)


class WorkerIdentity(NamedTuple):
    """A worker's machine and name, which it sends to the driver in its first message.

    Attributes
    ----------
    machine : str
        The address by which the cluster (Dask or Ray) identifies the machine; empty if there is none.
    host : str
        The host name of the machine.
    label : str
        The name of the worker in the cluster.
    """

    machine: str = ""
    host: str = ""
    label: str = ""

    def encode(self) -> bytes:
        """Return the fields as lines of text, not as a pickle, because the driver does not unpickle them."""
        return "\n".join(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> WorkerIdentity:
        """Decode an identity that `encode` has encoded. Missing lines become empty fields."""
        return cls(*data.decode(errors="replace").split("\n", 2))


class ResultRef(NamedTuple):
    """A reference to a result that a task has stored.

    Attributes
    ----------
    layout : tuple
        The dtype and shape of each array of the result.
    segments : tuple of Segment
        The stored byte ranges that, concatenated, are the bytes of the arrays.
    """

    layout: tuple[tuple[str, tuple[int, ...]], ...]
    segments: tuple[Segment, ...]


class TaskRequest(NamedTuple):
    """A driver's request to a worker to run a task once. Its serialized size is a few hundred bytes.

    Attributes
    ----------
    task, attempt : int
        The index of the task, and the number of the attempt: 0 for the first run, 1 for the first retry, ...
    block_ref : BlockRef or None
        The reference to the data block of the task; None if the block itself is sent with the request.
    fault : Fault or None
        A fault to inject into this attempt, for tests.
    output : OutputSpec or None
        Where to store the result; None to send it to the driver.
    encryption : tuple or None
        The fields of an `Encryption` for the reply; None if the reply is not encrypted.
    n_data_rows : int or None
        If the block is padded with rows of zeros, the number of rows before the padding. The user's function
        is then also called without the padding. If None, it is called only once, with the whole block.
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
        """Restore a request from the plain tuple that `to_plain_tuple` has returned."""
        task, attempt, block, fault, output, *rest = fields
        block, fault = block and BlockRef.from_tuple(block), fault and Fault(*fault)
        return cls(task, attempt, block, fault, output and OutputSpec.from_tuple(output), *rest)


class ErrorInfo(NamedTuple):
    """A description of an exception that a task has raised.

    Attributes
    ----------
    type, message, traceback : str
        The exception as text.
    exception : exception, bytes or None
        The exception itself. In a reply, it is pickled, or None if it cannot be pickled.
    """

    type: str
    message: str
    traceback: str
    exception: BaseException | bytes | None


class UnusableWorkerError(Exception):
    """Raised if a task fails because of its worker, and not because of the user's function.

    The driver then replaces the worker.
    """


class TaskReply(NamedTuple):
    """A worker's reply to a task: either an error or a description of the result.

    The bytes of the result are sent separately. If the result is stored, only a sample of it is sent.

    Attributes
    ----------
    error : ErrorInfo or None
        The exception that the task has raised; None if it has returned a result.
    seconds : float
        How many seconds the task took on the worker.
    structure, layout : tuple
        How the arrays in the sent bytes are nested, and the dtype and shape of each array.
    result_ref : tuple or None
        The fields of a `ResultRef` if the result is stored; None if it is sent.
    host : str
        The name of the worker's machine. Empty if the driver already knows it.
    """

    error: ErrorInfo | None
    seconds: float
    structure: Structure = ()
    layout: Layout = ()
    result_ref: tuple[Layout, tuple[Segment, ...]] | None = None
    host: str = ""


def pickle_value(value: Any) -> bytes:
    """Pickle a value, with cloudpickle if the module pickle cannot do it."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # The value's class may be defined in a function or a notebook.
        from cloudpickle import dumps

        return bytes(dumps(value))


def describe_error(error: BaseException) -> ErrorInfo:
    """Return a description of an exception that can be sent to the driver.

    This works even if the methods of a user-defined exception class raise errors.
    """
    message = _call_or_default(lambda error: str(error)[:MAX_ERROR_CHARACTERS], error, "<its __str__ raised>")
    text = _call_or_default(_format_traceback, error, message)
    return ErrorInfo(type(error).__name__, message, text, error)


def _call_or_default(function: Callable[[BaseException], str], error: BaseException, default: str) -> str:
    """Return `function(error)`, or `default` if the function raises an exception."""
    try:
        return function(error)
    except BaseException:
        return default


def _format_traceback(error: BaseException) -> str:
    """Return an exception's traceback as text, without the leading frames in polarmap.

    If the text is too long, it is truncated at the beginning.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("polarmap."):
        trace = trace.tb_next
    text = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return "".join(text)[-MAX_ERROR_CHARACTERS:]


def _pickle_if_possible(error: BaseException | bytes | None) -> bytes | None:
    """Pickle an exception, or return None if it cannot be pickled and unpickled again."""
    if not isinstance(error, BaseException):
        return error
    try:
        data = pickle_value(error)
        return data if type(pickle.loads(data)) is type(error) else None
    except BaseException:
        return None
