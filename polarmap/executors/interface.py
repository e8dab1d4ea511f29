"""The interface between maps and the executors that run their tasks.

The driver describes a job in a `JobSpec` and opens a session on an executor. The scheduler submits attempts
to the session and polls it for events until enough results have arrived:

    session = executor.open(job_spec)
    session.submit([(0, 0), (1, 0)])  # tasks 0 and 1, first attempts
    events = session.wait(timeout=5.0)  # AttemptStarted, Outcome, NoWorkers
    session.close()
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from polarmap.clouds.limits import WorkerSpec
from polarmap.clouds.prices import PersistentUsage
from polarmap.errors import CodeError, ExecutorError
from polarmap.worker.encryption import Encryption, decrypt_reply
from polarmap.worker.locations import Location
from polarmap.worker.module_state import ModuleStateError
from polarmap.worker.pytree import (
    BOTH_RESULTS,
    Layout,
    Shape,
    Structure,
    get_layout,
    unflatten,
    unpack_leaves,
)
from polarmap.worker.segments import DamagedError, Segment
from polarmap.worker.task_records import (
    BlockRef,
    ErrorInfo,
    Fault,
    OutputSpec,
    ResultRef,
    TaskReply,
    TaskRequest,
    UnusableWorkerError,
)

Array = npt.NDArray[Any]
Function = Callable[[Any], Any]


class FailureKind(StrEnum):
    """The reason why a task attempt has no usable result."""

    RAISED = "raised"  # f raised an exception
    LOST = "lost"  # the worker was killed, exited, or never replied
    SHAPE = "shape"  # the shape of the result differs from the other results
    GARBAGE = "garbage"  # the result contradicts the other results
    DAMAGED = "damaged"  # the stored block is damaged


class Failure(NamedTuple):
    """The reason why a task attempt failed, with the error that caused it."""

    kind: FailureKind
    error_type: str
    message: str
    cause: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}" if self.message else self.error_type


class TaskResult(NamedTuple):
    """The return value of the user's function f, as a flat list of arrays.

    `structure` describes the tuples, lists and dicts in which the arrays are nested.
    """

    leaves: list[Array]
    structure: Structure


class Outcome(NamedTuple):
    """An event that reports the end of a task attempt, with its result or failure.

    Attributes
    ----------
    task, attempt : int
        The index of the task, and the number of earlier attempts.
    leaves : list of ndarray
        The arrays of the result; empty after a failure.
    structure : Structure
        The nested structure from which to rebuild the result; `()` after a failure.
    failure : Failure or None
        Why there is no result; None if there is one.
    seconds : float
        The time that the worker spent on the task; 0 if it is unknown.
    result_ref : ResultRef or None
        The location of the result in storage, if the leaves are only a sample of it.
    unpadded_result : TaskResult or None
        If the block was padded with rows of zeros, the result of f for the unpadded rows. `structure` is
        empty if f raised an exception for the padded block.
    host : str
        The name of the worker's machine; empty if it is unknown or the driver's machine.
    """

    task: int
    attempt: int
    leaves: list[Array]
    structure: Structure
    failure: Failure | None
    seconds: float
    result_ref: ResultRef | None = None
    unpadded_result: TaskResult | None = None
    host: str = ""

    @property
    def leaf_shapes(self) -> list[Shape]:
        """The shape of each array of the result."""
        return [leaf.shape for leaf in self.leaves]

    @property
    def leaf_dtypes(self) -> list[np.dtype[Any]]:
        """The dtype of each array of the result."""
        return [leaf.dtype for leaf in self.leaves]

    @property
    def result_description(self) -> str:
        """The dtypes and shapes of the result's arrays, for messages, as in "float64[3, 2]"."""
        return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in self.leaves) or "nothing"


class AttemptStarted(NamedTuple):
    """An event that reports the start of a task attempt.

    Attributes
    ----------
    task, attempt : int
        The index of the task, and the number of earlier attempts.
    started_at : float
        The start time in seconds, on the session's clock.
    is_confirmed : bool
        True if a worker has reported the start. False if the attempt was only handed to a worker: it can
        become late but still counts as queued. A confirmed event may follow.
    host : str
        The name of the worker's machine; empty if it is unknown or the driver's machine.
    """

    task: int
    attempt: int
    started_at: float
    is_confirmed: bool = True
    host: str = ""


class NoWorkers(NamedTuple):
    """An event that reports that tasks are waiting and no worker has connected yet.

    The event is repeated until a worker connects.

    Attributes
    ----------
    reason : str
        The likely cause, and what the user can do about it.
    """

    reason: str


Event = AttemptStarted | Outcome | NoWorkers
AttemptId = tuple[int, int]  # the index of a task, and the number of earlier attempts


