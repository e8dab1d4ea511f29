"""The small interface between the collector and whatever runs tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import cloudpickle
import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError, ExecutorError
from polarmap.remote.stored import DamagedError, Keep, Kept, Part, Place
from polarmap.remote.tree import Layout, Structure
from polarmap.remote.worker import FAULTS, Error, Fault, Reply

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


class Outcome(NamedTuple):
    """What became of one attempt of a task: leaves and structure of its result, or a failure."""

    task: int
    attempt: int
    leaves: list[Array] | None
    structure: Structure | None
    failure: Failure | None
    seconds: float  # that the worker spent; 0 if unknown
    kept: Kept | None = None  # where the result lies if the leaves are only a sample of it
    subtasks: tuple[int, ...] = ()  # whose results these are, in a list; empty: of the whole task
    over: bool = True  # whether the attempt has ended


class Coded(Protocol):
    """The coded blocks, made as they are asked for: the first k are wanted most, the rest is parity."""

    @property
    def n(self) -> int: ...

    @property
    def k(self) -> int: ...

    @property
    def structure(self) -> Structure: ...

    def leaves(self, index: int) -> list[Array]:
        """The arrays of block `index`."""
        ...

    def layout(self, index: int) -> Layout:
        """Dtype and shape of each of them, before they are made."""
        ...

    def release(self) -> None:
        """Every block has been handed on: memory may be freed."""
        ...

    @property
    def source(self) -> Place | None:
        """Where the blocks lie in storage already; None if they are in memory only."""
        ...

    def parts(self, index: int) -> tuple[Part, ...]:
        """What block `index` consists of at its source."""
        ...

    def pieces(self, index: int) -> Sequence[int]:
        """Numbers of what block `index` is made of: a piece of several blocks is stored once.

        Its leaves are those of its pieces in a row.
        """
        ...

    def piece(self, number: int) -> list[Array]:
        """The leaves of a piece."""
        ...


class Executor(Protocol):
    """Starts tasks, tells as each ends, stops the rest. Used for one map at a time.

    `keep`, set before the start, lets results stay in storage; `subtasks`, if more than 1, has each
    task cut into so many, whose results are told as they come.
    """

    name: str
    keep: Keep | None
    subtasks: int

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def start(
        self, f: Function, coded: Coded, faults: Mapping[int, Fault], tasks: Sequence[int] | None = None
    ) -> None:
        """Start f on these coded blocks, or on all, in this order. Called once, before all else."""
        ...

    def launch(self, tasks: Sequence[int]) -> None:
        """Start further ones, which have not been started yet; their blocks are made only now."""
        ...

    def began(self) -> Mapping[int, float]:
        """When the tasks began that run now, by `now`'s clock; those that wait for a slot are left out."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """What ended, as soon as anything did; empty after `timeout` seconds."""
        ...

    def is_exhausted(self) -> bool:
        """Whether nothing will end any more unless something is started."""
        ...

    def retry(self, tasks: Sequence[int]) -> None:
        """Start these tasks once more."""
        ...

    def stop(self) -> None:
        """Abandon all that runs and remove all that was stored. Safe at any time, and twice."""
        ...


@dataclass(frozen=True)
class FaultyExecutor:
    """An executor with misfortunes injected, for tests, demonstrations and benchmarks.

    Parameters
    ----------
    executor : whatever `coded_map` accepts
    faults : mapping from task index to Fault

    Examples
    --------
    >>> FaultyExecutor("localhost", {3: Fault("sleep", seconds=20), 7: Fault("kill")}).executor
    'localhost'
    """

    executor: Any = None
    faults: Mapping[int, Fault] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.faults, Mapping):
            raise CodeError(f"faults must be a mapping from task to Fault, not {self.faults!r:.100}")
        for task, fault in self.faults.items():
            if not _is_count(task) or not isinstance(fault, Fault):
                raise CodeError(f"faults map tasks by number to a Fault each, not {task!r} to {fault!r:.100}")
            _check_fault(fault)


def _check_fault(fault: Fault) -> None:
    """CodeError for one that no worker could suffer."""
    kind: Any = fault.kind
    seconds: Any = fault.seconds
    if not isinstance(kind, str) or kind not in FAULTS:
        raise CodeError(f"the kind of a Fault is one of {', '.join(FAULTS)}, not {kind!r:.100}")
    is_number = isinstance(seconds, (int, float, np.integer, np.floating)) and not isinstance(seconds, bool)
    if not is_number or not seconds >= 0:
        raise CodeError(f"seconds of a Fault must be a number of at least 0, not {seconds!r:.100}")
    if not _is_count(fault.attempts):
        raise CodeError(f"attempts of a Fault must be an integer of at least 0, not {fault.attempts!r:.100}")


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 0)


def outcome_of(reply: Reply, data: bytes | None = None) -> Outcome:
    """A worker's reply as an outcome; `data` is its result's bytes if they came separately."""
    seconds = reply.ended - reply.started
    if reply.error is not None:
        return Outcome(reply.task, reply.attempt, None, None, failure_of(reply.error), seconds)
    assert reply.result is not None
    packed = reply.result if data is None else reply.result._replace(data=data)
    expected = layout_bytes(packed.layout)
    if len(packed.data) != expected:
        message = f"its result has {len(packed.data)} of {expected} bytes in storage"
        return lost(reply.task, reply.attempt, message)
    leaves = packed.unpack()
    return Outcome(
        reply.task, reply.attempt, leaves, packed.structure, None, seconds, reply.kept, reply.subtasks
    )


def check_folder(source: Place | None) -> None:
    """Raise for storage that is no folder of this machine."""
    if source is None or source.kind == "folder":
        return
    if source.kind == "driver":
        raise ExecutorError(f"the array is in {source.place}, which workers cannot reach: use a thread pool")
    raise ExecutorError(
        f"the array is in {source.backend} bucket {source.place!r}: pass executor=, the Lithops "
        "configuration of that bucket"
    )


def layout_bytes(layout: Sequence[tuple[Any, tuple[int, ...]]]) -> int:
    """What arrays of this layout weigh."""
    return sum(np.dtype(name).itemsize * int(np.prod(shape)) for name, shape in layout)


def failure_of(error: Error) -> Failure:
    """A worker's error with its exception rebuilt, or replaced by one that shows its traceback."""
    if error.type == DamagedError.__name__:
        return Failure("damaged", error.type, error.message)
    cause: BaseException | None = None
    if error.pickled is not None:
        try:
            import pickle

            cause = pickle.loads(error.pickled)
        except Exception:
            cause = None
    if not isinstance(cause, Exception):
        cause = RuntimeError(f"on the worker:\n{error.traceback}")
    return Failure("raised", error.type, error.message, cause)


def lost(task: int, attempt: int, message: str) -> Outcome:
    """The outcome of a task whose worker disappeared."""
    return Outcome(task, attempt, None, None, Failure("lost", "WorkerLost", message), 0.0)


def pickled(f: Function, place: str) -> bytes:
    """f as bytes for a worker elsewhere; CodeError if it cannot travel to `place`."""
    try:
        return bytes(cloudpickle.dumps(f))
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {place}: {type(error).__name__}: {error}") from error
