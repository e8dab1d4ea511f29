"""Run a task on a worker: read its data block, call the user's function f, and store or send the result.

`run_task` does this for every kind of worker. A `TaskIO` object provides f and the block, and accesses stored
data. This module runs on workers, so it imports at most numpy.
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

SAMPLE_SIZE = 256  # number of entries of a stored result that are sent to the driver as a sample


class TaskIO:
    """The base class for objects that load a task's inputs and access stored data.

    There is a subclass for each kind of worker.

    Attributes
    ----------
    job_id : int
        The id of the job that the task belongs to; -1 if the worker serves only one job.
    storage : lithops.Storage or None
        The client for buckets; None if the task uses no buckets.
    """

    job_id = -1

    def __init__(self, storage: Any = None) -> None:
        self.storage = storage

    def load_inputs(self, request: TaskRequest) -> tuple[Callable[[Any], Any], Any]:
        """Return the user's function, and the data block to call it with."""
        raise NotImplementedError

    def receive_pending_messages(self) -> None:
        """Read the messages that the driver has sent. The default implementation does nothing."""

    def is_cancelled(self) -> bool:
        """Return whether the driver has cancelled the task."""
        raise NotImplementedError

    def encode_header(self, reply: TaskReply) -> Any:
        """Encode a reply as the header of the message to the driver.

        The header does not contain the bytes of the result, which are the data of the message.
        """
        return pickle_value((reply.error and to_plain_tuple(reply.error), *reply[1:]))

    def read_segment(self, location: Location, segment: Segment) -> Any:
        """Return the verified and decrypted bytes of a segment (a byte range of a stored object).

        Raises DamagedError if bytes are missing or have changed since they were written.
        """
        return read_segment(location, segment, partial(location.read, access=self))

    def fetch_from_driver(self, segment: Segment, private_root: str | None = None) -> Any:
        """Request a segment (a byte range of a stored object) from the driver, and return its bytes."""
        raise NotImplementedError("the driver of this task answers no requests")

    def write_array(self, location: Location, key: str, data: Any, segment_bytes: int) -> list[Segment]:
        """Store the bytes of an array as an object, and return its segments.

        A segment is a byte range that is read and verified on its own. All segments except the last have
        `segment_bytes` bytes.
        """
        return write_segments(location, key, data, segment_bytes, partial(location.write, access=self))


def run_task(request: TaskRequest, task_io: TaskIO) -> Message | None:
    """Run a task, and return the reply for the driver, or None if the task was cancelled.

    The reply contains either the result or the exception that the task has raised.
    """
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
        del f, block  # Free the memory of the inputs before the result is stored or sent.
        if request.output is not None:
            task_io.receive_pending_messages()
            if task_io.is_cancelled():
                return None
            layout = result.layout
            result, segments = store_result(result, request, request.output, task_io)
            task_io.receive_pending_messages()
            # A driver that cancels a task deletes the results that are already stored. Delete this result
            # here, because it may have been stored later.
            if task_io.is_cancelled():
                request.output.location.delete({segment.key for segment in segments}, task_io)
                return None
            result_ref = layout, to_plain_tuple(segments)
        seconds = time.time() - started_at
        reply = TaskReply(None, seconds, result.structure, result.layout, result_ref)
        return encode_reply(reply, result.data)
    except BaseException as error:
        return encode_reply(TaskReply(describe_error(error), time.time() - started_at))


def compute_result(f: Callable[[Any], Any], block: Any, fault: Fault | None = None) -> PackedTree:
    """Call the user's function with a block, and return the result in the form in which it is sent.

    For tests, a `fault` can be injected, such as a process crash.
    """
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
        # If the user's function has forked this process, only the parent sends a reply.
        if os.getpid() != pid:
            os._exit(0)
    packed_result = pack_tree(result)
    return corrupt_result(packed_result) if fault_kind == "garbage" else packed_result


