"""The seam between a map and whatever runs its tasks: `executor.open(payload) -> Run`."""

from __future__ import annotations

import contextlib
import pickle
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Stay
from polarmap.errors import CodeError, ExecutorError
from polarmap.worker.encryption import Encryption, decrypt_reply
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
from polarmap.worker.segments import DamagedError, Location, Segment
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


class Failure(NamedTuple):
    """Why a task gave nothing usable.

    kind : "raised" (f did), "lost" (killed, exited, never reported), "shape" (of the result),
    "garbage" (a result that contradicts the others) or "damaged" (the stored block is).
    """

    kind: str
    type: str
    message: str
    cause: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Result(NamedTuple):
    """A result of f: its arrays, and the structure that they make up."""

    leaves: list[Array]
    structure: Structure


class Outcome(NamedTuple):
    """What became of one attempt of a task: its result, or a failure and no leaves.

    leaves, structure : the arrays of the result, and how they make it up.
    seconds : that the worker spent; 0 if unknown.
    stored : where the result lies in storage, if the arrays are only a sample of it.
    unpadded : f of the rows of data alone, if the block was filled up with rows of zeros. Then there is no
        structure if f raised an exception of the whole block.
    host : the name of the worker's machine; empty if it is not known, or is the driver's.
    """

    task: int
    attempt: int
    leaves: list[Array]
    structure: Structure
    failure: Failure | None
    seconds: float
    stored: ResultRef | None = None
    unpadded: Result | None = None
    host: str = ""

    @property
    def shapes(self) -> list[Shape]:
        """Of its arrays."""
        return [leaf.shape for leaf in self.leaves]

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """Of its arrays."""
        return [leaf.dtype for leaf in self.leaves]

    @property
    def returned(self) -> str:
        """What f returned, in words."""
        return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in self.leaves) or "nothing"


class Began(NamedTuple):
    """An attempt has come to run: when, on the clock of its run.

    is_certain : whether a worker is known to have started it. If not, the attempt was handed to a worker that
        has not confirmed it yet: it may become late, and counts as queued. A certain event may follow.
    host : the name of the worker's machine; empty if it is not known, or is the driver's.
    """

    task: int
    attempt: int
    when: float
    is_certain: bool = True
    host: str = ""


class NoWorkers(NamedTuple):
    """No worker has been there yet that could run the tasks of a map. Repeated until one is there.

    reason : what is known of the cause, and what the user can do about it.
    """

    reason: str


Event = Began | Outcome | NoWorkers
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # else who has SIGPIPE end the process dies where none listens
Attempt = tuple[int, int]  # the number of a task, and how often it was started before


class Coded:
    """Coded blocks, made as they are asked for; of one piece each, in memory, unless it is said otherwise.

    Either `leaves` or `piece` is to be defined.

    source : where they lie in storage already; None if they are in memory only.
    """

    n: int
    structure: Structure
    source: Location | None = None

    @property
    def key(self) -> str | bytes | None:
        """What they are encrypted with where they lie in storage; None if they are not."""
        source = self.source
        return None if source is None or source.encryption is None else source.encryption[0]

    def leaves(self, index: int) -> list[Array]:
        """The arrays of block `index`: those of its pieces in a row."""
        return [leaf for number in self.pieces(index) for leaf in self.piece(number)]

    def layout(self, index: int) -> Layout:
        """Dtype and shape of each of them."""
        return get_layout(self.leaves(index))

    def parts(self, index: int) -> tuple[Segment, ...]:
        """What block `index` consists of at its source."""
        raise LookupError(index)

    def reference(self, index: int) -> Any:
        """What the engine of a cluster takes in the place of block `index`; None where it lies elsewhere."""
        return None

    def pieces(self, index: int) -> Sequence[int]:
        """Numbers of what block `index` is made of: a piece of several blocks is stored once."""
        return (index,)

    def piece(self, number: int) -> list[Array]:
        """The leaves of a piece."""
        return self.leaves(number)

    def fault(self, faults: Mapping[int, Fault], task: int, attempt: int) -> Fault | None:
        """Return which of the `faults`, by task, an attempt is to suffer."""
        fault = faults.get(task)
        return fault if fault is not None and attempt < fault.attempts else None

    def found_damaged(self) -> None:
        """A worker has found a block damaged: what is told of where they lie may be out of date."""

    def get_ready(self) -> None:
        """Make what takes time and the first block that is made needs: workers are coming up meanwhile."""

    def release(self) -> None:
        """Every block has been handed on: memory may be freed."""


