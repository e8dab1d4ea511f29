"""Dask: single calls, data on its cluster, and persistent workers."""

from __future__ import annotations

import asyncio
import operator
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
from polarmap.executors.engine import Engine, PartitionedData, complete_future, compute_rows_per_block
from polarmap.executors.remote_workers import NO_MACHINE_CHOICES
from polarmap.executors.worker_listener import is_every_host_local
from polarmap.executors.worker_pool import GRACE_SECONDS
from polarmap.worker.locations import ClusterLocation
from polarmap.worker.worker_entry import DriverAddress, serve_driver_on_thread

WORKER_LIST_INTERVAL = 5.0  # seconds between two requests for the cluster's workers, and their timeout
PLACEMENT_OPTIONS = {"workers", "resources"}  # options of tasks by which a user chooses where they run
SCHEDULER_TIMEOUT = 5.0  # seconds that a client may be without its scheduler: it tries for longer to find it
RECONNECT_POLL_INTERVAL = 0.1  # seconds between two checks whether a client has found its scheduler again


class DaskEngine(Engine):
    """The cluster of a Dask client, with the options for tasks that its `get_executor()` was given.

    Its own tasks and workers leave the slots of Dask's workers to other tasks: persistent workers are threads
    that give their slot back.

    Parameters
    ----------
    client_or_executor : distributed.Client or ClientExecutor
        A client, or the executor that its `get_executor()` returns.
    """

    name, location = "Dask", ClusterLocation(backend="dask")
    no_connection_advice = "pass executor=client to the map, whose tasks then are tasks of Dask"
    placement_timeout = 10.0

    def __init__(self, client_or_executor: Any) -> None:
        is_client = hasattr(client_or_executor, "get_executor")
        self.executor = client_or_executor.get_executor() if is_client else client_or_executor
        self.client, self.submit_options = self.executor._client, self.executor._kwargs
        if self.client.asynchronous:
            raise ExecutorError("a Dask client of asyncio: pass one that was made with asynchronous=False")
        self._last_connected_at = time.monotonic()
        self._workers_listed_at = time.monotonic()
        self._n_threads_by_address: dict[str, int] = {}  # of each of Dask's workers
        self._futures: dict[int, Any] = {}  # the task of each persistent worker
        self._dask_address_by_worker: dict[int, str] = {}  # the worker of Dask at which each was started

    def is_connected(self) -> bool:
        """Return whether the client is connected to its scheduler now."""
        return bool(self.client.status == "running")

    def get_unavailable_reason(self) -> str:
        """Return why the client takes no tasks any more; empty if it does, or may after a moment."""
        now = time.monotonic()
        self._last_connected_at = now if self.is_connected() else self._last_connected_at
        if self.executor._shutdown or self.client.status not in ("running", "connecting"):
            return "its client was closed, or it was shut down"
        return "its scheduler is gone" if now > self._last_connected_at + SCHEDULER_TIMEOUT else ""

    # -- single calls --------------------------------------------------------------------------

    # Futures of Dask's own executor print the errors of tasks, hash all arguments, and never end on a client
    # that was closed before.
    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        options = {"pure": False, "key": f"polarmap-task-{uuid.uuid4()}", **self.submit_options}
        dask_future = self.client.submit(call, *arguments, **options)
        self.executor._futures.add(dask_future)  # The executor's shutdown cancels these.
        self.client.loop.add_callback(self._copy_result, dask_future, future)
        # Only the fetch holds the Dask future: the cluster discards a result once it has been fetched.
        return partial(self.client.loop.add_callback, _cancel_unless_finished, weakref.ref(dask_future))

    async def _copy_result(self, dask_future: Any, future: Future[Any]) -> None:
        """Complete `future` as the Dask future ends."""
        try:
            result = await self.fetch_result(dask_future, lambda: not future.done())
        except BaseException as error:
            reported_error = error
            await self.wait_for_scheduler()
            if reason := self.get_unavailable_reason():  # A lost cluster cancels all: report the cause once.
                reported_error = RuntimeError(reason)
            elif dask_future.cancelled():  # Dask's own message differs from call to call.
                reported_error = CancelledError("Dask's client cancelled it")
            complete_future(future, error=reported_error)
        else:
            complete_future(future, result)

    async def wait_for_scheduler(self) -> None:
        """Wait while the client looks for its scheduler, until it has reconnected or has given up.

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
            The future of a task.
        is_wanted : callable
            Called without arguments once the result exists. If it returns False, the result is not fetched,
            and CancelledError is raised.
        """
        await future.exception()
        if future.status == "finished" and not is_wanted():
            raise CancelledError("the result was cancelled")
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

    # -- data ----------------------------------------------------------------------------------

    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """Return the future of a task, or one future for each of the items that the task returns."""
        task_key, submit = f"polarmap-data-{uuid.uuid4()}", self.client.submit
        options = {"pure": False, **self.submit_options}
        result_future = submit(function, *arguments, key=task_key, **options)
        if n_outputs == 1:
            return [result_future]
        return [
            submit(operator.getitem, result_future, item_index, key=f"{task_key}-{item_index}", **options)
            for item_index in range(n_outputs)
        ]

    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        """Return the results of futures, each fetched by itself; raise the first exception."""

        async def fetch_each() -> list[Any]:
            return await asyncio.gather(*map(self.fetch_result, references))

        values: list[Any] = self.client.sync(fetch_each)
        return values

    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition a list of futures, or the rows of a `dask.array` or Dask DataFrame."""
        import distributed

        if isinstance(data, list):
            all_dask_futures = all(isinstance(future, distributed.Future) for future in data)
            return PartitionedData(self, [[future] for future in data], None) if all_dask_futures else None
        with self.client.as_current():
            if hasattr(data, "to_dask_array"):
                data = data.to_dask_array(lengths=True)
            if not hasattr(data, "rechunk") or not data.ndim:
                return None
            if any(
                length != length for length in data.shape
            ):  # Dask has NaN for lengths that it does not know.
                data = data.compute_chunk_sizes()
            rows_per_block = compute_rows_per_block(data.shape[0], n_blocks, data.numblocks[0])
            rechunked = data.rechunk((rows_per_block, *data.shape[1:]))
            block_futures = self.client.compute(list(rechunked.to_delayed().ravel()))
        return PartitionedData(self, [[future] for future in block_futures], data.shape[0])

    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """Return the keys of futures once all have results. Raises ExecutorError if the scheduler goes."""
        import distributed

        wait: Any = distributed.wait
        with self.client.as_current():
            while True:
                with suppress(TimeoutError):
                    wait(list(references), timeout=SCHEDULER_TIMEOUT)
                    return [future.key for future in references]
                if reason := self.get_unavailable_reason():
                    raise ExecutorError(f"no data of Dask: {reason}")

    # -- persistent workers --------------------------------------------------------------------

    def discover_machines(self) -> None:
        """Ask the scheduler for its workers and their threads. Raises ExecutorError if it does not answer."""
        try:
            self._check_connected()
            self._n_threads_by_address = self.client.nthreads()
            self._workers_listed_at = time.monotonic()
            self.max_workers = sum(self._n_threads_by_address.values()) or None
            self.shares_host = is_every_host_local([*map(parse_host, self._n_threads_by_address)])
            self.driver_host = urlsplit(self.client.scheduler_comm.comm.local_address).hostname or ""
        except Exception as error:
            raise ExecutorError(f"{self.name} has no workers: {type(error).__name__}: {error}") from error

    def list_machines(self) -> list[str]:
        """Return the hosts in the addresses of Dask's workers; empty if the options of tasks choose workers.

        Dask is asked every few seconds.
        """
        if PLACEMENT_OPTIONS & self.submit_options.keys():
            return []
        if time.monotonic() > self._workers_listed_at + WORKER_LIST_INTERVAL and self.is_connected():
            with suppress(Exception):  # Keep the list if the scheduler is busy or has stopped.
                self._n_threads_by_address = self.client.sync(
                    self.client.scheduler.ncores, callback_timeout=WORKER_LIST_INTERVAL
                )
            self._workers_listed_at = time.monotonic()
        return list(dict.fromkeys(map(parse_host, self._n_threads_by_address)))

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        """Cancel the tasks of workers that Dask has not started."""
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
        """Submit one task for each worker, on its machine, or elsewhere if the machine has no Dask worker.

        Dask may wait forever for a machine that has stopped or cannot be reached. `cancel_launch` cancels
        such tasks.
        """
        try:
            self._check_connected()
            for worker_id, lifetime_seconds in lifetimes.items():
                options = {"pure": False, "key": f"polarmap-worker-{worker_id}-{uuid.uuid4()}"}
                options |= self._make_placement_options(worker_id, machine_by_worker.get(worker_id))
                self._futures[worker_id] = self.client.submit(
                    run_dask_worker,
                    tuple(driver_address),
                    worker_id,
                    lifetime_seconds,
                    **options | self.submit_options,
                )
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no tasks: {type(error).__name__}: {error}") from error

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """Return the workers whose task of Dask has ended, and why."""
        exit_reasons = {}
        for worker_id, future in list(self._futures.items()):
            if future.status in ("error", "cancelled", "lost", "finished"):
                del self._futures[worker_id]
                self._dask_address_by_worker.pop(worker_id, None)
                exit_reasons[worker_id] = _describe_task_exit(future, may_query)
        return exit_reasons

    def close(self) -> None:
        """Wait for the tasks, which end with their sockets: Dask warns of others that are discarded."""
        import distributed

        wait: Any = distributed.wait
        # Some tasks take longer, or the client is closed. `wait` would ask whichever client is current.
        with suppress(Exception), self.client.as_current():
            if self.is_connected():
                wait(list(self._futures.values()), timeout=GRACE_SECONDS)
        self._futures.clear()

    def _make_placement_options(self, worker_id: int, machine: str | None) -> dict[str, Any]:
        """Return the options of a task for the worker of Dask that has the fewest of ours for each thread."""
        n_threads = self._n_threads_by_address
        addresses = [address for address in n_threads if parse_host(address) == machine]
        if not addresses:
            return {}
        n_started = Counter(self._dask_address_by_worker.values())
        chosen_address = min(
            addresses, key=lambda address: (n_started[address] + 1) / max(1, n_threads[address])
        )
        self._dask_address_by_worker[worker_id] = chosen_address
        return {"workers": [chosen_address], "allow_other_workers": True}

    def _check_connected(self) -> None:
        """Raise ConnectionError at once if the scheduler is away."""
        if not self.is_connected():
            raise ConnectionError(self.get_unavailable_reason() or "its scheduler is away")


async def _gather_from_workers(client: Any, task_key: Any) -> Mapping[Any, Any]:
    """Return the result of a finished task by its key, read from its worker; nothing if no worker has it."""
    from distributed.utils_comm import gather_from_workers

    workers = await client.scheduler.who_has(keys=[task_key])
    data, *_ = await gather_from_workers(workers, rpc=client.rpc)
    results: Mapping[Any, Any] = data
    return results


async def _cancel_unless_finished(future_weakref: weakref.ref[Any]) -> None:
    """Cancel the task of a Dask future unless it has finished. Must be called on the client's event loop.

    The result of a finished task may be on its way. If it were discarded now, its worker might not find it,
    and Dask would print "Couldn't gather keys". It is discarded anyway once the future is gone.
    """
    future = future_weakref()
    if future is not None and future.status != "finished":
        await future.cancel()


def parse_host(worker_address: str) -> str:
    """Return the host in the address of a worker of Dask, which tells its machine from others.

    >>> parse_host("tcp://10.0.0.3:41234"), parse_host("inproc://10.0.0.3/12/4")
    ('10.0.0.3', '10.0.0.3')
    """
    return urlsplit(worker_address).hostname or worker_address


def _describe_task_exit(future: Any, may_query: bool) -> str:
    """Return how a task has ended. With `may_query`, fetch the result of a finished task from its worker."""
    with suppress(Exception):
        if future.status == "error" and (error := future.exception(timeout=1)):
            return f"{type(error).__name__}: {error}"
        if future.status == "finished" and may_query:
            return str(future.result(timeout=1))
    return str(future.status)


def run_dask_worker(driver_address: tuple[Any, ...], worker_id: int, lifetime_seconds: float) -> str:
    """Serve a driver until the worker expires, and return how it has ended.

    The task secedes, so that the Dask worker can run other tasks. A driver that has exited before its worker
    connects is not an error; as Dask would print an exception, its text is returned.
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