def compute_with_and_without_padding(
    f: Callable[[Any], Any], block: Any, n_data_rows: int, fault: Fault | None
) -> PackedTree:
    """Call the user's function twice: with a block that is padded with zero rows, and without the padding.

    The last block of the data may have been padded with zeros, so that all blocks have the same shape.
    Decoding needs the result of the padded block, but the user expects the result without the padding. Return
    both results together. If the function fails only because of the padding, the padded result is empty.

    Parameters
    ----------
    f : callable
        The user's function.
    block : object
        The padded block.
    n_data_rows : int
        The number of rows before the padding.
    fault : Fault or None
        A fault to inject, for tests.
    """
    leaves, structure = flatten(block)
    # The last array of a sparse block is `indptr`, which has one more entry than there are rows.
    leaves[-1] = leaves[-1][: n_data_rows + (len(leaves) > 1)]
    unpadded = compute_result(f, unflatten(structure, [leaf.copy() for leaf in leaves]), fault)
    padded = PackedTree((), (), b"")
    with suppress(Exception):
        padded = compute_result(f, block, fault if fault and fault.kind == "garbage" else None)
    both_structures = (BOTH_RESULTS, len(padded.layout), padded.structure, unpadded.structure)
    data = b"".join([padded.data, unpadded.data])
    return PackedTree(both_structures, padded.layout + unpadded.layout, data)


def corrupt_result(result: PackedTree) -> PackedTree:
    """Return a wrong result with the same dtypes and shapes, to simulate a faulty worker."""
    return result._replace(data=bytes(byte ^ 0x15 for byte in bytes(result.data)))


# --- stored results -------------------------------------------------------------------------------


def store_result(
    result: PackedTree, request: TaskRequest, output: OutputSpec, task_io: TaskIO
) -> tuple[PackedTree, tuple[Segment, ...]]:
    """Store each array of a task's result as an object in a folder or bucket.

    Return a small sample of the arrays for the driver, and the stored segments (byte ranges of objects).
    """
    _check_plain_arrays(result, output.n_arrays)
    segments: list[Segment] = []
    samples = []
    for array_index, array in enumerate(unpack_leaves(result.layout, result.data, writable=False)):
        flat = array.reshape(-1)
        # All tasks sample the same entries, so that the driver can use the samples to check whether the
        # user's function is linear.
        samples.append(sample_evenly(flat, max(1, SAMPLE_SIZE // output.n_arrays)))
        key = output.make_object_key(request.task, request.attempt, array_index)
        segment_bytes = output.max_segment_items * flat.itemsize
        segments += task_io.write_array(output.location, key, flat.view(np.uint8).data, segment_bytes)
    shape = result.layout and result.layout[0][1]
    packed = pack_leaves(samples, ("sample", shape, result.structure))
    return packed, tuple(segments)


def sample_evenly(array: Any, max_items: int = SAMPLE_SIZE) -> Any:
    """Return at most `max_items` entries of an array, at evenly spaced positions.

    >>> sample_evenly(np.arange(100), 4).tolist()
    [0, 33, 66, 99]
    """
    flat = array.reshape(-1)
    return flat[np.linspace(0, max(0, flat.size - 1), min(flat.size, max_items)).astype(np.int64)]


def _check_plain_arrays(result: PackedTree, n_arrays: int) -> None:
    """Raise TypeError unless a result consists of `n_arrays` plain arrays, which can be stored."""
    if len(result.layout) != n_arrays:
        raise TypeError(f"a result that stays in storage is one array; f returned {len(result.layout)}")
    if n_arrays == 1 and len(result.structure) > 1:
        container_name = result.structure[0].__name__
        raise TypeError(f"a result that stays in storage is one array; f returned it in a {container_name}")
    if n_arrays == 1 and result.structure == ("matrix",):
        raise TypeError("a result that stays in storage is one array: return it as a numpy.ndarray")
