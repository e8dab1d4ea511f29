"""The program of a worker: read a block, call f of it, store or send the result.

Imports numpy at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from polarmap.worker.faults import Fault, faulty
from polarmap.worker.messages import Reply, Ticket, describe, pickled, plain
from polarmap.worker.parts import Part, Place, read_part, remove_parts, write_object
from polarmap.worker.pytree import Packed, pack
from polarmap.worker.stored_output import store_result
from polarmap.worker.stream import END, Message


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

    def told(reply: Reply, data: Any = b"") -> Message:
        message = Message(END, (-1, ticket.task, ticket.attempt), io.header(reply), data)
        return message if ticket.encryption is None else io.encrypted.reply(message, ticket.encryption)

    try:
        f, block = io.load(ticket)
        result, stored = packing(f, ticket.fault)(block), None
        del f, block  # what is stored and sent may need their room
        if ticket.output is not None:
            if io.is_cancelled():
                return None
            attempt = ticket.task, ticket.attempt
            result, stored = store_result(result, ticket.output, *attempt, io.write, io.encrypted)
            if io.is_cancelled():  # the driver has cleaned up
                remove_parts(ticket.output.source, stored.parts, io.storage)
                return None
        return told(Reply(None, time.time() - started, result.structure, result.layout, stored), result.data)
    except BaseException as error:
        return told(Reply(describe(error), time.time() - started))


def packing(f: Callable[[Any], Any], fault: Fault | None) -> Callable[[Any], Packed]:
    """f with its results packed, and with a fault that it suffers."""

    def call(block: Any) -> Packed:
        process = os.getpid()
        try:
            result = f(block)
        finally:
            if os.getpid() != process:  # a child that f has forked: its parent replies
                os._exit(0)
        return pack(result)

    return call if fault is None else faulty(call, fault)
