"""Run a task as a Lithops function: read its block from the storage and return the reply.

The function is pickled by value, with the modules of this package that it uses. While a task runs, a thread
checks whether the driver (the process that runs the map) still waits for results, and otherwise exits the
process. This module runs on workers, so it imports at most numpy.
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

LIVENESS_KEY = "alive"  # name of an object that exists as long as the driver waits for results

# Lithops stores results of more than this number of bytes as separate objects. A cancelled task must not
# return such a result, because its object would never be deleted.
MAX_STATUS_BYTES = 8 << 10

Function = Callable[[Any], Any]


def make_lithops_task(
    f: Function, structure: Structure, module_state: Any = None
) -> Callable[..., tuple[bytes, bytes] | None]:
    """Return the function that Lithops calls on its workers to run a task.

    Lithops calls it once for each task. The argument is a pair: the fields of a `TaskRequest`, which
    describes the task, and a `LithopsTaskAddress`, by which the task checks whether its driver is alive. The
    function is a closure, so that cloudpickle pickles it by value, together with the modules that f uses.

    Parameters
    ----------
    f : callable
        The user's function, which is called with a data block.
    structure : tuple
        How the arrays of a block are nested, as `flatten` returns it.
    module_state : object, optional
        An object that sets up the modules that f uses. It is unpickled before f.
    """
    state_and_function = module_state, f

    def task(fields: tuple[Any, ...], storage: Any) -> tuple[bytes, bytes] | None:
        request_fields, address = fields
        _, f = state_and_function
        task_io = LithopsTaskIO(f, structure, storage, address)
        return task_io.execute_request(TaskRequest.from_tuple(request_fields))

    return task


class LithopsTaskAddress(TypedDict):
    """Information by which a task checks whether its driver is alive, and cleans up after a dead driver.

    The driver is the process that runs the map. An instance is a plain dict, so that this class does not have
    to be pickled with each task.

    Attributes
    ----------
    bucket, key_prefix : str
        The bucket, and the prefix of the keys, of the objects that the driver stores for its tasks.
    niceness : int
        How much the task lowers its priority, as for `os.nice`.
    driver_pid : int or None
        The driver's process id if it runs on the same machine, otherwise None. The fields below are used only
        in the former case.
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
    """Loads the inputs of a task in a Lithops function, and checks whether its driver still needs the result.

    Parameters
    ----------
    f : callable
        The user's function, which is called with the block.
    structure : tuple
        How the arrays of the block are nested, as `flatten` returns it.
    storage : lithops.Storage
        The storage from which the block is read, and to which results are written.
    address : LithopsTaskAddress
        The address of the driver, which is the process that runs the map.
    """

    def __init__(self, f: Function, structure: Structure, storage: Any, address: LithopsTaskAddress) -> None:
        super().__init__(storage)
        self._f, self._structure, self._address = f, structure, address

    def execute_request(self, request: TaskRequest) -> tuple[bytes, bytes] | None:
        """Run the task, and return the header and the data of the reply to the driver.

        Return None if the task was cancelled. While the task runs, a background thread ends this process as
        soon as the driver dies or stops waiting for results.
        """
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
        """Return the user's function, and the block to call it with."""
        assert request.block_ref is not None
        read = partial(read_segments, self.read_segment)
        return self._f, assemble_block(request.block_ref, self._structure, read)

    def is_cancelled(self) -> bool:
        """Return whether the driver no longer waits for results.

        On the driver's machine, check whether its process is alive. On any other machine, check whether the
        object LIVENESS_KEY still exists, which the driver deletes when it finishes.
        """
        address = self._address
        if address["driver_pid"] is not None:
            return not is_process_alive(address["driver_pid"])
        try:
            self.storage.head_object(address["bucket"], f"{address['key_prefix']}/{LIVENESS_KEY}")
        except Exception as error:
            return is_missing_object_error(error)
        return False

    def remove_driver_leftovers(self) -> None:
        """Delete the files and objects that a killed driver on this machine has left behind."""
        scratch_folder = self._address["scratch_folder"]
        if scratch_folder is not None:
            # Other processes may still be writing to the folder. Retry until it is gone.
            deadline = time.monotonic() + SHUTDOWN_SECONDS
            while os.path.isdir(scratch_folder) and time.monotonic() < deadline:
                shutil.rmtree(scratch_folder, ignore_errors=True)
            return
        for prefix in (f"{self._address['key_prefix']}/", *self._address["job_prefixes"]):
            delete_objects_with_prefix(self.storage, self._address["bucket"], prefix)


def delete_objects_with_prefix(storage: Any, bucket: str, prefix: str) -> int:
    """Delete the objects whose keys begin with `prefix`, and return how many were listed.

    Some of these objects may still exist afterwards, because Lithops does not report objects that S3 failed
    to delete. To be sure, call this function repeatedly until it returns 0.
    """
    keys = storage.list_keys(bucket, prefix)
    if keys:
        storage.delete_objects(bucket, keys)
    return len(keys)
