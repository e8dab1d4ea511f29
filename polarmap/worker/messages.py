"""What drivers and workers tell each other: a Ticket goes out, a Reply comes back. Plain data.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from polarmap.worker.faults import Fault
from polarmap.worker.parts import Part, Place, Reader, assemble
from polarmap.worker.pytree import Layout, Packed, Structure, unflatten
from polarmap.worker.stored_output import OutputSpec, StoredOutput

MESSAGE_CHARACTERS = 10_000  # of an error, and of its traceback, that travel
PICKLED_BYTES = 1 << 20  # of an exception that travels as it is

T = TypeVar("T")


def plain(message: Any) -> Any:
    """A message with its named tuples as plain ones: what travels, so that its reader needs no polarmap.

    Named tuples of the caller, which may be keys in a structure, stay as they are.
    """
    if type(message) is tuple or type(message).__module__.startswith("polarmap.worker."):
        return tuple(map(plain, message))
    return message


class StoredBlock(NamedTuple):
    """A block in storage, which its worker reads.

    source : where its parts lie.
    parts : whose bytes in a row are the block.
    """

    source: Place
    parts: tuple[Part, ...]
    structure: Structure
    layout: Layout

    def load(self, read: Reader) -> Any:
        """The block, its parts read by `read`; DamagedError if they are not as they were written."""
        # The bytes get no name: f may need the room that this second copy of the block takes.
        leaves = Packed(self.structure, self.layout, assemble(self.parts, read)).unpack()
        return unflatten(self.structure, leaves)

    @classmethod
    def parse(cls, fields: tuple[Any, ...]) -> StoredBlock:
        """One from what `plain` made of it."""
        source, parts, structure, layout = fields
        return cls(Place(*source), tuple(Part(*part) for part in parts), structure, layout)


class Ticket(NamedTuple):
    """What a worker is told of one attempt of a task, a few hundred bytes.

    block : what to read; None if the block comes with the ticket.
    fault : that this attempt suffers.
    output : where to store the result instead of sending it.
    subtask_order : the order of its subtasks; empty if the task is not cut.
    encryption : its fields, of replies.
    """

    task: int
    attempt: int
    block: StoredBlock | None
    fault: Fault | None
    output: OutputSpec | None
    subtask_order: tuple[int, ...] = ()
    encryption: Any = None

    @classmethod
    def parse(cls, fields: tuple[Any, ...]) -> Ticket:
        """One from what `plain` made of it."""
        task, attempt, block, fault, output, *rest = fields
        return cls(
            task,
            attempt,
            block and StoredBlock.parse(block),
            fault and Fault(*fault),
            output and OutputSpec.parse(output),
            *rest,
        )


class Error(NamedTuple):
    """An exception as plain text, and pickled where that works."""

    type: str
    message: str
    traceback: str
    pickled: bytes | None


class Reply(NamedTuple):
    """What a task reports: a result, or an error.

    started, ended : `time.time()` on the worker.
    stored : where the result lies, if it stays in storage and `result` is a sample.
    subtasks : whose results these are, in a list; the others were handed in before.
    """

    task: int
    attempt: int
    result: Packed | None
    error: Error | None
    started: float
    ended: float
    stored: StoredOutput | None = None
    subtasks: tuple[int, ...] = ()

    @classmethod
    def parse(cls, fields: tuple[Any, ...]) -> Reply:
        """One from what `plain` made of it."""
        task, attempt, result, error, started, ended, stored, subtasks = fields
        return cls(
            task,
            attempt,
            result and Packed(*result),
            error and Error(*error),
            started,
            ended,
            stored and StoredOutput.parse(stored),
            subtasks,
        )

    def to_bytes(self) -> bytes:
        """Itself as bytes that tell whether they are all there."""
        data = pickle.dumps(plain(self))
        return len(data).to_bytes(8, "big") + data

    @classmethod
    def from_bytes(cls, data: bytes) -> Reply | None:
        """The inverse of `to_bytes`; None while they are still being written."""
        if len(data) < 8 or len(data) - 8 < int.from_bytes(data[:8], "big"):
            return None
        return cls.parse(pickle.loads(data[8:]))


def describe(error: BaseException) -> Error:
    """An exception in a form that always travels, whatever its own methods do."""
    message = _attempt(lambda: str(error)[:MESSAGE_CHARACTERS], "<its __str__ raised>")
    text = _attempt(lambda: _traceback(error), message)
    return Error(type(error).__name__, message, text, _attempt(lambda: _pickled(error), None))


def _attempt(call: Callable[[], T], otherwise: T) -> T:
    """What the caller's own code gives, if it gives anything."""
    try:
        return call()
    except BaseException:
        return otherwise


def _traceback(error: BaseException) -> str:
    """From the first line on that is not ours; its end, where the error stands, if it is long."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("polarmap."):
        trace = trace.tb_next
    text = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return "".join(text)[-MESSAGE_CHARACTERS:]


def _pickled(error: BaseException) -> bytes | None:
    """None for one that is too large."""
    data = pickle.dumps(error)
    pickle.loads(data)
    return data if len(data) <= PICKLED_BYTES else None
