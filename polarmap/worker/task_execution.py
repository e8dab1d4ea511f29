"""Run a task on a worker: read its block, call f with it, and store the result or send it to the driver.

`run_task` does this for every kind of worker. A `TaskIO` provides f and the block, and reads and writes what
is stored. Imports numpy at most.
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

from polarmap.worker.encryption import encrypt_reply, read_segment, write_segments
from polarmap.worker.locations import Location
from polarmap.worker.messages import Message, MessageKind
from polarmap.worker.pytree import (
    BOTH_RESULTS,
    PackedTree,
    flatten,
    pack_leaves,
    pack_tree,
    unflatten,
    unpack_leaves,
)
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import (
    Fault,
    OutputSpec,
    TaskReply,
    TaskRequest,
    describe_error,
    pickle_value,
    to_plain_tuple,
)

SAMPLE_SIZE = 256  # number of entries of a stored result that are sent to the driver


class TaskIO:
    """The inputs and outputs of tasks, with a subclass for each kind of worker.

    Attributes
    ----------
    job_id : int
        The id of the job that the task belongs to; -1 if the worker serves only one job.
    storage : lithops.Storage or None
        The storage of buckets; None if no storage is used.
    """

    job_id = -1

    def __init__(self, storage: Any = None) -> None:
        self.storage = storage

    def load_inputs(self, request: TaskRequest) -> tuple[Callable[[Any], Any], Any]:
        """Return f and the block of a task."""
        raise NotImplementedError

    def receive_pending(self) -> None:
        """Read the messages that the driver has sent. The default does nothing."""

    def is_cancelled(self) -> bool:
        """Return whether the task is known to be cancelled."""
        raise NotImplementedError

    def encode_header(self, reply: TaskReply) -> Any:
        """Return a reply as it is sent with the bytes of its result."""
        return pickle_value((reply.error and to_plain_tuple(reply.error), *reply[1:]))

    def read_segment(self, location: Location, segment: Segment) -> Any:
        """Return the bytes of a segment; raise DamagedError if they differ from the stored ones."""
        return read_segment(location, segment, partial(location.read, access=self))

    def fetch_from_driver(self, segment: Segment, private_root: str | None = None) -> Any:
        """Request a segment from the driver and return its stored bytes."""
        raise NotImplementedError("the driver of this task answers no requests")

    def write_array(self, location: Location, key: str, data: Any, segment_bytes: int) -> list[Segment]:
        """Store an array as an object and return its segments, of `segment_bytes` bytes each but the last."""
        return write_segments(location, key, data, segment_bytes, partial(location.write, access=self))


def run_task(request: TaskRequest, task_io: TaskIO) -> Message | None:
    """Run a task and return its reply, or None if it was cancelled."""
    started_at = time.time()

    def encode_reply(reply: TaskReply, data: Any = b"") -> Message:
        attempt_key = task_io.job_id, request.task, request.attempt
        message = Message(MessageKind.TASK_REPLY, attempt_key, task_io.encode_header(reply), data)
        return message if request.encryption is None else encrypt_reply(message, request.encryption)

    try:
        f, block = task_io.load_inputs(request)
        n_data_rows, fault, result_ref = request.n_data_rows, request.fault, None
        result = (
            compute_with_and_without_padding(f, block, n_data_rows, fault)
            if n_data_rows
            else compute_result(f, block, fault)
        )
        del f, block  # Free their memory before the result is stored or sent.
        if request.output is not None:
            task_io.receive_pending()
            if task_io.is_cancelled():
                return None
            layout = result.layout
            result, segments = store_result(result, request, request.output, task_io)
            task_io.receive_pending()
            if task_io.is_cancelled():  # The driver has deleted objects already: delete these, too.
                request.output.location.delete({segment.key for segment in segments}, task_io)
                return None
            result_ref = layout, to_plain_tuple(segments)
        seconds = time.time() - started_at
        reply = TaskReply(None, seconds, result.structure, result.layout, result_ref)
        return encode_reply(reply, result.data)
    except BaseException as error:
        return encode_reply(TaskReply(describe_error(error), time.time() - started_at))


def compute_result(f: Callable[[Any], Any], block: Any, fault: Fault | None = None) -> PackedTree:
    """Return f of a block, packed, after injecting a fault."""
    fault_kind, pid = fault and fault.kind, os.getpid()
    if fault is not None and fault_kind == "sleep":
        time.sleep(fault.seconds)
    if fault_kind == "raise":
        raise RuntimeError("injected fault")
    if fault_kind == "exit":
        os._exit(3)
    if fault_kind == "kill":
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    try:
        result = f(block)
    finally:
        if os.getpid() != pid:  # f has forked this process: only the parent replies.
            os._exit(0)
    packed_result = pack_tree(result)
    return corrupt_result(packed_result) if fault_kind == "garbage" else packed_result


def compute_with_and_without_padding(
    f: Callable[[Any], Any], block: Any, n_data_rows: int, fault: Fault | None
) -> PackedTree:
    """Call f with a zero-padded block and with its first `n_data_rows` rows; pack both results together."""
    # Only the result without padding is one that the user has asked for; its arrays come last. If f raises an
    # exception because of the padding, the other result has no arrays and no structure.
    leaves, structure = flatten(block)
    leaves[-1] = leaves[-1][: n_data_rows + (len(leaves) > 1)]  # The last array of sparse rows is `indptr`.
    unpadded = compute_result(f, unflatten(structure, [leaf.copy() for leaf in leaves]), fault)
    padded = PackedTree((), (), b"")
    with suppress(Exception):
        padded = compute_result(f, block, fault if fault and fault.kind == "garbage" else None)
    both_structures = (BOTH_RESULTS, len(padded.layout), padded.structure, unpadded.structure)
    data = b"".join([padded.data, unpadded.data])
    return PackedTree(both_structures, padded.layout + unpadded.layout, data)


def corrupt_result(result: PackedTree) -> PackedTree:
    """Return a result with the same layout and different bytes."""
    return result._replace(data=bytes(byte ^ 0x15 for byte in bytes(result.data)))


# --- stored results -------------------------------------------------------------------------------


def store_result(
    result: PackedTree, request: TaskRequest, output: OutputSpec, task_io: TaskIO
) -> tuple[PackedTree, tuple[Segment, ...]]:
    """Store each array of a result as an object, and return a sample of it and its segments."""
    # The sample is the same linear function of every result, so that linearity can be verified on samples.
    # The structure of the sample contains that of the result.
    _check_plain_arrays(result, output.n_arrays)
    segments: list[Segment] = []
    samples = []
    for array_index, array in enumerate(unpack_leaves(result.layout, result.data, writable=False)):
        flat = array.reshape(-1)
        samples.append(sample_evenly(flat, max(1, SAMPLE_SIZE // output.n_arrays)))
        key = output.make_object_key(request.task, request.attempt, array_index)
        segment_bytes = output.max_segment_items * flat.itemsize
        segments += task_io.write_array(output.location, key, flat.view(np.uint8).data, segment_bytes)
    shape = result.layout and result.layout[0][1]
    packed = pack_leaves(samples, ("sample", shape, result.structure))
    return packed, tuple(segments)


def sample_evenly(array: Any, max_items: int = SAMPLE_SIZE) -> Any:
    """Return at most `max_items` entries of an array, evenly spaced.

    >>> sample_evenly(np.arange(100), 4).tolist()
    [0, 33, 66, 99]
    """
    flat = array.reshape(-1)
    return flat[np.linspace(0, max(0, flat.size - 1), min(flat.size, max_items)).astype(np.int64)]


def _check_plain_arrays(result: PackedTree, n_arrays: int) -> None:
    """Raise TypeError unless a result consists of `n_arrays` plain arrays."""
    if len(result.layout) != n_arrays:
        raise TypeError(f"a result that stays in storage is one array; f returned {len(result.layout)}")
    if n_arrays == 1 and len(result.structure) > 1:
        container_name = result.structure[0].__name__
        raise TypeError(f"a result that stays in storage is one array; f returned it in a {container_name}")
    if n_arrays == 1 and result.structure == ("matrix",):
        raise TypeError("a result that stays in storage is one array: return it as a numpy.ndarray")
