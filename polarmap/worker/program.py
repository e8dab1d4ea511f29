"""The program of a worker: read a block, call f of it, store or send the result.

Imports numpy at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from polarmap.worker.encryption import encrypted_reply, get_part, put_parts
from polarmap.worker.faults import Fault, faulty
from polarmap.worker.messages import Reply, Ticket, describe, pickled, plain
from polarmap.worker.parts import Part, Place, read_part, remove_parts, write_object
from polarmap.worker.pytree import Packed, pack
from polarmap.worker.stored_output import store_result
from polarmap.worker.stream import END, Message


class TaskIO:
    """What connects a task with the driver that waits for it.

    storage : a `lithops.Storage`, for what lies in buckets.
    """

    def __init__(self, storage: Any = None) -> None:
        self.storage = storage

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
        """The bytes of a part; DamagedError if they are not what was stored."""
        return get_part(place, part, partial(self.read_stored, place))

    def read_stored(self, place: Place, part: Part) -> Any:
        """The bytes of a part as they lie there."""
        return read_part(place, part, self.storage)

    def write(self, place: Place, key: str, data: Any, size: int) -> list[Part]:
        """Store an array of the result as an object; its parts, of so many bytes each but the last."""
        return put_parts(place, key, data, size, partial(write_object, place, storage=self.storage))


def run_task(ticket: Ticket, io: TaskIO) -> Message | None:
    """The reply of a task, that is f of the block of its ticket; None if nobody waits for it any more."""
    started = time.time()

    def told(reply: Reply, data: Any = b"") -> Message:
        message = Message(END, (-1, ticket.task, ticket.attempt), io.header(reply), data)
        return message if ticket.encryption is None else encrypted_reply(message, ticket.encryption)

    try:
        f, block = io.load(ticket)
        result, stored = packing(f, ticket.fault)(block), None
        del f, block  # what is stored and sent may need their room
        if ticket.output is not None:
            if io.is_cancelled():
                return None
            layout = result.layout
            result, parts = store_result(result, ticket.output, ticket.task, ticket.attempt, io.write)
            if io.is_cancelled():  # the driver has cleaned up
                remove_parts(ticket.output.source, parts, io.storage)
                return None
            stored = layout, parts
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
