"""Dask as a place for workers that stay: tasks that leave the slots of their workers to others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.remote_workers import Site
from polarmap.worker.kept_worker import DriverAddress, stay_on_thread

GOODBYE_SECONDS = 1.0  # for tasks to end when their sockets have been closed


class DaskSite(Site):
    """Threads of the workers of a Dask cluster.

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
        """Those whose task has ended, and why."""
        found = {}
        for number, future in list(self._futures.items()):
            if future.status in ("error", "cancelled", "lost", "finished"):
                del self._futures[number]
                error = future.exception(timeout=1) if future.status == "error" else None
                found[number] = f"{type(error).__name__}: {error}" if error else future.status
        return found

    def close(self) -> None:
        """Let the tasks end, as they do with their sockets, before they are forgotten: Dask warns else."""
        deadline = time.monotonic() + GOODBYE_SECONDS
        while time.monotonic() < deadline and not all(future.done() for future in self._futures.values()):
            time.sleep(0.005)
        for future in self._futures.values():
            future.release()
        self._futures.clear()


def stay_on_dask(address: tuple[Any, ...], number: int, seconds: float) -> None:
    """The life of a worker, on a thread that its Dask worker replaces by another one."""
    import distributed

    leave: Any = distributed.secede
    leave()
    stay_on_thread(address, number, seconds)
