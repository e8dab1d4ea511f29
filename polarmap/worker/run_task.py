"""The program of a worker: read a block, call f of it or of its pieces, store or send the results.

Imports numpy at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from polarmap.worker.faults import Fault, FaultyCall
from polarmap.worker.frames import END, SUBTASK, Message
from polarmap.worker.messages import Reply, Ticket, describe, pickled, plain
from polarmap.worker.parts import Part, Place, read_part, remove_parts, write_object
from polarmap.worker.pytree import Packed, flatten, pack, unflatten
from polarmap.worker.stored_output import StoredOutput, store_result

# Results of subtasks, packed in a list, and which subtasks these are; none: that of a whole task.
PartialResult = tuple[Packed, tuple[int, ...]]


class TaskIO:
    """What connects a task with the driver that waits for it.

    storage : a `lithops.Storage`, for what lies in buckets.
    encrypted : an `EncryptedIO`, for tickets that ask for it.
    """

    def __init__(self, storage: Any = None, encrypted: Any = None) -> None:
        self.storage, self.encrypted = storage, encrypted

    def load(self, ticket: Ticket) -> tuple[Callable[[Any], Any], Any]:
        """f and the block."""
        raise NotImplementedError

    def is_cancelled(self) -> bool:
        """Whether it is known that nobody waits any more."""
        raise NotImplementedError

    def hand_in(self, subtask: int, message: Message) -> bool:
        """Send the result of a subtask; False if that did not work."""
        raise NotImplementedError

    def header(self, reply: Reply) -> Any:
        """A reply as it travels beside the bytes of its result."""
        return pickled(plain(reply))

    def read(self, place: Place, part: Part) -> Any:
        """The bytes of a part, decrypted."""
        if place.encryption is None:
            return read_part(place, part, self.storage)
        return self.encrypted.read(place, part, self.read)

    def write(self, place: Place, key: str, data: Any) -> None:
        """Store a part of the result."""
        write_object(place, key, data, self.storage)


def run_task(ticket: Ticket, io: TaskIO) -> Message | None:
    """The reply of a task, that is f of the block of its ticket; None if nobody waits for it any more."""
    started = time.time()

    def told(kind: bytes, reply: Reply, data: Any = b"") -> Message:
        message = Message(kind, (-1, ticket.task, ticket.attempt), io.header(reply), data)
        return message if ticket.encryption is None else io.encrypted.reply(message, ticket.encryption)

    def result(kind: bytes, one: PartialResult, stored: StoredOutput | None = None) -> Message:
        (structure, layout, data), subtasks = one
        return told(kind, Reply(None, time.time() - started, structure, layout, stored, subtasks), data)

    rest: list[PartialResult] = []  # what travels with the end: the last result, and what was not sent
    count = len(ticket.subtask_order) or 1
    try:
        f, block = io.load(ticket)
        results = evaluate(packing(f, ticket.fault, count), block, ticket.subtask_order)
        del f, block  # the results hold them for as long as they are needed
        for number, evaluated in enumerate(results, 1):
            one = evaluated()
            del evaluated  # it holds the block
            if number == count or not io.hand_in(one[1][0], result(SUBTASK, one)):
                rest.append(one)
        if ticket.output is None:
            return result(END, joined(rest))
        if io.is_cancelled():
            return None
        sample, stored = store_result(
            joined(rest)[0], ticket.output, ticket.task, ticket.attempt, io.write, io.encrypted
        )
        if io.is_cancelled():  # the driver has cleaned up
            remove_parts(ticket.output.source, stored.parts, io.storage)
            return None
        return result(END, (sample, ()), stored)
    except BaseException as error:
        return told(END, Reply(describe(error), time.time() - started))


def packing(f: Callable[[Any], Any], fault: Fault | None = None, count: int = 1) -> Callable[[Any], Packed]:
    """f with its results packed, and with a fault that is spread over `count` calls."""

    def call(block: Any) -> Packed:
        process = os.getpid()
        try:
            result = f(block)
        finally:
            if os.getpid() != process:  # a child that f has forked: its parent replies
                os._exit(0)
        return pack(result)

    return call if fault is None else FaultyCall(call, fault, count)


def subtask_order(task: int, count: int) -> tuple[int, ...]:
    """The order in which a task takes its subtasks: each task starts one further on.

    So half-finished tasks have finished different subtasks, and all of these get on together.

    >>> subtask_order(0, 4), subtask_order(5, 4), subtask_order(3, 1)
    ((0, 1, 2, 3), (1, 2, 3, 0), ())
    """
    return tuple((task + step) % count for step in range(count)) if count > 1 else ()


def rows(total: int, count: int, subtask: int) -> slice:
    """The rows of a block of `total` rows that a subtask takes.

    >>> [rows(7, 3, subtask) for subtask in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(total * subtask // count, total * (subtask + 1) // count)


def evaluate(
    call: Callable[[Any], Packed], block: Any, order: Sequence[int]
) -> Iterator[Callable[[], PartialResult]]:
    """What calls it for each piece of a block, in this order; for the whole block without one."""
    # Not the results themselves: StopIteration, which f may raise, does not pass a generator.
    if not order:
        yield lambda: (call(block), ())
        return
    leaves, structure = flatten(block)

    def of_piece(subtask: int) -> PartialResult:
        piece = [leaf[rows(len(leaf), len(order), subtask)] for leaf in leaves]
        packed = call(unflatten(structure, piece))
        return packed._replace(structure=(list, (), (packed.structure,))), (subtask,)

    for subtask in order:
        yield partial(of_piece, subtask)


def joined(parts: Sequence[PartialResult]) -> PartialResult:
    """Several as one."""
    if len(parts) == 1:
        return parts[0]
    children = tuple(child for packed, _ in parts for child in packed.structure[2])
    layout = tuple(leaf for packed, _ in parts for leaf in packed.layout)
    data = b"".join(packed.data for packed, _ in parts)
    return Packed((list, (), children), layout, data), tuple(one for _, ones in parts for one in ones)
