"""Dask, for single calls and as a place for workers that stay."""

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
from polarmap.executors.engine_calls import EngineCalls, end_as
from polarmap.executors.remote_workers import NO_MACHINES, Site
from polarmap.executors.tcp import are_own
from polarmap.executors.worker_table import GRACE_SECONDS
from polarmap.worker.persistent_worker import DriverAddress, serve_driver_on_thread

ASK_SECONDS = 5.0  # between two requests for the cluster's workers, and until one is given up
PLACING_OPTIONS = {"workers", "resources"}  # of tasks, by which a user chooses where they run
SCHEDULER_SECONDS = 5.0  # that a client may be without its scheduler: it tries for longer to find it
RECONNECT_POLL_SECONDS = 0.1  # between two looks whether a client has found its scheduler again


class DaskClient:
    """A Dask client, and the options for tasks that its `get_executor()` was given.

    Parameters
    ----------
    choice : a client, or what its `get_executor()` gives
    """

    def __init__(self, choice: Any) -> None:
        self.executor = choice.get_executor() if hasattr(choice, "get_executor") else choice
        self.client, self.options = self.executor._client, self.executor._kwargs
        if self.client.asynchronous:
            raise ExecutorError("a Dask client of asyncio: pass one that was made with asynchronous=False")
        self._seen = time.monotonic()  # connected

    def is_connected(self) -> bool:
        """Whether it has its scheduler now."""
        return bool(self.client.status == "running")

    def gone(self) -> str:
        """Why it takes no tasks any more; empty if it does, or may after a moment."""
        now = time.monotonic()
        self._seen = now if self.is_connected() else self._seen
        if self.executor._shutdown or self.client.status not in ("running", "connecting"):
            return "its client was closed, or it was shut down"
        return "its scheduler is gone" if now > self._seen + SCHEDULER_SECONDS else ""

    async def wait_for_scheduler(self) -> None:
        """Wait while the client looks for its scheduler, until it has found it or is taken to be gone.

        Dask cancels all futures at once when it loses the connection. Only later is it known why.
        """
        while not (self.is_connected() or self.gone()):
            await asyncio.sleep(RECONNECT_POLL_SECONDS)

    async def fetch(self, future: Any, is_wanted: Callable[[], bool] = lambda: True) -> Any:
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
                data = await _from_workers(client, key)
            else:
                response = await client.scheduler.gather(keys=[key])
                data = response.get("data", {})
            if key in data:
                return data[key]
        return await future  # raises what the task has raised, or waits until a lost result is computed again

    def fetch_all(self, futures: Sequence[Any]) -> list[Any]:
        """Return the results of several futures, each fetched by itself; raise the first exception."""

        async def fetch_each() -> list[Any]:
            return await asyncio.gather(*map(self.fetch, futures))

        found: list[Any] = self.client.sync(fetch_each)
        return found


async def _from_workers(client: Any, key: Any) -> Mapping[Any, Any]:
    """Return the result of a finished task by its key, read from its worker; nothing if no worker has it."""
    from distributed.utils_comm import gather_from_workers

    workers = await client.scheduler.who_has(keys=[key])
    data, *_ = await gather_from_workers(workers, rpc=client.rpc)
    found: Mapping[Any, Any] = data
    return found


