"""Run a task as a Lithops function: read its block from the storage and return the reply.

The function is pickled by value, with the modules of this package that it uses. It exits its process once the
driver has deleted the liveness key or, on the driver's machine, has died. Runs on workers: imports numpy at
most.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypedDict

from polarmap.worker.block_cache import assemble_block, read_segments
from polarmap.worker.processes import (
    SHUTDOWN_SECONDS,
    exit_process_when,
    is_process_alive,
    kill_job_and_clean_up,
)
from polarmap.worker.pytree import Structure
from polarmap.worker.retries import OUTAGE_SECONDS
from polarmap.worker.segments import drop_inherited_connections, is_missing_object_error
from polarmap.worker.task_execution import TaskIO, run_task
from polarmap.worker.task_records import TaskRequest

LIVENESS_KEY = "alive"  # name of the object that exists while the driver waits for results
# Lithops stores larger results as objects, which would remain if the task has been cancelled.
MAX_STATUS_BYTES = 8 << 10

Function = Callable[[Any], Any]


def make_lithops_task(
    f: Function, structure: Structure, module_state: Any = None
) -> Callable[..., tuple[bytes, bytes] | None]:
    """Return the function that Lithops maps over pairs of `TaskRequest` fields and `LithopsTaskAddress`.

    It is a closure, so that cloudpickle sends the modules of f with it.

    Parameters
    ----------
    f : callable
        Called with the block.
    structure : tuple
        The structure of the blocks, as `flatten` returns it.
    module_state : object, optional
        An object that is unpickled before f, to set up the modules that f uses.
    """
    state_and_function = module_state, f

    def task(fields: tuple[Any, ...], storage: Any) -> tuple[bytes, bytes] | None:
        request_fields, address = fields
        _, f = state_and_function
        task_io = LithopsTaskIO(f, structure, storage, address)
        return task_io.execute_request(TaskRequest.from_tuple(request_fields))

    return task


class LithopsTaskAddress(TypedDict):
    """The address of the driver of a task: a plain dict, so that this class is not pickled with tasks.

    Attributes
    ----------
    bucket, key_prefix : str
        Where the driver stores objects for its tasks.
    niceness : int
        By how much the task lowers its priority, as for `os.nice`.
    driver_pid : int or None
        The process id of a driver on the same machine; None for a driver on another machine. The fields below
        are used only on the same machine.
    scratch_folder : str or None
        The temporary folder of the driver, if all objects are stored there. A task removes it once the driver
        has died.
    job_prefixes : sequence of str
        The key prefixes of objects of Lithops. A task removes these objects once the driver has died, if
        there is no scratch folder.
    """

    bucket: str
    key_prefix: str
    niceness: int
    driver_pid: int | None
    scratch_folder: str | None
    job_prefixes: Sequence[str]


class LithopsTaskIO(TaskIO):
    """The connection between a Lithops task and its driver.

    Parameters
    ----------
    f : callable
        Called with the block.
    structure : tuple
        The structure of the block.
    storage : lithops.Storage
        The storage of blocks and results.
    address : LithopsTaskAddress
        The address of the driver.
    """

    def __init__(self, f: Function, structure: Structure, storage: Any, address: LithopsTaskAddress) -> None:
        super().__init__(storage)
        self._f, self._structure, self._address = f, structure, address

    def execute_request(self, request: TaskRequest) -> tuple[bytes, bytes] | None:
        """Run the task and return header and data of its reply, or None if the task was cancelled."""
        os.nice(self._address["niceness"])
        drop_inherited_connections(self.storage)
        if self._address["driver_pid"] is None:
            exit_process_when(self.is_cancelled)
        else:
            kill_job = partial(kill_job_and_clean_up, self.remove_driver_leftovers, OUTAGE_SECONDS)
            exit_process_when(self.is_cancelled, kill_job)
        reply = run_task(request, self)
        if reply is None or (len(reply.data) > MAX_STATUS_BYTES and self.is_cancelled()):
            return None
        return bytes(reply.header), bytes(reply.data)

    def load_inputs(self, request: TaskRequest) -> tuple[Function, Any]:
        """Return f and the block."""
        assert request.block_ref is not None
        read = partial(read_segments, self.read_segment)
        return self._f, assemble_block(request.block_ref, self._structure, read)

    def is_cancelled(self) -> bool:
        """Return whether the driver has died, if it is on this machine, or has deleted the liveness key."""
        address = self._address
        if address["driver_pid"] is not None:
            return not is_process_alive(address["driver_pid"])
        try:
            self.storage.head_object(address["bucket"], f"{address['key_prefix']}/{LIVENESS_KEY}")
        except Exception as error:
            return is_missing_object_error(error)
        return False

    def remove_driver_leftovers(self) -> None:
        """Remove the files and objects that a killed driver on this machine has left."""
        scratch_folder = self._address["scratch_folder"]
        if scratch_folder is not None:
            deadline = time.monotonic() + SHUTDOWN_SECONDS  # Other jobs may still write files.
            while os.path.isdir(scratch_folder) and time.monotonic() < deadline:
                shutil.rmtree(scratch_folder, ignore_errors=True)
            return
        for prefix in (f"{self._address['key_prefix']}/", *self._address["job_prefixes"]):
            delete_prefix(self.storage, self._address["bucket"], prefix)


def delete_prefix(storage: Any, bucket: str, prefix: str) -> int:
    """Delete the objects with a prefix, and return the number of objects that were listed.

    Call it again until it returns 0: Lithops ignores the objects that S3 reports as not deleted.
    """
    keys = storage.list_keys(bucket, prefix)
    if keys:
        storage.delete_objects(bucket, keys)
    return len(keys)
