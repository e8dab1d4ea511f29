"""Dask, for single calls and as a place for persistent workers."""

from __future__ import annotations

import asyncio
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from polarmap.errors import ExecutorError
from polarmap.executors.cluster_submit import ClusterSubmitter, complete_future
from polarmap.executors.remote_workers import NO_MACHINE_CHOICES, WorkerProvider
from polarmap.executors.worker_listener import is_every_host_local
from polarmap.executors.worker_pool import GRACE_SECONDS
from polarmap.worker.worker_entry import DriverAddress, serve_driver_on_thread

WORKER_LIST_INTERVAL = 5.0  # between two requests for the cluster's workers, and until one is given up
PLACEMENT_OPTIONS = {"workers", "resources"}  # of tasks, by which a user chooses where they run
SCHEDULER_TIMEOUT = 5.0  # that a client may be without its scheduler: it tries for longer to find it
RECONNECT_POLL_INTERVAL = 0.1  # between two looks whether a client has found its scheduler again


class DaskConnection:
    """A Dask client, and the options for tasks that its `get_executor()` was given.

    Parameters
    ----------
    client_or_executor : a client, or what its `get_executor()` gives
    """

    def __init__(self, client_or_executor: Any) -> None:
        self.executor = (
            client_or_executor.get_executor()
            if hasattr(client_or_executor, "get_executor")
            else client_or_executor
        )
        self.client, self.submit_options = self.executor._client, self.executor._kwargs
        if self.client.asynchronous:
            raise ExecutorError("a Dask client of asyncio: pass one that was made with asynchronous=False")
        self._last_connected_at = time.monotonic()  # connected

    def is_connected(self) -> bool:
        """Whether it has its scheduler now."""
        return bool(self.client.status == "running")

    def get_unavailable_reason(self) -> str:
        """Why it takes no tasks any more; empty if it does, or may after a moment."""
        now = time.monotonic()
        self._last_connected_at = now if self.is_connected() else self._last_connected_at
        if self.executor._shutdown or self.client.status not in ("running", "connecting"):
            return "its client was closed, or it was shut down"
        return "its scheduler is gone" if now > self._last_connected_at + SCHEDULER_TIMEOUT else ""

    async def wait_for_scheduler(self) -> None:
        """Wait while the client looks for its scheduler, until it has found it or is taken to be gone.

        Dask cancels all futures at once when it loses the connection. Only later is it known why.
        """
        while not (self.is_connected() or self.get_unavailable_reason()):
            await asyncio.sleep(RECONNECT_POLL_INTERVAL)

    async def fetch_result(self, future: Any, is_wanted: Callable[[], bool] = lambda: True) -> Any:
        """Wait for a Dask future and return its result, or raise what its task has raised.

        Dask's own way, `await future`, fetches all results together that are asked for at about the same
        time, and only five such groups at a time. A slow machine thus delays the results of all others. Here,
        each result is fetched by itself. Must be called on the event loop of the client.

        Parameters
        ----------
        future : distributed.Future
        is_wanted : called once the result exists. If it returns False, the result is not fetched, and
            CancelledError is raised.
        """
        await future.exception()
        if future.status == "finished" and not is_wanted():
            raise CancelledError("nobody waits for this result any more")
        if future.status == "finished":
            key, client = future.key, self.client
            if client.direct_to_workers:
                data = await _gather_from_workers(client, key)
            else:
                response = await client.scheduler.gather(keys=[key])
                data = response.get("data", {})
            if key in data:
                return data[key]
        return await future  # raises what the task has raised, or waits until a lost result is computed again

    def fetch_results(self, futures: Sequence[Any]) -> list[Any]:
        """Return the results of several futures, each fetched by itself; raise the first exception."""

        async def fetch_each() -> list[Any]:
            return await asyncio.gather(*map(self.fetch_result, futures))

        results: list[Any] = self.client.sync(fetch_each)
        return results


async def _gather_from_workers(client: Any, task_key: Any) -> Mapping[Any, Any]:
    """Return the result of a finished task by its key, read from its worker; nothing if no worker has it."""
    from distributed.utils_comm import gather_from_workers

    workers = await client.scheduler.who_has(keys=[task_key])
    data, *_ = await gather_from_workers(workers, rpc=client.rpc)
    results: Mapping[Any, Any] = data
    return results


