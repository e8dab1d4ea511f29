"""The seam between a map and whatever runs its tasks: `executor.open(job_spec) -> Session`."""

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
    """The kinds of failures of an attempt."""

    RAISED = "raised"  # f raised an exception
    LOST = "lost"  # the worker was killed, ended, or never replied
    SHAPE = "shape"  # the result has another shape than the others
    GARBAGE = "garbage"  # the result contradicts the others
    DAMAGED = "damaged"  # the stored block is damaged


class Failure(NamedTuple):
    """The reason why an attempt has no usable result."""

    kind: FailureKind
    error_type: str
    message: str
    cause: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}" if self.message else self.error_type


class TaskResult(NamedTuple):
    """A result of f: its arrays, and the structure that they make up."""

    leaves: list[Array]
    structure: Structure


class Outcome(NamedTuple):
    """What became of one attempt of a task: its result, or a failure and no leaves.

    leaves, structure : the arrays of the result, and how they make it up.
    seconds : that the worker spent; 0 if unknown.
    result_ref : where the result lies in storage, if the arrays are only a sample of it.
    unpadded_result : f of the rows of data alone, if the block was filled up with rows of zeros. Then there
        is no structure if f raised an exception of the whole block.
    host : the name of the worker's machine; empty if it is not known, or is the driver's.
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
        """Of its arrays."""
        return [leaf.shape for leaf in self.leaves]

    @property
    def leaf_dtypes(self) -> list[np.dtype[Any]]:
        """Of its arrays."""
        return [leaf.dtype for leaf in self.leaves]

    @property
    def result_description(self) -> str:
        """What f returned, in words."""
        return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in self.leaves) or "nothing"


class AttemptStarted(NamedTuple):
    """An attempt has come to run: when, on the clock of its run.

    is_confirmed : whether a worker is known to have started it. If not, the attempt was handed to a worker
        that has not confirmed it yet: it may become late, and counts as queued. A certain event may follow.
    host : the name of the worker's machine; empty if it is not known, or is the driver's.
    """

    task: int
    attempt: int
    started_at: float
    is_confirmed: bool = True
    host: str = ""


class NoWorkers(NamedTuple):
    """No worker has been there yet that could run the tasks of a map. Repeated until one is there.

    reason : what is known of the cause, and what the user can do about it.
    """

    reason: str


Event = AttemptStarted | Outcome | NoWorkers
AttemptId = tuple[int, int]  # the number of a task, and how often it was started before


class TaskBlocks:
    """The blocks of the tasks of a job, which are computed when they are needed.

    A block consists of components, which several blocks may share; by default of one. Subclasses define
    `block_leaves` or `component_leaves`.

    location : where workers read the blocks; None if the blocks are only in the memory of this process.
    """

    n: int
    structure: Structure
    location: Location | None = None

    @property
    def encryption_key(self) -> str | bytes | None:
        """The key with which stored blocks are encrypted; None if they are not encrypted or not stored."""
        location = self.location
        return None if location is None or location.encryption is None else location.encryption[0]

    def block_leaves(self, task: int) -> list[Array]:
        """Return the arrays of the block of a task: those of its components in a row."""
        components = self.block_components(task)
        return [leaf for component in components for leaf in self.component_leaves(component)]

    def block_layout(self, task: int) -> Layout:
        """Return dtype and shape of each array of the block of a task."""
        return get_layout(self.block_leaves(task))

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """Return the segments of the block of a task, whose bytes in a row are its arrays."""
        raise LookupError(task)

    def cluster_reference(self, task: int) -> Any:
        """Return what tasks of Dask or Ray take in place of a block that the cluster holds, else None."""
        return None

    def block_components(self, task: int) -> Sequence[int]:
        """Return the indices of the components of the block of a task."""
        return (task,)

    def component_leaves(self, component: int) -> list[Array]:
        """Return the arrays of a component."""
        return self.block_leaves(component)

    def find_injected_fault(self, faults: Mapping[int, Fault], task: int, attempt: int) -> Fault | None:
        """Return which of the `faults`, by task, an attempt is to suffer."""
        fault = faults.get(task)
        return fault if fault is not None and attempt < fault.attempts else None

    def on_damage_found(self) -> None:
        """A worker has found a block damaged: what is told of where they lie may be out of date."""

    def prepare_encoding(self) -> None:
        """Make what takes time and the first block that is made needs: workers are coming up meanwhile."""

    def release_memory(self) -> None:
        """Every block has been handed on: memory may be freed."""


@dataclass(frozen=True)
class JobSpec:
    """All that an executor is told of one map.

    f : what workers call, each with its block.
    blocks : the coded blocks.
    faults : from task to what it is to suffer.
    output_spec : where results stay, of which only samples then travel; None: they travel whole.
    low_priority_tasks : tasks that give way to others, where they share a machine's cores.
    encryption : of blocks from memory, where they are stored, and of replies; None: there is none.
    padded_block : the task whose block rows of zeros fill up, and its rows of data, if its worker evaluates f
        on these alone, too; else None.
    """

    f: Function
    blocks: TaskBlocks
    faults: Mapping[int, Fault] = field(default_factory=dict)
    output_spec: OutputSpec | None = None
    low_priority_tasks: Collection[int] = ()
    encryption: Encryption | None = None
    padded_block: tuple[int, int] | None = None

    def get_n_unpadded_rows(self, task: int) -> int | None:
        """Return the rows of data on which this task evaluates f as well; None if that is not needed."""
        if self.padded_block is None or self.padded_block[0] != task:
            return None
        return self.padded_block[1]

    def find_injected_fault(self, task: int, attempt: int) -> Fault | None:
        """Return the fault that an attempt is to suffer."""
        return self.blocks.find_injected_fault(self.faults, task, attempt) if self.faults else None

    def make_task_request(self, task: int, attempt: int, block_ref: BlockRef | None = None) -> TaskRequest:
        """What the worker of an attempt is told; `block_ref`: what it is to read."""
        fault, n_rows = self.find_injected_fault(task, attempt), self.get_n_unpadded_rows(task)
        return TaskRequest(task, attempt, block_ref, fault, self.output_spec, self.encryption, n_rows)

    def decode_reply(self, task: int, attempt: int, header: Any, data: Any) -> Outcome:
        """A worker's reply; with a key nothing is unpickled that a worker of the map has not encrypted.

        header : a pickled `TaskReply`, or, where none was needed, the reply itself.
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
            if structure[:1] == (BOTH_RESULTS,):  # of a block that rows of zeros fill up
                _, n_leaves, structure, unpadded_structure = structure
                leaves, unpadded_result = leaves[:n_leaves], TaskResult(leaves[n_leaves:], unpadded_structure)
            if result_ref is not None:
                result_ref = ResultRef(result_ref[0], tuple(Segment(*segment) for segment in result_ref[1]))
        except DamagedError as error:
            return make_lost_worker_outcome(task, attempt, f"its reply {error}")
        except Exception as error:  # of a forger, or of a class that is not here
            message = f"its reply cannot be read: {type(error).__name__}: {error}"
            return make_lost_worker_outcome(task, attempt, message)
        return Outcome(task, attempt, leaves, structure, None, seconds, result_ref, unpadded_result, host)