class TaskBlocks:
    """The input data of a job: one block for each task, with which a worker calls the user's function f.

    Blocks are computed on request. A block consists of one or more components (one by default). A component
    that several blocks share is stored only once. Subclasses define `block_leaves` or `component_leaves`.

    Attributes
    ----------
    n : int
        The number of tasks.
    structure : Structure
        The nested structure of f's argument, with which a block is rebuilt from its arrays.
    location : Location or None
        Where workers read the blocks; None if the blocks exist only in this process's memory.
    """

    n: int
    structure: Structure
    location: Location | None = None

    @property
    def encryption_key(self) -> str | bytes | None:
        """The key that encrypts the stored blocks, or None if they are not encrypted or not stored."""
        location = self.location
        return None if location is None or location.encryption is None else location.encryption[0]

    def block_leaves(self, task: int) -> list[Array]:
        """Return the arrays of a task's block, in order."""
        components = self.block_components(task)
        return [leaf for component in components for leaf in self.component_leaves(component)]

    def block_layout(self, task: int) -> Layout:
        """Return the dtype and shape of each array of a task's block."""
        return get_layout(self.block_leaves(task))

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """Return the stored byte ranges that contain a task's block.

        Concatenated, the byte ranges are the arrays of the block. Raises LookupError if the blocks are not
        stored.
        """
        raise LookupError(task)

    def cluster_reference(self, task: int) -> Any:
        """Return the Dask or Ray reference to a task's block, or None if it is not on the cluster."""
        return None

    def block_components(self, task: int) -> Sequence[int]:
        """Return the indices of the components (parts that several blocks may share) of a task's block."""
        return (task,)

    def component_leaves(self, component: int) -> list[Array]:
        """Return the arrays of a component, a part of a block that several blocks may share."""
        return self.block_leaves(component)

    def find_injected_fault(self, faults: Mapping[int, Fault], task: int, attempt: int) -> Fault | None:
        """Return the fault that a test injects into a task attempt, or None.

        `faults` maps tasks to faults, and `attempt` is the number of earlier attempts. A fault affects only
        the first few attempts.
        """
        fault = faults.get(task)
        return fault if fault is not None and attempt < fault.attempts else None

    def on_damage_found(self) -> None:
        """Handle a worker's report that a stored block is damaged. Does nothing by default.

        Subclasses can look up where the blocks are stored now: if the stored array has been replaced since
        its location was read, the block only appears to be damaged.
        """

    def prepare_encoding(self) -> None:
        """Do the slow part of the encoding ahead of time. Called while workers are starting."""

    def release_memory(self) -> None:
        """Free memory that is no longer needed once every block has been stored or sent to a worker."""