class DaskSubmitter(ClusterSubmitter):
    """Calls on a Dask client.

    Those of Dask's own executor print the errors that come of it, hash all that travels, and never end on a
    client that was closed before.
    """

    name = "Dask"

    def __init__(self, client_or_executor: Any) -> None:
        self._connection = DaskConnection(client_or_executor)

    def get_unavailable_reason(self) -> str:
        """Why its client takes no tasks any more."""
        return self._connection.get_unavailable_reason()

    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        client, task_key = self._connection.client, f"polarmap-task-{uuid.uuid4()}"
        options = {"pure": False, "key": task_key, **self._connection.submit_options}
        dask_future = client.submit(call, *arguments, **options)
        self._connection.executor._futures.add(dask_future)  # which its shutdown cancels
        client.loop.add_callback(self._copy_result, dask_future, future)
        # Only the fetch holds the Dask future: the cluster discards a result once it has been fetched.
        return partial(client.loop.add_callback, _cancel_unless_finished, weakref.ref(dask_future))

    async def _copy_result(self, dask_future: Any, future: Future[Any]) -> None:
        """Let the future of ours end as Dask's does."""
        try:
            result = await self._connection.fetch_result(dask_future, lambda: not future.done())
        except BaseException as error:
            reported_error = error
            await self._connection.wait_for_scheduler()
            if reason := self.get_unavailable_reason():  # which cancels all, and is told in one way
                reported_error = RuntimeError(reason)
            elif dask_future.cancelled():  # of which Dask's text differs from call to call
                reported_error = CancelledError("Dask's client cancelled it")
            complete_future(future, error=reported_error)
        else:
            complete_future(future, result)


async def _cancel_unless_finished(future_weakref: weakref.ref[Any]) -> None:
    """Cancel the task of a Dask future unless it has finished. Must be called on the client's event loop.

    The result of a finished task may be on its way. If it were discarded now, its worker might not find it,
    and Dask would print "Couldn't gather keys". It is discarded anyway once the future is gone.
    """
    future = future_weakref()
    if future is not None and future.status != "finished":
        await future.cancel()