class Session(Protocol):
    """The tasks of one map on an executor: starts them, tells as each ends, abandons the rest."""

    def now(self) -> float:
        """Seconds on `time.monotonic`, or on a virtual clock that stands at 0 when the run is opened."""
        ...

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Start these, in this order. Blocks are made for those that are started, and no earlier.

        One whose block raises CancelledError, as nobody waits for it any more, is not started: it is lost.
        """
        ...

    def wait(self, timeout: float) -> list[Event]:
        """What happened, as soon as an attempt ended; after `timeout` seconds; or when woken.

        That an attempt began is told with what is told next, before its end. Each that was submitted ends
        in exactly one Outcome: its worker is lost if nothing else is known.
        """
        ...

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Nobody waits for these any more: they are lost at once, as far as they can be kept from running."""
        ...

    def wake(self) -> None:
        """Let the `wait` that another thread is in return soon, whether anything ended or not.

        If none is, the next one does. Any thread may call it at any time, also when the run is closed.
        """
        ...

    def cancel_queued(self) -> list[AttemptStarted]:
        """Start no further attempt, and return which have begun since the last `wait`.

        Called once at the end of a map, before `close`: what has not begun by then is cancelled.
        """
        ...

    def close(self) -> PersistentUsage | None:
        """Abandon all that runs and remove all that was stored. Safe at any time, and twice.

        Returns what is to be paid for persistent workers, the first time; None where each
        attempt is paid by itself, or nothing is.
        """
        ...