@dataclass(frozen=True)
class JobSpec:
    """Everything an executor needs to run one job (one call of a map function).

    Attributes
    ----------
    f : callable
        The function that workers apply to each block.
    blocks : TaskBlocks
        The input block of each task.
    faults : mapping of int to Fault
        The faults that a test injects, by the index of the task.
    output_spec : OutputSpec or None
        Where workers store their results, of which only samples are returned to the driver. None: results are
        returned in full.
    low_priority_tasks : collection of int
        Tasks that run at low CPU priority, so that other tasks get the cores first.
    encryption : Encryption or None
        How to encrypt replies, and blocks that are stored for workers. None: no encryption.
    padded_block : tuple of int or None
        The task whose block is padded with rows of zeros, and its number of unpadded rows. Its worker also
        evaluates f on the unpadded rows. None: no block is padded.
    user_function : callable or None
        The function that the caller passed, if f is a wrapper around it. A live view shows its name.
    name : str
        The name of the map or `polarmap.Executor`, such as "map 3". A live view shows it with the workers.
    """

    f: Function
    blocks: TaskBlocks
    faults: Mapping[int, Fault] = field(default_factory=dict)
    output_spec: OutputSpec | None = None
    low_priority_tasks: Collection[int] = ()
    encryption: Encryption | None = None
    padded_block: tuple[int, int] | None = None
    user_function: Function | None = None
    name: str = ""

    def get_n_unpadded_rows(self, task: int) -> int | None:
        """Return the number of rows of a task's block without padding, or None if the block has no padding.

        Rows of zeros may be added to a block to make all blocks equal in size. Because they may change the
        result of f, the worker then also evaluates f on the rows without the padding.
        """
        if self.padded_block is None or self.padded_block[0] != task:
            return None
        return self.padded_block[1]

    def find_injected_fault(self, task: int, attempt: int) -> Fault | None:
        """Return the fault that a test injects into a task attempt, or None."""
        return self.blocks.find_injected_fault(self.faults, task, attempt) if self.faults else None

    def make_task_request(self, task: int, attempt: int, block_ref: BlockRef | None = None) -> TaskRequest:
        """Return the message that asks a worker to run a task.

        `attempt` is the number of earlier attempts. `block_ref` says where the worker reads the block; None
        means that the block is sent another way.
        """
        fault, n_rows = self.find_injected_fault(task, attempt), self.get_n_unpadded_rows(task)
        return TaskRequest(task, attempt, block_ref, fault, self.output_spec, self.encryption, n_rows)

    def decode_reply(self, task: int, attempt: int, header: Any, data: Any) -> Outcome:
        """Convert a worker's reply to an `Outcome`.

        If the reply cannot be read, the worker counts as lost. If the job has an encryption key, only data
        encrypted with this key is unpickled.

        Parameters
        ----------
        task, attempt : int
            The task that the worker has run, and the number of earlier attempts.
        header : bytes or TaskReply
            The reply without its arrays, possibly pickled.
        data : bytes-like
            The bytes of the arrays, or the whole encrypted reply.
        """
        try:
            if self.encryption is not None:
                header, data = decrypt_reply(task, attempt, data, self.encryption)
            reply = header if isinstance(header, TaskReply) else pickle.loads(header)
            error, seconds, structure, layout, result_ref, host = reply
            if error is not None:
                failure = to_failure(ErrorInfo(*error))
                if failure.kind == FailureKind.DAMAGED:
                    self.blocks.on_damage_found()
                return Outcome(task, attempt, [], (), failure, seconds, host=host)
            leaves, unpadded_result = unpack_leaves(layout, data), None
            if structure[:1] == (BOTH_RESULTS,):  # The worker also evaluated f on the unpadded rows.
                _, n_leaves, structure, unpadded_structure = structure
                leaves, unpadded_result = leaves[:n_leaves], TaskResult(leaves[n_leaves:], unpadded_structure)
            if result_ref is not None:
                result_ref = ResultRef(result_ref[0], tuple(Segment(*segment) for segment in result_ref[1]))
        except DamagedError as error:
            return make_lost_worker_outcome(task, attempt, f"its reply {error}")
        except Exception as error:  # The data may be forged, or need a class that is missing here.
            message = f"its reply cannot be read: {type(error).__name__}: {error}"
            return make_lost_worker_outcome(task, attempt, message)
        return Outcome(task, attempt, leaves, structure, None, seconds, result_ref, unpadded_result, host)


