"""The program of a worker: read a block, call f of it, store or send the result; with a fault, if it is to.

Imports numpy at most.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from polarmap.worker.encryption import encrypted_reply, get_part, put_parts
from polarmap.worker.messages import Fault, OutputSpec, Reply, Ticket, describe, pickled, plain
from polarmap.worker.parts import Part, Place, read_part, remove_parts, write_object
from polarmap.worker.pytree import BOTH, Packed, flatten, pack, pack_leaves, unflatten, unpacked
from polarmap.worker.stream import END, Message

SAMPLE = 256  # numbers of a result that travel when it stays in storage


class TaskIO:
    """A connection between a task and its driver."""

    # map : the number of the map that the task belongs to, where there are several.
    # storage : a `lithops.Storage`, to read from buckets and write to them.

    map = -1

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
        return pickled((reply.error and plain(reply.error), *reply[1:]))

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
        message = Message(END, (io.map, ticket.task, ticket.attempt), io.header(reply), data)
        return message if ticket.encryption is None else encrypted_reply(message, ticket.encryption)

    try:
        f, block = io.load(ticket)
        rows, fault, stored = ticket.rows, ticket.fault, None
        result = both_results(f, block, rows, fault) if rows else result_of(f, block, fault)
        del f, block  # what is stored and sent may need their room
        if ticket.output is not None:
            if io.is_cancelled():
                return None
            layout = result.layout
            result, parts = store_result(result, ticket, ticket.output, io)
            if io.is_cancelled():  # the driver has cleaned up
                remove_parts(ticket.output.source, parts, io.storage)
                return None
            stored = layout, plain(parts)
        return told(Reply(None, time.time() - started, result.structure, result.layout, stored), result.data)
    except BaseException as error:
        return told(Reply(describe(error), time.time() - started))


def result_of(f: Callable[[Any], Any], block: Any, fault: Fault | None = None) -> Packed:
    """f of a block, packed, with a fault that this suffers."""
    kind, process = fault and fault.kind, os.getpid()
    if fault is not None and kind == "sleep":
        time.sleep(fault.seconds)
    if kind == "raise":
        raise RuntimeError("injected fault")
    if kind == "exit":
        os._exit(3)
    if kind == "kill":
        os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    try:
        result = f(block)
    finally:
        if os.getpid() != process:  # a child that f has forked: its parent replies
            os._exit(0)
    packed = pack(result)
    return corrupted(packed) if kind == "garbage" else packed


def both_results(f: Callable[[Any], Any], block: Any, rows: int, fault: Fault | None) -> Packed:
    """Return f of a block that rows of zeros fill up, and f of its first rows, packed together."""
    # Only the second is a result that the caller of the map asked for. Its arrays come last. If f raises an
    # exception of the rows of zeros, the first has no arrays and no structure.
    leaves, structure = flatten(block)
    leaves[-1] = leaves[-1][: rows + (len(leaves) > 1)]  # of sparse rows the last array is `indptr`
    own = result_of(f, unflatten(structure, [leaf.copy() for leaf in leaves]), fault)
    first = Packed((), (), b"")
    with suppress(Exception):
        first = result_of(f, block, fault if fault and fault.kind == "garbage" else None)
    told = (BOTH, len(first.layout), first.structure, own.structure)
    return Packed(told, first.layout + own.layout, b"".join([first.data, own.data]))


def corrupted(result: Packed) -> Packed:
    """A result of the same layout with other bytes."""
    return result._replace(data=bytes(byte ^ 0x15 for byte in bytes(result.data)))


# --- results that stay in storage ---------------------------------------------------------------


def store_result(
    result: Packed, ticket: Ticket, output: OutputSpec, io: TaskIO
) -> tuple[Packed, tuple[Part, ...]]:
    """Store each array of a result as an object, and return a sample and the parts that hold its bytes."""
    # The sample is the same linear function of every result, so that linearity can be verified on samples.
    # Its structure tells that of the result.
    _check_is_arrays(result, output.arrays)
    parts: list[Part] = []
    samples = []
    for number, array in enumerate(unpacked(result.layout, result.data, is_writable=False)):
        flat = array.reshape(-1)
        samples.append(sample(flat, max(1, SAMPLE // output.arrays)))
        key = output.key(ticket.task, ticket.attempt, number)
        parts += io.write(output.source, key, flat.view(np.uint8).data, output.items * flat.itemsize)
    shape = result.layout and result.layout[0][1]
    packed = pack_leaves(samples, ("sample", shape, result.structure))
    return packed, tuple(parts)


def sample(array: Any, count: int = SAMPLE) -> Any:
    """At most `count` numbers of an array, evenly spread.

    >>> sample(np.arange(100), 4).tolist()
    [0, 33, 66, 99]
    """
    flat = array.reshape(-1)
    return flat[np.linspace(0, max(0, flat.size - 1), min(flat.size, count)).astype(np.int64)]


def _check_is_arrays(result: Packed, count: int) -> None:
    """TypeError for a result that does not consist of so many plain arrays."""
    if len(result.layout) != count:
        raise TypeError(f"a result that stays in storage is one array; f returned {len(result.layout)}")
    if count == 1 and len(result.structure) > 1:
        kind = result.structure[0].__name__
        raise TypeError(f"a result that stays in storage is one array; f returned it in a {kind}")
    if count == 1 and result.structure == ("matrix",):
        raise TypeError("a result that stays in storage is one array: return it as a numpy.ndarray")