@runtime_checkable
class BlockSendingSession(Protocol):
    """A run that sends or stores the blocks for its workers itself, which may take long.

    deadline : when its map must be over, by the clock of the run; set before the first task is submitted.
    """

    deadline: float

    def count_receiving_workers(self) -> int:
        """Return the number of workers that have not been sent all that their task needs."""
        ...


@runtime_checkable
class MapExecutor(Protocol):
    """An executor of a class of the user's own, which a map accepts as `executor=`.

    Any number of sessions may be open at a time. The executor may also have `is_local`, whether its tasks
    share the cores of this machine, and `workers_by_host`, the number of workers by host name.

    name : the name in reports.
    worker_spec : what each task is given and may cost; None if nothing is known.
    """

    @property
    def name(self) -> str: ...

    @property
    def worker_spec(self) -> WorkerSpec | None: ...

    def open(self, job_spec: JobSpec) -> Session:
        """Return a session for the tasks of one job. Nothing is started yet."""
        ...


def build_block(
    blocks: TaskBlocks, task: int, transform_leaf: Callable[[Array], Array] = lambda leaf: leaf
) -> Any:
    """The block of a task, each of its leaves `transform_leaf` by f."""
    leaves = [
        transform_leaf(leaf)
        for component in blocks.block_components(task)
        for leaf in blocks.component_leaves(component)
    ]
    return unflatten(blocks.structure, leaves)


def read_only_view(array: Array) -> Array:
    """A view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


class Reach(NamedTuple):
    """The storage that the workers of an executor can use.

    backend : the backend of Lithops that runs the workers; empty if they are on this machine.
    storage : the storage backend whose buckets they can use; empty if they can use none.
    can_ask_driver : whether workers can ask the driver for segments while a task runs.
    """

    backend: str = ""
    storage: str = ""
    can_ask_driver: bool = False

    def check_job(self, job_spec: JobSpec) -> None:
        """Raise ExecutorError unless workers can read the blocks of a job and store its results."""
        location = job_spec.blocks.location
        if location is not None and (obstacle := self._explain_obstacle(location)):
            raise ExecutorError(f"the array lies in {obstacle}")
        self.check_output(job_spec)

    def check_output(self, job_spec: JobSpec) -> None:
        """Raise ExecutorError unless workers can store the results of a job where it wants them."""
        location = None if job_spec.output_spec is None else job_spec.output_spec.location
        if location is not None and not location.is_writable:
            raise ExecutorError(
                f"the array is to stay in {location.root}, which workers cannot reach: leave executor out, "
                "or choose a folder or a bucket"
            )
        if location is not None and (obstacle := self._explain_obstacle(location)):
            raise ExecutorError(f"the array is to stay in {obstacle}")

    def _explain_obstacle(self, location: Location) -> str:
        """Return what keeps workers from a location, and the remedy; empty if they can reach it."""
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
            return f"{bucket}: pass executor=, the Lithops configuration of that bucket"
        return (
            f"{bucket}, but this executor stores in {self.storage}: use the Lithops configuration of that "
            "bucket for both"
        )


def to_failure(error_info: ErrorInfo) -> Failure:
    """A worker's error, with the exception itself."""
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
    """The exception of another process, its traceback there as its cause, as in the standard library.

    RuntimeError in the place of one that did not survive the way.
    """
    from concurrent.futures.process import _RemoteTraceback

    exception: BaseException = RuntimeError(f"{error_info.type}: {error_info.message}")
    with contextlib.suppress(Exception):  # its own
        unpickled = pickle.loads(error_info.exception)  # type: ignore[arg-type]
        exception = unpickled if isinstance(unpickled, BaseException) else exception
    traceback_text: Any = f'\n"""\n{error_info.traceback}"""'
    exception.__cause__ = _RemoteTraceback(traceback_text)
    return exception


def make_lost_worker_outcome(task: int, attempt: int, message: str) -> Outcome:
    """The outcome of a task whose worker disappeared."""
    return Outcome(task, attempt, [], (), Failure(FailureKind.LOST, "WorkerLost", message), 0.0)