class DaskWorkerProvider(WorkerProvider):
    """Threads of the workers of a Dask cluster, whose slots are left to other tasks.

    Parameters
    ----------
    client_or_executor : a client, or what its `get_executor()` gives
    """

    name, imports_polarmap = DaskSubmitter.name, True
    no_connection_advice = "pass executor=client to the map, whose tasks then are tasks of Dask"
    placement_timeout = 10.0

    def __init__(self, client_or_executor: Any) -> None:
        self._connection = DaskConnection(client_or_executor)
        self._futures: dict[int, Any] = {}
        self._dask_address_by_worker: dict[int, str] = {}  # at which worker of Dask each was started
        try:
            self._check_connected()
            # of each of its workers
            self._n_threads_by_address: dict[str, int] = self._connection.client.nthreads()
            self._workers_listed_at = time.monotonic()  # for them
            self.max_workers = sum(self._n_threads_by_address.values()) or None
            self.shares_host = is_every_host_local([*map(parse_host, self._n_threads_by_address)])
            local_address = self._connection.client.scheduler_comm.comm.local_address
            self.driver_host = urlsplit(local_address).hostname or ""
        except Exception as error:
            raise ExecutorError(f"{self.name} has no workers: {type(error).__name__}: {error}") from error

    def get_unavailable_reason(self) -> str:
        """Why its client takes no tasks any more."""
        return self._connection.get_unavailable_reason()

    def list_machines(self) -> list[str]:
        """Return the hosts in the addresses of Dask's workers; empty if the options of tasks choose workers.

        Dask is asked every few seconds.
        """
        if PLACEMENT_OPTIONS & self._connection.submit_options.keys():
            return []
        if (
            time.monotonic() > self._workers_listed_at + WORKER_LIST_INTERVAL
            and self._connection.is_connected()
        ):
            with suppress(Exception):  # the scheduler may be busy, or gone: they may be as they were
                client: Any = self._connection.client
                self._n_threads_by_address = client.sync(
                    client.scheduler.ncores, callback_timeout=WORKER_LIST_INTERVAL
                )
            self._workers_listed_at = time.monotonic()
        return list(dict.fromkeys(map(parse_host, self._n_threads_by_address)))

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        """Cancel tasks that Dask has not started."""
        for worker_id in worker_ids:
            self._dask_address_by_worker.pop(worker_id, None)
            if (future := self._futures.pop(worker_id, None)) is not None:
                future.cancel()

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str] = NO_MACHINE_CHOICES,
    ) -> None:
        """Start one task for each, at a worker of Dask on its machine, and elsewhere if that is gone.

        Dask goes on waiting for a worker that has gone while no other was there, or that is out of reach:
        `cancel_launch` is for these.
        """
        try:
            self._check_connected()
            for worker_id, lifetime_seconds in lifetimes.items():
                options = {"pure": False, "key": f"polarmap-worker-{worker_id}-{uuid.uuid4()}"}
                options |= self._make_placement_options(worker_id, machine_by_worker.get(worker_id))
                self._futures[worker_id] = self._connection.client.submit(
                    run_dask_worker,
                    tuple(driver_address),
                    worker_id,
                    lifetime_seconds,
                    **options | self._connection.submit_options,
                )
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no tasks: {type(error).__name__}: {error}") from error

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """The workers whose task of Dask has ended, and why."""
        exit_reasons = {}
        for worker_id, future in list(self._futures.items()):
            if future.status in ("error", "cancelled", "lost", "finished"):
                del self._futures[worker_id]
                self._dask_address_by_worker.pop(worker_id, None)
                exit_reasons[worker_id] = _describe_task_exit(future, may_query)
        return exit_reasons

    def close(self) -> None:
        """Let the tasks end, as they do with their sockets, before they are forgotten: Dask warns else."""
        import distributed

        wait: Any = distributed.wait
        # Some take longer, or the client is closed; `wait` asks the current one, which may be another.
        with suppress(Exception), self._connection.client.as_current():
            if self._connection.is_connected():
                wait(list(self._futures.values()), timeout=GRACE_SECONDS)
        self._futures.clear()

    def _make_placement_options(self, worker_id: int, machine: str | None) -> dict[str, Any]:
        """Return the options of a task for the worker of Dask that has the fewest of ours for each thread."""
        addresses = [item for item in self._n_threads_by_address if parse_host(item) == machine]
        if not addresses:
            return {}
        n_started_by_address = Counter(self._dask_address_by_worker.values())
        n_threads = self._n_threads_by_address
        chosen_address = min(
            addresses, key=lambda item: (n_started_by_address[item] + 1) / max(1, n_threads[item])
        )
        self._dask_address_by_worker[worker_id] = chosen_address
        return {"workers": [chosen_address], "allow_other_workers": True}

    def _check_connected(self) -> None:
        """ConnectionError at once where the scheduler is away."""
        if not self._connection.is_connected():
            raise ConnectionError(self.get_unavailable_reason() or "its scheduler is away")


def parse_host(worker_address: str) -> str:
    """Return the host in the address of a worker of Dask, which tells its machine from others.

    >>> parse_host("tcp://10.0.0.3:41234"), parse_host("inproc://10.0.0.3/12/4")
    ('10.0.0.3', '10.0.0.3')
    """
    return urlsplit(worker_address).hostname or worker_address


def _describe_task_exit(future: Any, may_query: bool) -> str:
    """How a task has ended: what it has told of that, if it may be asked and its worker is there."""
    with suppress(Exception):
        if future.status == "error" and (error := future.exception(timeout=1)):
            return f"{type(error).__name__}: {error}"
        if future.status == "finished" and may_query:
            return str(future.result(timeout=1))
    return str(future.status)


def run_dask_worker(driver_address: tuple[Any, ...], worker_id: int, lifetime_seconds: float) -> str:
    """The life of a worker, on a thread that its Dask worker replaces by another one; how it has ended.

    Dask prints what a task raises, and a driver that is gone before its worker calls is no error.
    """
    import distributed

    secede: Any = distributed.secede
    get_worker: Any = distributed.get_worker
    worker_label = f"Dask worker {get_worker().name} at {get_worker().address}"
    machine = urlsplit(get_worker().address).hostname or ""
    secede()
    try:
        serve_driver_on_thread(driver_address, worker_id, lifetime_seconds, worker_label, machine)
    except ConnectionError as error:
        return f"ConnectionError: {error}"
    return "finished"
