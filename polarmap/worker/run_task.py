"""The program of a worker: read a block, call f, store or send the result. Imports numpy at most."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from polarmap.worker.faults import Fault, FaultyCall
from polarmap.worker.messages import Reply, Ticket, describe
from polarmap.worker.partial_results import PartialResult, evaluate, joined
from polarmap.worker.parts import Part, Place, read_part, remove_parts, write_object
from polarmap.worker.pytree import Packed, pack
from polarmap.worker.stored_output import store_result


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

    def hand_in(self, reply: Reply) -> bool:
        """Send the result of a subtask; False if that did not work."""
        raise NotImplementedError

    def read(self, place: Place, part: Part) -> Any:
        """The bytes of a part, decrypted."""
        if place.encryption is None:
            return read_part(place, part, self.storage)
        return self.encrypted.read(place, part, self.read)

    def write(self, place: Place, key: str, data: Any) -> None:
        """Store a part of the result."""
        write_object(place, key, data, self.storage)


def run_task(ticket: Ticket, io: TaskIO) -> Reply | None:
    """f of the block that a ticket names, as it is to be told; None if nobody waits for it any more."""
    started = time.time()

    def told(reply: Reply) -> Reply:
        return reply if ticket.encryption is None else io.encrypted.reply(reply, ticket.encryption)

    def reply(one: PartialResult) -> Reply:
        return Reply(ticket.task, ticket.attempt, one.packed, None, started, time.time(), None, one.subtasks)

    rest: list[PartialResult] = []  # what travels with the end: the last result, and what was not sent
    count = len(ticket.subtask_order) or 1
    try:
        f, block = io.load(ticket)
        results = evaluate(packing(f, ticket.fault, count), block, ticket.subtask_order)
        del f, block  # the results hold them for as long as they are needed
        for number, evaluated in enumerate(results, 1):
            result = evaluated()
            del evaluated  # it holds the block
            if number == count or not io.hand_in(told(reply(result))):
                rest.append(result)
        whole = reply(joined(rest))
        left = whole if ticket.output is None else _stored(whole, ticket, io)
        return left and told(left)
    except BaseException as error:
        return told(Reply(ticket.task, ticket.attempt, None, describe(error), started, time.time()))


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


def _stored(reply: Reply, ticket: Ticket, io: TaskIO) -> Reply | None:
    """A reply whose result has been stored and is a sample now; what nobody waits for is not left there."""
    assert ticket.output is not None
    assert reply.result is not None
    if io.is_cancelled():
        return None
    sample, stored = store_result(
        reply.result, ticket.output, reply.task, reply.attempt, io.write, io.encrypted
    )
    if io.is_cancelled():  # the driver has cleaned up
        remove_parts(ticket.output.source, stored.parts, io.storage)
        return None
    return reply._replace(result=sample, stored=stored, ended=time.time())
