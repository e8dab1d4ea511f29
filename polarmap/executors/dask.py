"""Dask, for single calls and as a place for workers that stay."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.remote_workers import Site
from polarmap.executors.worker_table import GRACE_SECONDS
from polarmap.worker.kept_worker import DriverAddress, stay_on_thread


class DaskCalls:
    """Calls on the client of a `client.get_executor()`, with its options: each ends, also when cancelled.

    Those of Dask's own executor print the errors that come of it, hash all that travels, and never end on a
    client that was closed before.
    """

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call; cancelled, it cancels Dask's."""
        self._check_open()
        executor, client = self._executor, self._executor._client
        theirs = client.submit(call, *arguments, **{"pure": False, **executor._kwargs})
        executor._futures.add(theirs)  # which its shutdown cancels
        ours: Future[Any] = Future()

        def cancel(done: Future[Any]) -> None:
            with suppress(Exception):  # of a client that was closed
                if done.cancelled():
                    theirs.cancel()

        ours.add_done_callback(cancel)
        client.loop.add_callback(_pass_on, theirs, ours)
        self._check_open()  # what closes meanwhile may never answer
        return ours

    def _check_open(self) -> None:
        """RuntimeError once somebody has shut down the executor or closed its client."""
        if self._executor._shutdown or self._executor._client.status not in ("running", "connecting"):
            raise RuntimeError("its client was closed, or it was shut down")


async def _pass_on(theirs: Any, ours: Future[Any]) -> None:
    """Let the future of ours end as Dask's does, unless it was cancelled."""
    with suppress(InvalidStateError):
        try:
            result = await theirs
        except BaseException as error:
            # Of what is cancelled Dask's text differs from call to call.
            ours.set_exception(CancelledError("Dask's client cancelled it") if theirs.cancelled() else error)
        else:
            ours.set_result(result)


class DaskSite(Site):
    """Threads of the workers of a Dask cluster, whose slots are left to other tasks.

    Parameters
    ----------
    executor : what `client.get_executor()` gives
    """

    def __init__(self, executor: Any) -> None:
        self.name = type(executor).__name__
        self._client = executor._client
        self._options = executor._kwargs
        self._futures: dict[int, Any] = {}
        self._next = itertools.count()
        try:
            self.workers = sum(self._client.nthreads().values()) or None
        except Exception as error:
            raise ExecutorError(f"{self.name} has no workers: {type(error).__name__}: {error}") from error

    def launch(self, address: DriverAddress, workers: Mapping[int, float]) -> None:
        """Start one task for each, spread evenly over the threads of the cluster."""
        try:
            threads = [name for name, count in self._client.nthreads().items() for _ in range(count)]
            for number, seconds in workers.items():
                where = {"workers": [threads[next(self._next) % len(threads)]]} if threads else {}
                options = {"pure": False, "allow_other_workers": True, **where, **self._options}
                self._futures[number] = self._client.submit(
                    stay_on_dask, tuple(address), number, seconds, **options
                )
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no tasks: {type(error).__name__}: {error}") from error

    def ended(self, may_ask: bool = True) -> dict[int, str]:
        """The workers whose task of Dask has ended, and why."""
        found = {}
        for number, future in list(self._futures.items()):
            if future.status in ("error", "cancelled", "lost", "finished"):
                del self._futures[number]
                error = future.exception(timeout=1) if future.status == "error" else None
                found[number] = f"{type(error).__name__}: {error}" if error else future.status
        return found

    def close(self) -> None:
        """Let the tasks end, as they do with their sockets, before they are forgotten: Dask warns else."""
        import distributed

        wait: Any = distributed.wait
        # Some take longer, or the client is closed; `wait` asks the current one, which may be another.
        with suppress(Exception), self._client.as_current():
            wait(list(self._futures.values()), timeout=GRACE_SECONDS)
        self._futures.clear()


def stay_on_dask(address: tuple[Any, ...], number: int, seconds: float) -> None:
    """The life of a worker, on a thread that its Dask worker replaces by another one."""
    import distributed

    leave: Any = distributed.secede
    leave()
    stay_on_thread(address, number, seconds)