class Session(Protocol):
    """The connection through which a map runs its tasks on an executor.

    A map submits task attempts, waits for events, and cancels the attempts that it no longer needs.
    """

    def now(self) -> float:
        """Return the time in seconds, on `time.monotonic` or a virtual clock that starts at 0."""
        ...

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Queue task attempts, to be started in this order.

        Each block is built when its attempt starts. If building it raises CancelledError, the attempt is not
        started and is reported as lost.
        """
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Block until a task ends, `timeout` seconds pass or `wake` is called. Return the new events.

        Every submitted attempt leads to exactly one `Outcome`. If its worker falls silent, the outcome says
        that the worker was lost. There may be an `AttemptStarted` event first, which does not end the wait.
        """
        ...

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Cancel task attempts whose results are no longer needed.

        An attempt that is actually stopped is reported as lost.
        """
        ...

    def wake(self) -> None:
        """Make the current or the next call of `wait` return soon, even without an event.

        `wake` may be called from any thread at any time, even after `close`.
        """
        ...

    def cancel_queued(self) -> list[AttemptStarted]:
        """Cancel the tasks that have not started. Return the start events since the last call of `wait`.

        Called once at the end of a job, before `close`.
        """
        ...

    def close(self) -> PersistentUsage | None:
        """Abandon running tasks and remove the blocks that were stored for the workers.

        Safe to call at any time, and more than once.

        Returns
        -------
        PersistentUsage or None
            On the first call, the billed time of persistent workers. None if tasks are billed individually or
            not at all.
        """
        ...


@runtime_checkable
class BlockSendingSession(Protocol):
    """A session in which the driver itself sends the blocks to the workers or stores them for the workers.

    This may take long, so the session must know when the job ends.

    Attributes
    ----------
    deadline : float
        When the job must end, on the session's clock; set before the first task is submitted.
    """

    deadline: float

    def count_receiving_workers(self) -> int:
        """Return the number of workers that are still receiving a block. Called if the job times out."""
        ...


@runtime_checkable
class MapExecutor(Protocol):
    """The protocol that your own executor class must implement to be accepted as `executor=`.

    Any number of sessions may be open at a time. The executor may also have the attributes `is_local` (True
    if its tasks share the cores of this machine) and `workers_by_host` (the number of workers by host name).

    Attributes
    ----------
    name : str
        The name of the executor in reports.
    worker_spec : WorkerSpec or None
        The memory, cores, time limit and price of each task; None if they are unknown.
    """

    @property
    def name(self) -> str: ...

    @property
    def worker_spec(self) -> WorkerSpec | None: ...

    def open(self, job_spec: JobSpec) -> Session:
        """Open a session that runs the tasks of one job (one call of a map function). No task starts yet."""
        ...


def build_block(
    blocks: TaskBlocks, task: int, transform_leaf: Callable[[Array], Array] = lambda leaf: leaf
) -> Any:
    """Build a task's block, the argument with which f is called.

    `transform_leaf` is applied to each array of the block.
    """
    leaves = [
        transform_leaf(leaf)
        for component in blocks.block_components(task)
        for leaf in blocks.component_leaves(component)
    ]
    return unflatten(blocks.structure, leaves)


def read_only_view(array: Array) -> Array:
    """Return a read-only view of an array."""
    view = array.view()
    view.flags.writeable = False
    return view


class Reach(NamedTuple):
    """Describes which storage an executor's workers can access.

    Attributes
    ----------
    backend : str
        The Lithops backend that runs the workers; empty if they are on this machine.
    storage : str
        The storage backend whose buckets the workers can access; empty if they can access none.
    can_ask_driver : bool
        True if workers can request segments from the driver while a task runs.
    """

    backend: str = ""
    storage: str = ""
    can_ask_driver: bool = False

    def check_job_storage_access(self, job_spec: JobSpec) -> None:
        """Raise ExecutorError unless workers can read a job's blocks and store its results."""
        location = job_spec.blocks.location
        if location is not None and (obstacle := self._explain_obstacle(location)):
            raise ExecutorError(f"the array is stored in {obstacle}")
        self.check_output(job_spec)

    def check_output(self, job_spec: JobSpec) -> None:
        """Raise ExecutorError unless workers can write to a job's output location."""
        location = None if job_spec.output_spec is None else job_spec.output_spec.location
        if location is not None and not location.is_writable:
            raise ExecutorError(
                f"the results cannot be stored in {location.root}, which workers cannot reach: "
                "leave executor out, or choose a folder or a bucket"
            )
        if location is not None and (obstacle := self._explain_obstacle(location)):
            raise ExecutorError(f"the results cannot be stored in {obstacle}")

    def _explain_obstacle(self, location: Location) -> str:
        """Return why workers cannot access a location and what to do, or an empty string if they can."""
        if location.is_sent_by_driver and not self.can_ask_driver:
            return f"{location.root}, which workers cannot reach: leave executor out"
        if location.is_memory_mapped and self.backend:
            return (
                f"folder {location.root!r} of this machine, which workers on {self.backend} cannot reach: "
                "use storage= of that backend"
            )
        if not location.uses_storage or location.backend == self.storage:
            return ""
        bucket = f"{location.backend} bucket {location.root!r}"
        if not self.storage:
            return f"{bucket}, which needs its Lithops configuration: pass it as executor="
        return (
            f"{bucket}, but this executor uses {self.storage}: use the Lithops configuration of that bucket "
            "for the array and the executor"
        )


def to_failure(error_info: ErrorInfo) -> Failure:
    """Convert an error reported by a worker to a `Failure` whose cause is the original exception."""
    exception = error_info.exception
    if not isinstance(exception, BaseException):
        exception = _rebuild_exception(error_info)
    if isinstance(exception, ModuleStateError):
        exception = CodeError(error_info.message)
    if isinstance(exception, DamagedError):
        return Failure(FailureKind.DAMAGED, error_info.type, error_info.message)
    if isinstance(exception, UnusableWorkerError):
        return Failure(FailureKind.LOST, "WorkerLost", error_info.message)
    return Failure(FailureKind.RAISED, error_info.type, error_info.message, exception)


def _rebuild_exception(error_info: ErrorInfo) -> BaseException:
    """Return the exception that was raised in another process, with the remote traceback as its cause.

    The traceback is attached in the same way as in `concurrent.futures`. An exception that cannot be
    unpickled becomes a RuntimeError with the same message.
    """
    from concurrent.futures.process import _RemoteTraceback

    exception: BaseException = RuntimeError(f"{error_info.type}: {error_info.message}")
    with contextlib.suppress(Exception):  # Unpickling runs code of the exception class, which may fail.
        unpickled = pickle.loads(error_info.exception)  # type: ignore[arg-type]
        exception = unpickled if isinstance(unpickled, BaseException) else exception
    traceback_text: Any = f'\n"""\n{error_info.traceback}"""'
    exception.__cause__ = _RemoteTraceback(traceback_text)
    return exception


def make_lost_worker_outcome(task: int, attempt: int, message: str) -> Outcome:
    """Return the outcome of a task attempt whose worker was lost.

    `message` describes the likely cause.
    """
    return Outcome(task, attempt, [], (), Failure(FailureKind.LOST, "WorkerLost", message), 0.0)
