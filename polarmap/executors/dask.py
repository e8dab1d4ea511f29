"""The executor of a Dask client, with futures of ours, that may be cancelled at any time.

Dask fulfils a future although it was cancelled, and prints the error that this is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from polarmap.clouds.limits import Worker
from polarmap.executors.base import Payload, check_folder
from polarmap.executors.futures import FuturesRun

LOOK_SECONDS = 0.25  # between looks whether the client was closed
LOOPBACK = ("tcp://127.", "tls://127.", "tcp://[::1]", "tls://[::1]")


class DaskExecutor:
    """What `client.get_executor()` gives; it belongs to the caller, and stays usable afterwards."""

    worker: Worker | None = None

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.name = type(pool).__name__

    def open(self, payload: Payload) -> DaskRun:
        """Tasks of one map; CodeError for an f that does not travel to Dask's workers."""
        check_folder(payload.output and payload.output.source)
        return DaskRun(self.name, DaskPool(self._pool), payload)


class DaskRun(FuturesRun):
    """The tasks of one map as futures of Dask."""

    def __init__(self, name: str, pool: DaskPool, payload: Payload) -> None:
        super().__init__(name, pool, payload, reads_files=pool.is_here)
        self._dask = pool

    def _drained(self, timeout: float) -> list[Any]:
        """Whatever futures are done; all of them if the client was closed."""
        deadline = time.monotonic() + timeout
        while True:
            self._dask.fail_if_closed()
            ended = super()._drained(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            if ended or time.monotonic() >= deadline:
                return ended


class DaskPool:
    """What takes calls for the client of such an executor, with the options it was made with."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._unfinished: set[Future[Any]] = set()

    @property
    def is_closed(self) -> bool:
        """Whether somebody has shut down the executor or closed its client."""
        return bool(self._pool._shutdown) or self._pool._client.status not in ("running", "connecting")

    @property
    def is_here(self) -> bool:
        """Whether all its workers are processes of this machine, which talk over its loopback only."""
        addresses = [] if self.is_closed else list(self._pool._client.nthreads())
        return bool(addresses) and all(address.startswith(LOOPBACK) for address in addresses)

    def fail_if_closed(self) -> None:
        """A client that is closed says nothing more of the calls it had taken."""
        if self.is_closed:
            for future in list(self._unfinished):
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(RuntimeError("the Dask client was closed"))

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call; cancelled, it cancels Dask's."""
        if self.is_closed:
            raise RuntimeError("its client was closed, or it was shut down")
        client = self._pool._client
        options = {
            "pure": False,
            **self._pool._kwargs,
        }  # no hash of all that travels: no call is like another
        theirs, ours = client.submit(call, *arguments, **options), Future[Any]()

        def cancel(done: Future[Any]) -> None:
            if done.cancelled():
                done.set_running_or_notify_cancel()  # whoever waits for it may go on
                theirs.cancel()

        async def pass_on() -> None:
            try:
                result = await theirs
            except BaseException as error:
                with contextlib.suppress(InvalidStateError):
                    ours.set_exception(error)
            else:
                with contextlib.suppress(InvalidStateError):
                    ours.set_result(result)

        self._unfinished.add(ours)
        ours.add_done_callback(self._unfinished.discard)
        ours.add_done_callback(cancel)
        client.loop.add_callback(pass_on)
        return ours
