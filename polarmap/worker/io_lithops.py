"""Tasks of Lithops: the block is an object, the reply is what the function returns.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from polarmap.worker.liveness import DYING_SECONDS, end_job, exit_when
from polarmap.worker.messages import Ticket
from polarmap.worker.parts import is_missing
from polarmap.worker.process_identity import is_alive
from polarmap.worker.program import TaskIO, run_task

STATUS_BYTES = 8 << 10  # larger results Lithops stores: they would stay where nobody waits for them

Function = Callable[[Any], Any]


class Address(NamedTuple):
    """Where the tasks of a map and their driver leave objects for each other. Plain data.

    prefix : of their keys.
    driver : the process that waits, where it is on the worker's machine: whoever notices that it died
        removes what it has left.
    scratch : its temporary folder, if all objects lie there.
    jobs : what the keys of Lithops' own objects begin with.
    nice : how much the task gives way to others on its machine.
    """

    bucket: str
    prefix: str
    driver: int | None = None
    scratch: str | None = None
    jobs: tuple[str, ...] = ()
    nice: int = 0

    @property
    def liveness_key(self) -> str:
        """Of an object that exists for as long as anybody waits for results."""
        return f"{self.prefix}/alive"


def make_task(f: Function, encrypted: Any = None) -> Callable[..., tuple[bytes, bytes] | None]:
    """The function Lithops maps over tickets; a closure, so that f's own modules travel with it.

    encrypted : an `EncryptedIO`, if there is a key.
    """

    def task(fields: tuple[Any, ...], storage: Any) -> tuple[bytes, bytes] | None:
        ticket, address = fields
        return LithopsIO(f, Address(*address), storage, encrypted).run(Ticket.parse(ticket))

    return task


class LithopsIO(TaskIO):
    """What connects a task of Lithops with its driver."""

    def __init__(self, f: Function, address: Address, storage: Any, encrypted: Any) -> None:
        super().__init__(storage, encrypted)
        self._f, self._address = f, address

    def run(self, ticket: Ticket) -> tuple[bytes, bytes] | None:
        """The header of the reply and its data, which Lithops stores; None if nobody waits for it."""
        os.nice(self._address.nice)
        _drop_inherited_connections(self.storage)
        if self._address.driver is None:
            exit_when(self.is_cancelled)
        else:
            exit_when(self.is_cancelled, partial(end_job, self.remove_all))
        reply = run_task(ticket, self)
        if reply is None or (len(reply.data) > STATUS_BYTES and self.is_cancelled()):
            return None
        return bytes(reply.header), bytes(reply.data)

    def load(self, ticket: Ticket) -> tuple[Function, Any]:
        """f and the block."""
        assert ticket.block is not None
        return self._f, ticket.block.load(partial(self.read, ticket.block.source))

    def is_cancelled(self) -> bool:
        """Whether the driver here has died, which else kills its workers, or the liveness key is gone.

        A storage that cannot be asked says nothing.
        """
        if self._address.driver is not None:
            return not is_alive(self._address.driver)
        try:
            self.storage.head_object(self._address.bucket, self._address.liveness_key)
        except Exception as error:
            return is_missing(error)
        return False

    def remove_all(self) -> None:
        """Remove what a driver on this machine has left that was killed."""
        address = self._address
        if address.scratch is not None:
            deadline = time.monotonic() + DYING_SECONDS  # of other jobs, which still write
            while os.path.isdir(address.scratch) and time.monotonic() < deadline:
                shutil.rmtree(address.scratch, ignore_errors=True)
            return
        for prefix in (f"{address.prefix}/", *address.jobs):
            keys = self.storage.list_keys(address.bucket, prefix)
            if keys:
                self.storage.delete_objects(address.bucket, keys)


def _drop_inherited_connections(storage: Any) -> None:
    """Forget keep-alive sockets opened before the fork: since Lithops 3.8 the parent uses them too."""
    with contextlib.suppress(AttributeError):
        storage.get_client()._endpoint.http_session._manager.clear()