class DaskCalls(EngineCalls):
    """Calls on a Dask client.

    Those of Dask's own executor print the errors that come of it, hash all that travels, and never end on a
    client that was closed before.
    """

    name = "Dask"

    def __init__(self, choice: Any) -> None:
        self._dask = DaskClient(choice)

    def gone(self) -> str:
        """Why its client takes no tasks any more."""
        return self._dask.gone()

    def _start(self, ours: Future[Any], call: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        client, name = self._dask.client, f"polarmap-task-{uuid.uuid4()}"
        theirs = client.submit(call, *arguments, **{"pure": False, "key": name, **self._dask.options})
        self._dask.executor._futures.add(theirs)  # which its shutdown cancels
        client.loop.add_callback(self._pass_on, theirs, ours)
        # Only the fetch holds the Dask future: the cluster discards a result once it has been fetched.
        return partial(client.loop.add_callback, _cancel_unfinished, weakref.ref(theirs))

    async def _pass_on(self, theirs: Any, ours: Future[Any]) -> None:
        """Let the future of ours end as Dask's does."""
        try:
            result = await self._dask.fetch(theirs, lambda: not ours.done())
        except BaseException as error:
            why = error
            await self._dask.wait_for_scheduler()
            if reason := self.gone():  # which cancels all, and is told in one way
                why = RuntimeError(reason)
            elif theirs.cancelled():  # of which Dask's text differs from call to call
                why = CancelledError("Dask's client cancelled it")
            end_as(ours, error=why)
        else:
            end_as(ours, result)


async def _cancel_unfinished(reference: weakref.ref[Any]) -> None:
    """Cancel the task of a Dask future unless it has finished. Must be called on the client's event loop.

    The result of a finished task may be on its way. If it were discarded now, its worker might not find it,
    and Dask would print "Couldn't gather keys". It is discarded anyway once the future is gone.
    """
    future = reference()
    if future is not None and future.status != "finished":
        await future.cancel()


class DaskSite(Site):
    """Threads of the workers of a Dask cluster, whose slots are left to other tasks.

    Parameters
    ----------
    choice : a client, or what its `get_executor()` gives
    """

    name, has_polarmap = DaskCalls.name, True
    without_connections = "pass executor=client to the map, whose tasks then are tasks of Dask"
    place_seconds = 10.0

    def __init__(self, choice: Any) -> None:
        self._dask = DaskClient(choice)
        self._futures: dict[int, Any] = {}
        self._started_at: dict[int, str] = {}  # at which worker of Dask each was started
        try:
            self._check()
            self._threads: dict[str, int] = self._dask.client.nthreads()  # of each of its workers
            self._asked = time.monotonic()  # for them
            self.workers = sum(self._threads.values()) or None
            self.is_near = are_own([machine_of(address) for address in self._threads])
            self.driver_host = urlsplit(self._dask.client.scheduler_comm.comm.local_address).hostname or ""
        except Exception as error:
            raise ExecutorError(f"{self.name} has no workers: {type(error).__name__}: {error}") from error

    def gone(self) -> str:
        """Why its client takes no tasks any more."""
        return self._dask.gone()

    def machines(self) -> list[str]:
        """Return the hosts in the addresses of Dask's workers; empty if the options of tasks choose workers.

        Dask is asked every few seconds.
        """
        if PLACING_OPTIONS & self._dask.options.keys():
            return []
        if time.monotonic() > self._asked + ASK_SECONDS and self._dask.is_connected():
            with suppress(Exception):  # the scheduler may be busy, or gone: they may be as they were
                client: Any = self._dask.client
                self._threads = client.sync(client.scheduler.ncores, callback_timeout=ASK_SECONDS)
            self._asked = time.monotonic()
        return list(dict.fromkeys(map(machine_of, self._threads)))

    def withdraw(self, workers: Collection[int]) -> None:
        """Cancel tasks that Dask has not started."""
        for number in workers:
            self._started_at.pop(number, None)
            if (future := self._futures.pop(number, None)) is not None:
                future.cancel()

    def launch(
        self, address: DriverAddress, workers: Mapping[int, float], machines: Mapping[int, str] = NO_MACHINES
    ) -> None:
        """Start one task for each, at a worker of Dask on its machine, and elsewhere if that is gone.

        Dask goes on waiting for a worker that has gone while no other was there, or that is out of reach:
        `withdraw` is for these.
        """
        try:
            self._check()
            for number, seconds in workers.items():
                options = {"pure": False, "key": f"polarmap-worker-{number}-{uuid.uuid4()}"}
                options |= self._placing_options(number, machines.get(number))
                self._futures[number] = self._dask.client.submit(
                    stay_on_dask, tuple(address), number, seconds, **options | self._dask.options
                )
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no tasks: {type(error).__name__}: {error}") from error

    def ended(self, may_ask: bool = True) -> dict[int, str]:
        """The workers whose task of Dask has ended, and why."""
        found = {}
        for number, future in list(self._futures.items()):
            if future.status in ("error", "cancelled", "lost", "finished"):
                del self._futures[number]
                self._started_at.pop(number, None)
                found[number] = _ending(future, may_ask)
        return found

    def close(self) -> None:
        """Let the tasks end, as they do with their sockets, before they are forgotten: Dask warns else."""
        import distributed

        wait: Any = distributed.wait
        # Some take longer, or the client is closed; `wait` asks the current one, which may be another.
        with suppress(Exception), self._dask.client.as_current():
            if self._dask.is_connected():
                wait(list(self._futures.values()), timeout=GRACE_SECONDS)
        self._futures.clear()

    def _placing_options(self, number: int, machine: str | None) -> dict[str, Any]:
        """Return the options of a task for the worker of Dask that has the fewest of ours for each thread."""
        addresses = [one for one in self._threads if machine_of(one) == machine]
        if not addresses:
            return {}
        counts = Counter(self._started_at.values())
        chosen = min(addresses, key=lambda one: (counts[one] + 1) / max(1, self._threads[one]))
        self._started_at[number] = chosen
        return {"workers": [chosen], "allow_other_workers": True}

    def _check(self) -> None:
        """ConnectionError at once where the scheduler is away."""
        if not self._dask.is_connected():
            raise ConnectionError(self.gone() or "its scheduler is away")


def machine_of(address: str) -> str:
    """Return the host in the address of a worker of Dask, which tells its machine from others.

    >>> machine_of("tcp://10.0.0.3:41234"), machine_of("inproc://10.0.0.3/12/4")
    ('10.0.0.3', '10.0.0.3')
    """
    return urlsplit(address).hostname or address


def _ending(future: Any, may_ask: bool) -> str:
    """How a task has ended: what it has told of that, if it may be asked and its worker is there."""
    with suppress(Exception):
        if future.status == "error" and (error := future.exception(timeout=1)):
            return f"{type(error).__name__}: {error}"
        if future.status == "finished" and may_ask:
            return str(future.result(timeout=1))
    return str(future.status)


def stay_on_dask(address: tuple[Any, ...], number: int, seconds: float) -> str:
    """The life of a worker, on a thread that its Dask worker replaces by another one; how it has ended.

    Dask prints what a task raises, and a driver that is gone before its worker calls is no error.
    """
    import distributed

    leave: Any = distributed.secede
    worker: Any = distributed.get_worker
    place = f"Dask worker {worker().name} at {worker().address}"
    machine = urlsplit(worker().address).hostname or ""
    leave()
    try:
        serve_driver_on_thread(address, number, seconds, place, machine)
    except ConnectionError as error:
        return f"ConnectionError: {error}"
    return "finished"