@dataclass(frozen=True)
class Payload:
    """All that an executor is told of one map.

    f : what workers call, each with its block.
    blocks : the coded blocks.
    faults : from task to what it is to suffer.
    output : where results stay, of which only samples then travel; None: they travel whole.
    low_priority : tasks that give way to others, where they share a machine's cores.
    encryption : of blocks from memory, where they are stored, and of replies; None: there is none.
    short_block : the task whose block rows of zeros fill up, and its rows of data, if its worker evaluates f
        on these alone, too; else None.
    """

    f: Function
    blocks: Coded
    faults: Mapping[int, Fault] = field(default_factory=dict)
    output: OutputSpec | None = None
    low_priority: Collection[int] = ()
    encryption: Encryption | None = None
    short_block: tuple[int, int] | None = None

    def rows_of_data(self, task: int) -> int | None:
        """Return the rows of data on which this task evaluates f as well; None if that is not needed."""
        return self.short_block[1] if self.short_block is not None and self.short_block[0] == task else None

    def fault(self, task: int, attempt: int) -> Fault | None:
        """Return the fault that an attempt is to suffer."""
        return self.blocks.fault(self.faults, task, attempt) if self.faults else None

    def ticket(self, task: int, attempt: int, block: BlockRef | None = None) -> TaskRequest:
        """What the worker of an attempt is told; `block`: what it is to read."""
        fault, rows = self.fault(task, attempt), self.rows_of_data(task)
        return TaskRequest(task, attempt, block, fault, self.output, self.encryption, rows)

    def outcome(self, task: int, attempt: int, header: Any, data: Any) -> Outcome:
        """A worker's reply; with a key nothing is unpickled that a worker of the map has not encrypted.

        header : a pickled `TaskReply`, or, where none was needed, the reply itself.
        """
        try:
            if self.encryption is not None:
                header, data = decrypt_reply(task, attempt, data, self.encryption)
            reply = header if isinstance(header, TaskReply) else pickle.loads(header)
            error, seconds, structure, layout, stored, host = reply
            if error is not None:
                failure = failure_of(ErrorInfo(*error))
                if failure.kind == "damaged":
                    self.blocks.found_damaged()
                return Outcome(task, attempt, [], (), failure, seconds, host=host)
            leaves, unpadded = unpack_leaves(layout, data), None
            if structure[:1] == (BOTH_RESULTS,):  # of a block that rows of zeros fill up
                _, count, structure, own = structure
                leaves, unpadded = leaves[:count], Result(leaves[count:], own)
            if stored is not None:
                stored = ResultRef(stored[0], tuple(Segment(*part) for part in stored[1]))
        except DamagedError as error:
            return lost(task, attempt, f"its reply {error}")
        except Exception as error:  # of a forger, or of a class that is not here
            return lost(task, attempt, f"its reply cannot be read: {type(error).__name__}: {error}")
        return Outcome(task, attempt, leaves, structure, None, seconds, stored, unpadded, host)


class Run(Protocol):
    """The tasks of one map on an executor: starts them, tells as each ends, abandons the rest."""

    def now(self) -> float:
        """Seconds on `time.monotonic`, or on a virtual clock that stands at 0 when the run is opened."""
        ...

    def submit(self, attempts: Sequence[Attempt]) -> None:
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

    def withdraw(self, attempts: Sequence[Attempt]) -> None:
        """Nobody waits for these any more: they are lost at once, as far as they can be kept from running."""
        ...

    def wake(self) -> None:
        """Let the `wait` that another thread is in return soon, whether anything ended or not.

        If none is, the next one does. Any thread may call it at any time, also when the run is closed.
        """
        ...

    def stop(self) -> list[Began]:
        """Start no further attempt, and return which have begun since the last `wait`.

        Called once at the end of a map, before `close`: what has not begun by then is cancelled.
        """
        ...

    def close(self) -> Stay | None:
        """Abandon all that runs and remove all that was stored. Safe at any time, and twice.

        Returns what is to be paid for workers that stay from map to map, the first time; None where each
        attempt is paid by itself, or nothing is.
        """
        ...


@runtime_checkable
class BlockSender(Protocol):
    """A run that sends or stores the blocks for its workers itself, which may take long.

    deadline : when its map must be over, by the clock of the run; set before the first task is submitted.
    """

    deadline: float

    def count_receiving(self) -> int:
        """Return the number of workers that have not been sent all that their task needs."""
        ...


