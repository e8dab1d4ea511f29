"""Tasks of Lithops: the block is an object, the reply is what the function returns.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from polarmap.worker.block_cache import joined, load_block
from polarmap.worker.messages import Ticket
from polarmap.worker.parts import drop_inherited_connections, is_missing
from polarmap.worker.processes import END_SECONDS, end_job, exit_when, is_alive
from polarmap.worker.program import TaskIO, run_task
from polarmap.worker.pytree import Structure
from polarmap.worker.retries import AWAY_SECONDS

ALIVE = "alive"  # the object that exists for as long as anybody waits for results
STATUS_BYTES = 8 << 10  # larger results Lithops stores: they would stay where nobody waits for them

Function = Callable[[Any], Any]


def make_task(
    f: Function, structure: Structure, state: Any = None
) -> Callable[..., tuple[bytes, bytes] | None]:
    """The function Lithops maps over tickets; a closure, so that f's own modules travel with it.

    state : is loaded before f.
    """
    sent = state, f

    def task(fields: tuple[Any, ...], storage: Any) -> tuple[bytes, bytes] | None:
        ticket, address = fields
        _, f = sent
        return LithopsIO(f, structure, storage, address).run(Ticket.parse(ticket))

    return task


class LithopsIO(TaskIO):
    """The connection between a task of Lithops and its driver.

    Parameters
    ----------
    f, structure : the function, and the structure of its blocks.
    storage : a `lithops.Storage`.
    address : by name: `bucket` and `prefix` of the objects that the driver stores for its tasks, and `nice`,
        by how much the task lowers its priority. On the driver's machine also what a task removes if the
        driver has died: `driver`, its process number; `scratch`, its temporary folder if all objects are
        stored there, else None; `jobs`, the prefixes of Lithops' own objects.
    """

    def __init__(self, f: Function, structure: Structure, storage: Any, address: Mapping[str, Any]) -> None:
        super().__init__(storage)
        self._f, self._structure = f, structure
        self._address, self._driver = address, address.get("driver")

    def run(self, ticket: Ticket) -> tuple[bytes, bytes] | None:
        """The header of the reply and its data, which Lithops stores; None if nobody waits for it."""
        os.nice(self._address["nice"])
        drop_inherited_connections(self.storage)
        if self._driver is None:
            exit_when(self.is_cancelled)
        else:
            exit_when(self.is_cancelled, partial(end_job, self.remove_all, AWAY_SECONDS))
        reply = run_task(ticket, self)
        if reply is None or (len(reply.data) > STATUS_BYTES and self.is_cancelled()):
            return None
        return bytes(reply.header), bytes(reply.data)

    def load(self, ticket: Ticket) -> tuple[Function, Any]:
        """f and the block."""
        assert ticket.block is not None
        return self._f, load_block(ticket.block, self._structure, partial(joined, self.read))

    def is_cancelled(self) -> bool:
        """Whether the driver on this machine has died, or the liveness key was deleted."""
        if self._driver is not None:
            return not is_alive(self._driver)
        try:
            self.storage.head_object(self._address["bucket"], f"{self._address['prefix']}/{ALIVE}")
        except Exception as error:
            return is_missing(error)
        return False

    def remove_all(self) -> None:
        """Remove what a driver on this machine has left that was killed."""
        scratch = self._address["scratch"]
        if scratch is not None:
            deadline = time.monotonic() + END_SECONDS  # of other jobs, which still write
            while os.path.isdir(scratch) and time.monotonic() < deadline:
                shutil.rmtree(scratch, ignore_errors=True)
            return
        for prefix in (f"{self._address['prefix']}/", *self._address["jobs"]):
            delete_below(self.storage, self._address["bucket"], prefix)


def delete_below(storage: Any, bucket: str, prefix: str) -> int:
    """Delete all objects below a prefix, and return how many there were."""
    # S3 answers with those that it did not delete, and Lithops ignores that: ask until there are none.
    keys = storage.list_keys(bucket, prefix)
    if keys:
        storage.delete_objects(bucket, keys)
    return len(keys)
