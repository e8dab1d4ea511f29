"""Connects to Dask clusters: runs calls, partitions data there, and starts persistent workers."""

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

# The interval in seconds at which the list of Dask's workers is refreshed. It is also the request's timeout.
WORKER_LIST_INTERVAL = 5.0
# The options with which a user chooses the workers of a Dask task.
PLACEMENT_OPTIONS = {"workers", "resources"}
# The scheduler counts as lost after this many seconds without a connection, although the client keeps trying
# for longer.
SCHEDULER_TIMEOUT = 5.0
RECONNECT_POLL_INTERVAL = 0.1  # seconds between checks for whether a client has reconnected


class DaskEngine(Engine):
    """A connection to the cluster of a Dask client, which runs calls and hosts persistent workers.

    Tasks get the options that the user passed to `get_executor()`. Persistent workers are threads in Dask's
    worker processes. They secede from Dask's thread pool, so that Dask can still run other tasks.

    Parameters
    ----------
    client_or_executor : distributed.Client or ClientExecutor
        A Dask client, or the executor returned by its method `get_executor()`.
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
        # Dask worker address -> its number of threads.
        self._n_threads_by_address: dict[str, int] = {}
        # Worker id -> the Dask future of the persistent worker.
        self._futures: dict[int, Any] = {}
        # Worker id -> the address of the Dask worker that runs it.
        self._dask_address_by_worker: dict[int, str] = {}

    def is_connected(self) -> bool:
        """Return True if the client is currently connected to its scheduler."""
        return bool(self.client.status == "running")

    def get_unavailable_reason(self) -> str:
        """Return why the client accepts no more tasks, or an empty string if it may still accept them."""
        now = time.monotonic()
        self._last_connected_at = now if self.is_connected() else self._last_connected_at
        if self.executor._shutdown or self.client.status not in ("running", "connecting"):
            return "its client was closed, or it was shut down"
        return "its scheduler is gone" if now > self._last_connected_at + SCHEDULER_TIMEOUT else ""

    # -- single calls --------------------------------------------------------------------------

    # Do not use Dask's own executor. Its futures print task errors, hash all arguments, and never complete
    # once the client is closed.
    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        options = {"pure": False, "key": f"polarmap-task-{uuid.uuid4()}", **self.submit_options}
        dask_future = self.client.submit(call, *arguments, **options)
        # Register the future, so that shutting down the executor cancels it.
        self.executor._futures.add(dask_future)
        self.client.loop.add_callback(self._copy_result, dask_future, future)
        # Keep only a weak reference to the Dask future, so that the cluster can release the result once it
        # has been fetched.
        return partial(self.client.loop.add_callback, _cancel_unless_finished, weakref.ref(dask_future))

    async def _copy_result(self, dask_future: Any, future: Future[Any]) -> None:
        """Wait for a Dask future, and set its result or exception on `future`."""
        try:
            result = await self.fetch_result(dask_future, lambda: not future.done())
        except BaseException as error:
            reported_error = error
            await self.wait_for_scheduler()
            if reason := self.get_unavailable_reason():
                # If the cluster is lost, every future is cancelled. Report the cause instead.
                reported_error = RuntimeError(reason)
            elif dask_future.cancelled():  # Dask's own message contains a random key, so replace it.
                reported_error = CancelledError("Dask's client cancelled it")
            complete_future(future, error=reported_error)
        else:
            complete_future(future, result)

    async def wait_for_scheduler(self) -> None:
        """Wait until the client has reconnected to its scheduler or has given up.

        Dask cancels all futures as soon as the connection is lost, before it is known whether the scheduler
        will come back.
        """
        while not (self.is_connected() or self.get_unavailable_reason()):
            await asyncio.sleep(RECONNECT_POLL_INTERVAL)

    async def fetch_result(self, future: Any, is_wanted: Callable[[], bool] = lambda: True) -> Any:
        """Wait for a Dask future and return its result. Raise the exception of its task if it failed.

        Each result is fetched separately. In contrast, `await future` fetches the results that are requested
        at about the same time as a group, with at most five groups in flight, so that one slow machine delays
        all other results. Must be called on the client's event loop.

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
        return await future  # Raise the task's exception, or wait until Dask has recomputed a lost result.

    # -- data ----------------------------------------------------------------------------------

    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """Submit the call `function(*arguments)` as a Dask task, and return its future in a list.

        If `n_outputs` is above 1, the function returns a sequence of `n_outputs` items, and the list contains
        one future for each item.
        """
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
        """Return the results of Dask futures, or raise the first exception if any task failed.

        Each result is fetched separately.
        """

        async def fetch_each() -> list[Any]:
            return await asyncio.gather(*map(self.fetch_result, references))

        values: list[Any] = self.client.sync(fetch_each)
        return values

    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition a list of futures, or the rows of a Dask array or DataFrame, into blocks.

        Return None for other data.
        """
        import distributed

        if isinstance(data, list):
            all_dask_futures = all(isinstance(future, distributed.Future) for future in data)
            return PartitionedData(self, [[future] for future in data], None) if all_dask_futures else None
        with self.client.as_current():
            if hasattr(data, "to_dask_array"):
                data = data.to_dask_array(lengths=True)
            if not hasattr(data, "rechunk") or not data.ndim:
                return None
            # Dask uses NaN for unknown lengths, and NaN is not equal to itself.
            if any(length != length for length in data.shape):
                data = data.compute_chunk_sizes()
            rows_per_block = compute_rows_per_block(data.shape[0], n_blocks, data.numblocks[0])
            rechunked = data.rechunk((rows_per_block, *data.shape[1:]))
            block_futures = self.client.compute(list(rechunked.to_delayed().ravel()))
        return PartitionedData(self, [[future] for future in block_futures], data.shape[0])

    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """Return the Dask keys of some futures, with which workers can fetch the results from each other.

        Block until all results have been computed. Raises ExecutorError if the scheduler is lost.
        """
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
        """Return the host names of Dask's workers, from a list that is refreshed every few seconds.

        The list is empty if the user chooses the workers through task options.
        """
        if PLACEMENT_OPTIONS & self.submit_options.keys():
            return []
        if time.monotonic() > self._workers_listed_at + WORKER_LIST_INTERVAL and self.is_connected():
            with suppress(Exception):  # Keep the old list if the scheduler does not answer.
                self._n_threads_by_address = self.client.sync(
                    self.client.scheduler.ncores, callback_timeout=WORKER_LIST_INTERVAL
                )
            self._workers_listed_at = time.monotonic()
        return list(dict.fromkeys(map(parse_host, self._n_threads_by_address)))

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        """Cancel the launch of persistent workers that have not connected."""
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
        """Submit a long-running Dask task for each persistent worker, on the machine chosen for it.

        If the machine has no Dask worker, the task runs elsewhere. Dask may wait forever for a machine that
        is down or unreachable. `cancel_launch` cancels such tasks.
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
        """Return the persistent workers whose Dask task has ended, as a dict from worker id to reason."""
        exit_reasons = {}
        for worker_id, future in list(self._futures.items()):
            if future.status in ("error", "cancelled", "lost", "finished"):
                del self._futures[worker_id]
                self._dask_address_by_worker.pop(worker_id, None)
                exit_reasons[worker_id] = _describe_task_exit(future, may_query)
        return exit_reasons

    def close(self) -> None:
        """Wait for the persistent workers' tasks, which end when their sockets are closed.

        Dask would print warnings if their futures were dropped earlier.
        """
        import distributed

        wait: Any = distributed.wait
        # Ignore errors, because a task may take longer than the timeout, or the client may be closed.
        # `as_current` is needed because `wait` has no parameter for the client.
        with suppress(Exception), self.client.as_current():
            if self.is_connected():
                wait(list(self._futures.values()), timeout=GRACE_SECONDS)
        self._futures.clear()

    def _make_placement_options(self, worker_id: int, machine: str | None) -> dict[str, Any]:
        """Return the Dask options that place a persistent worker on a machine.

        Among Dask's workers on the machine, choose the one with the fewest persistent workers per thread.
        """
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
        """Raise ConnectionError if the scheduler is unreachable, without waiting for it."""
        if not self.is_connected():
            raise ConnectionError(self.get_unavailable_reason() or "its scheduler is away")


