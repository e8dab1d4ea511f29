"""Tasks of Lithops: the block is an object, the reply is what the function returns.

Runs on workers: imports numpy at most.
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

LIVENESS_KEY = "alive"  # the object that exists for as long as anybody waits for results
MAX_STATUS_BYTES = 8 << 10  # larger results Lithops stores: they would stay where nobody waits for them

Function = Callable[[Any], Any]


def make_lithops_task(
    f: Function, structure: Structure, module_state: Any = None
) -> Callable[..., tuple[bytes, bytes] | None]:
    """Return the function that Lithops maps over pairs: fields of a `TaskRequest`, `LithopsTaskAddress`.

    It is a closure, so that the modules of f travel with it.

    module_state : is loaded before f.
    """
    state_and_function = module_state, f

    def task(fields: tuple[Any, ...], storage: Any) -> tuple[bytes, bytes] | None:
        request_fields, address = fields
        _, f = state_and_function
        task_io = LithopsTaskIO(f, structure, storage, address)
        return task_io.execute_request(TaskRequest.from_tuple(request_fields))

    return task


class LithopsTaskAddress(TypedDict):
    """The address of the driver of a task: a plain dict, so that this class need not travel with tasks.

    bucket, key_prefix : of the objects that the driver stores for its tasks.
    niceness : by how much the task lowers its priority.
    driver_pid : the process id of a driver on the same machine; None if it is on another one. The fields that
        follow are used only with it.
    scratch_folder : the temporary folder of the driver, if all objects are stored there, which a task removes
        once the driver has died; else None.
    job_prefixes : the prefixes of Lithops' own objects, which a task removes then if there is no such folder.
    """

    bucket: str
    key_prefix: str
    niceness: int
    driver_pid: int | None
    scratch_folder: str | None
    job_prefixes: Sequence[str]


class LithopsTaskIO(TaskIO):
    """The connection between a task of Lithops and its driver.

    Parameters
    ----------
    f, structure : the function, and the structure of its blocks.
    storage : a `lithops.Storage`.
    address : of the driver.
    """

    def __init__(self, f: Function, structure: Structure, storage: Any, address: LithopsTaskAddress) -> None:
        super().__init__(storage)
        self._f, self._structure, self._address = f, structure, address

    def execute_request(self, request: TaskRequest) -> tuple[bytes, bytes] | None:
        """Return the header of the reply and its data, which Lithops stores; None if nobody waits for it."""
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
        """Return whether the driver on this machine has died, or the liveness key was deleted."""
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
            deadline = time.monotonic() + SHUTDOWN_SECONDS  # of other jobs, which still write
            while os.path.isdir(scratch_folder) and time.monotonic() < deadline:
                shutil.rmtree(scratch_folder, ignore_errors=True)
            return
        for prefix in (f"{self._address['key_prefix']}/", *self._address["job_prefixes"]):
            delete_prefix(self.storage, self._address["bucket"], prefix)


def delete_prefix(storage: Any, bucket: str, prefix: str) -> int:
    """Delete all objects below a prefix, and return how many there were."""
    # S3 answers with those that it did not delete, and Lithops ignores that: ask until there are none.
    keys = storage.list_keys(bucket, prefix)
    if keys:
        storage.delete_objects(bucket, keys)
    return len(keys)