class WakeSignal:
    """A descriptor by which one thread ends the `wait` of another: readable from `set` to `clear`.

    >>> signal = WakeSignal()
    >>> signal.set(), signal.clear(), signal.clear(), signal.close(), signal.set()
    (None, True, False, None, None)
    """

    def __init__(self) -> None:
        try:
            self._read, write = socket.socketpair()
        except OSError as error:
            raise ExecutorError(f"this process can open no descriptor for a map: {error}") from error
        self._write: SendingEnd | None = SendingEnd(fileno=write.detach())
        for end in (self._read, self._write):
            end.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to poll; -1 once it is closed."""
        return self._read.fileno()

    def set(self) -> None:
        """Let it be readable; nothing once it is closed. Any thread may do so at any time."""
        write = self._write  # which stays open as long as this thread has it
        if write is not None:
            with contextlib.suppress(OSError):  # closed, or set so often that no more fits
                write.send(b".", NO_SIGNAL)

    def clear(self) -> bool:
        """Clear the descriptor; whether it was set."""
        was_set = False
        with contextlib.suppress(OSError):  # no more is there
            while self._read.recv(4096):
                was_set = True
        return was_set

    def close(self) -> None:
        """Close the descriptor, that of this process where it was forked. Safe to call twice."""
        self._write = None
        self._read.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # there were none to be had
            self.close()


class SendingEnd(socket.socket):
    """A socket that is closed when no thread has it: one that still sends would send to what opens next."""

    __del__ = socket.socket.close


@runtime_checkable
class MapExecutor(Protocol):
    """Where the tasks of maps run; it holds nothing open between them, and any number may run on it.

    name : as reports tell it.
    worker : what each task is given and may cost; None where nothing is known.
    """

    @property
    def name(self) -> str: ...

    @property
    def worker(self) -> Worker | None: ...

    def open(self, payload: Payload) -> Run:
        """What runs this map; nothing is started yet."""
        ...


def runs_here(executor: MapExecutor) -> bool:
    """Return whether the tasks of an executor share the cores of this machine, as far as is known."""
    return bool(getattr(executor, "is_here", False))  # executors of the user's own need not say


def workers_on(executor: MapExecutor) -> dict[str, int]:
    """Return the number of workers that an executor has on each machine; empty if it does not know."""
    return dict(getattr(executor, "workers_on", {}))  # executors of the user's own need not say


class WrappedExecutor:
    """An executor that is the same as another one but for the runs that it opens."""

    def __init__(self, executor: MapExecutor) -> None:
        self._executor, self.worker, self.is_here = executor, executor.worker, runs_here(executor)

    @property
    def name(self) -> str:
        """That of the executor underneath, which may change: a pool learns how its workers call it."""
        return self._executor.name

    @property
    def workers_on(self) -> dict[str, int]:
        """The number of workers on each machine."""
        return workers_on(self._executor)


def block_of(coded: Coded, task: int, as_seen: Callable[[Array], Array] = lambda leaf: leaf) -> Any:
    """The block of a task, each of its leaves `as_seen` by f."""
    leaves = [as_seen(leaf) for piece in coded.pieces(task) for leaf in coded.piece(piece)]
    return unflatten(coded.structure, leaves)


def read_only(leaf: Array) -> Array:
    """A view that cannot be written to."""
    view = leaf.view()
    view.flags.writeable = False
    return view


def check_reachable(source: Location | None, use: str = "lies in", away: str = "", storage: str = "") -> None:
    """ExecutorError for storage that workers cannot reach.

    use : of the array.
    away : the backend of Lithops that runs the workers; empty: they are on this machine.
    storage : whose buckets they reach; empty: none.
    """
    if source is None or source.kind == "message":
        return
    kind, bucket = source.kind, f"{source.backend} bucket {source.root!r}"
    if kind == "driver":
        found, remedy = f"is in {source.root}, which workers cannot reach", "use a thread pool"
    elif kind == "folder" and away:
        found = f"{use} folder {source.root!r} of this machine, which workers on {away} cannot reach"
        remedy = "use storage= of that backend"
    elif kind == "bucket" and not storage:
        found, remedy = f"is in {bucket}", "pass executor=, the Lithops configuration of that bucket"
    elif kind == "bucket" and source.backend != storage:
        found = f"{use} {bucket}, but this executor stores in {storage}"
        remedy = "use the Lithops configuration of that bucket for both"
    else:
        return
    raise ExecutorError(f"the array {found}: {remedy}")


def failure_of(error: ErrorInfo) -> Failure:
    """A worker's error, with the exception itself."""
    cause = error.exception if isinstance(error.exception, BaseException) else _rebuilt(error)
    if isinstance(cause, ModuleStateError):
        cause = CodeError(error.message)
    if isinstance(cause, DamagedError):
        return Failure("damaged", error.type, error.message)
    if isinstance(cause, UnusableWorkerError):
        return Failure("lost", "WorkerLost", error.message)
    return Failure("raised", error.type, error.message, cause)


def _rebuilt(error: ErrorInfo) -> BaseException:
    """The exception of another process, its traceback there as its cause, as in the standard library.

    RuntimeError in the place of one that did not survive the way.
    """
    from concurrent.futures.process import _RemoteTraceback

    found: Any = None
    with contextlib.suppress(Exception):  # its own
        found = pickle.loads(error.exception)  # type: ignore[arg-type]
    cause = found if isinstance(found, BaseException) else RuntimeError(f"{error.type}: {error.message}")
    text: Any = f'\n"""\n{error.traceback}"""'
    cause.__cause__ = _RemoteTraceback(text)
    return cause


def lost(task: int, attempt: int, message: str) -> Outcome:
    """The outcome of a task whose worker disappeared."""
    return Outcome(task, attempt, [], (), Failure("lost", "WorkerLost", message), 0.0)