async def _gather_from_workers(client: Any, task_key: Any) -> Mapping[Any, Any]:
    """Fetch the result of a finished task from a Dask worker that holds it.

    Return a mapping from the task key to the result. It is empty if no worker holds the result any more.
    """
    from distributed.utils_comm import gather_from_workers

    workers = await client.scheduler.who_has(keys=[task_key])
    data, *_ = await gather_from_workers(workers, rpc=client.rpc)
    results: Mapping[Any, Any] = data
    return results


async def _cancel_unless_finished(future_weakref: weakref.ref[Any]) -> None:
    """Cancel the task of a Dask future unless it has finished. Must be called on the client's event loop.

    The result of a finished task may be in transit to this process. Cancelling the task now could make Dask
    print "Couldn't gather keys". Dask releases the result anyway once the future is deleted.
    """
    future = future_weakref()
    if future is not None and future.status != "finished":
        await future.cancel()


def parse_host(worker_address: str) -> str:
    """Return the host part of a Dask worker's address, which identifies its machine.

    >>> parse_host("tcp://10.0.0.3:41234"), parse_host("inproc://10.0.0.3/12/4")
    ('10.0.0.3', '10.0.0.3')
    """
    return urlsplit(worker_address).hostname or worker_address


def _describe_task_exit(future: Any, may_query: bool) -> str:
    """Return how the Dask task of a persistent worker has ended: its error, return value or status.

    The return value, which says why the worker has exited, is fetched from the cluster only if `may_query`
    is true.
    """
    with suppress(Exception):
        if future.status == "error" and (error := future.exception(timeout=1)):
            return f"{type(error).__name__}: {error}"
        if future.status == "finished" and may_query:
            return str(future.result(timeout=1))
    return str(future.status)


def run_dask_worker(driver_address: tuple[Any, ...], worker_id: int, lifetime_seconds: float) -> str:
    """Run a persistent worker inside a Dask task until it expires, and return why it has ended.

    The task secedes, so that the Dask worker can run other tasks. If the driver has exited before the worker
    connects, the error is returned as text, because Dask would print an exception.
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
