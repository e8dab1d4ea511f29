"""Ray, for single calls and as a place for workers that stay."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.engine_calls import EngineCalls, end_as
from polarmap.executors.remote_workers import NO_MACHINES, Site
from polarmap.executors.tcp import address_towards, are_own
from polarmap.executors.worker_table import GRACE_SECONDS
from polarmap.worker.blas_threads import run_in_daemon_thread
from polarmap.worker.persistent_worker import DriverAddress, serve_driver

ASK_SECONDS = 5.0  # between two requests for the cluster's nodes
PLACED_ANYWHERE = {"num_cpus", "memory", "runtime_env", "name"}  # options that every node can meet
TRACE_FILTER = "polarmap_native_traces"  # the name of a handler for lines that Ray prints
# Lines of a stack trace of C++: its title, a frame of glog, and a frame of absl.
NATIVE_TRACE = re.compile(r"^\W*\*\*\* |\*\*\* (StackTrace|SIG)|\[0x[0-9a-f]+\]|(^|\s)@ +0x[0-9a-f]+")
PUT_BYTES = 1 << 16  # of an argument: a larger one travels once to each node


class RayCluster:
    """Ray, as this process is connected to it, and what makes tasks and actors there.

    Parameters
    ----------
    choice : the module, initialized, what `ray.remote(num_cpus=..., memory=...)` gives, or "ray://host:port"
    """

    def __init__(self, choice: Any) -> None:
        import ray

        self.ray: Any = ray
        if isinstance(choice, str):
            choice = self._connected(choice)
        if self.gone():
            raise ExecutorError(
                "Ray is not initialized: call ray.init(), with the address of a cluster, before"
            )
        hide_native_traces()
        # Private to Ray, which has no other way to ask and go on at once.
        self._shutdown_lock: Any = getattr(ray._private.worker, "_connect_or_shutdown_lock", nullcontext())
        self.remote: Callable[[Any], Any] = ray.remote if choice is ray else choice

    def _connected(self, address: str) -> Any:
        """The module, connected to the cluster at an address unless it is to one."""
        if not self.ray.is_initialized():
            try:
                self.ray.init(address)
            except Exception as error:
                raise ExecutorError(f"no Ray answers at {address}: {error}") from error
        return self.ray

    def gone(self) -> str:
        """Why it takes nothing any more; empty if it does."""
        return "" if self.ray.is_initialized() else "it was shut down"

    def driver_host(self) -> str:
        """Return the address of this machine in connections to the head node; empty if it is not known."""
        with suppress(Exception):  # a Ray client has no such address
            host, _, _ = self.ray.get_runtime_context().gcs_address.rpartition(":")
            return address_towards(host)
        return ""

    def machines_of_nodes(self) -> dict[str, str]:
        """Return the address of the machine of each node that is alive and has CPUs, by the node's id."""
        nodes = [one for one in self.ray.make_logit_nodes() if one["Alive"] and one["Resources"].get("CPU")]
        return {one["NodeID"]: one["NodeManagerAddress"] for one in nodes}

    def has_placing_options(self) -> bool:
        """Return whether the options of `ray.remote` say more of where tasks may run than CPUs and memory."""
        options = getattr(self.remote, "keywords", {}).get("options", {})
        return not PLACED_ANYWHERE.issuperset(options)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Nobody shuts it down meanwhile, or Ray would start one of its own; RuntimeError if it is gone."""
        with self._shutdown_lock:
            if reason := self.gone():
                raise RuntimeError(reason)
            yield


def hide_native_traces() -> None:
    """Keep Ray from printing native stack traces of its raylets in this process, as far as it can be told.

    A raylet that was cut off ends with one, which Ray would print here. Other lines are printed as before.
    """
    with suppress(AttributeError, ImportError):  # of a Ray that hands lines on in another way
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        if (TRACE_FILTER, drop_native_trace) not in dispatcher.handlers:
            dispatcher.handlers = [(TRACE_FILTER, drop_native_trace), *dispatcher.handlers]


def drop_native_trace(batch: dict[str, Any]) -> None:
    """Remove native stack traces from lines that Ray is about to print, if they are those of a raylet."""
    if batch.get("pid") == "raylet":
        batch["lines"] = [line for line in batch.get("lines", ()) if not NATIVE_TRACE.search(line)]


class RayCalls(EngineCalls):
    """Tasks of Ray, none of which it starts again by itself."""

    name = "Ray"

    def __init__(self, choice: Any) -> None:
        self._cluster = RayCluster(choice)
        self._task = cache(self._cluster.remote)
        self._put: dict[int, tuple[Any, Any]] = {}  # by identity: large arguments of several calls
        self._lock = threading.Lock()
        self._left: list[Any] = []  # tasks for which nobody waits any more

    def gone(self) -> str:
        """Why it takes no tasks any more."""
        return self._cluster.gone()

    def _start(self, ours: Future[Any], call: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        with self._cluster.kept():
            task = self._task(call).options(name="polarmap task", max_retries=0)
            theirs = task.remote(*map(self._sent, arguments))
            theirs.future().add_done_callback(partial(_pass_on, ours))
        return partial(self._leave, theirs)

    def _leave(self, theirs: Any) -> None:
        """Let a task for which nobody waits end by itself, or cancel it after a while.

        Ray ends this process if a task is cancelled in the moment in which its reply comes
        (ray-project/ray#54798, which mends a part of it).
        """
        with self._lock:
            self._left.append(theirs)
            is_first = len(self._left) == 1
        if is_first:
            run_in_daemon_thread(self._cancel_left)

    def _cancel_left(self) -> None:
        time.sleep(GRACE_SECONDS)
        with self._lock:
            left, self._left = self._left, []
        with suppress(Exception), self._cluster.kept():  # of a Ray that was shut down
            ray = self._cluster.ray
            _, unfinished = ray.wait(left, num_returns=len(left), timeout=0, fetch_local=False)
            for theirs in unfinished:
                ray.cancel(theirs)

    def _sent(self, argument: Any) -> Any:
        """An argument, or what Ray has of a large one."""
        if not isinstance(argument, bytes) or len(argument) < PUT_BYTES:
            return argument
        if id(argument) not in self._put:
            self._put[id(argument)] = argument, self._cluster.ray.put(argument)
        return self._put[id(argument)][1]


def _pass_on(ours: Future[Any], theirs: Future[Any]) -> None:
    """Let the future of ours end as Ray's does."""
    error = theirs.exception()
    end_as(ours, None if error else theirs.result(), error)


class RaySite(Site):
    """Actors, each a process that serves its driver, spread over the nodes.

    Parameters
    ----------
    choice : the module, initialized, or what `ray.remote(num_cpus=..., memory=...)` gives
    """

    name, has_polarmap = RayCalls.name, True
    without_connections = "pass executor=ray to the map, whose tasks then are tasks of Ray"
    place_seconds = 20.0  # in which a node starts several processes, also if its cores are busy

    def __init__(self, choice: Any) -> None:
        self._cluster, self._token = RayCluster(choice), secrets.token_hex(4)
        self.workers = int(self._cluster.ray.cluster_resources().get("CPU", 0)) or None
        self._nodes = self._cluster.machines_of_nodes()
        self._asked = time.monotonic()  # for them
        self.is_near = are_own(list(self._nodes.values()))
        self.driver_host = self._cluster.driver_host()
        self._started_on: dict[int, str] = {}  # on which node each actor was started
        self._actors: dict[int, tuple[Any, Future[Any]]] = {}  # and the end of its work

    def gone(self) -> str:
        """Why it takes no actors any more."""
        return self._cluster.gone()

    def machines(self) -> list[str]:
        """Return the addresses of Ray's nodes; empty if the options of actors choose nodes."""
        if self._cluster.has_placing_options():
            return []
        if time.monotonic() > self._asked + ASK_SECONDS:
            with suppress(Exception), self._cluster.kept():  # of a Ray that was shut down
                self._nodes = self._cluster.machines_of_nodes()
            self._asked = time.monotonic()
        return list(dict.fromkeys(self._nodes.values()))

    def withdraw(self, workers: Collection[int]) -> None:
        """Kill actors that have not called."""
        for number in workers:
            if number in self._actors:
                self._end(number)

    def launch(
        self, address: DriverAddress, workers: Mapping[int, float], machines: Mapping[int, str] = NO_MACHINES
    ) -> None:
        """Start an actor for each, on its machine, or where Ray spreads it to."""
        try:
            make = self._cluster.remote(PolarmapWorker)
            for number, seconds in workers.items():
                name = f"polarmap worker {number} of pool {self._token}"
                strategy = self._strategy(number, machines.get(number))
                options = make.options(name=name, scheduling_strategy=strategy, max_restarts=0)
                with self._cluster.kept():
                    actor = options.remote()
                    self._actors[number] = actor, actor.stay.remote(tuple(address), number, seconds).future()
        except Exception as error:
            reason = self.gone() or f"{type(error).__name__}: {error}"
            raise ExecutorError(f"{self.name} takes no actors: {reason}") from error

    def ended(self, may_ask: bool = True) -> dict[int, str]:
        """The workers whose actor has ended, and why."""
        found = {}
        for number, (_, end) in list(self._actors.items()):
            if end.done():
                error = end.exception()
                error = getattr(error, "cause", None) or error  # what the actor has raised
                found[number] = f"{type(error).__name__}: {error}" if error else "finished"
                self._end(number)
        return found

    def close(self) -> None:
        """Let the actors end, as they do with their sockets, before they are killed: as with tasks."""
        wait_for([end for _, end in self._actors.values()], 0 if self.gone() else GRACE_SECONDS)
        for number in list(self._actors):
            self._end(number)

    def _strategy(self, number: int, machine: str | None) -> Any:
        """Return the scheduling strategy for an actor on a machine, on its node that has the fewest of ours.

        Ray chooses another node if that one is gone, or has no room.
        """
        nodes = [node for node, address in self._nodes.items() if address == machine]
        if not nodes:
            return "SPREAD"
        counts = Counter(self._started_on.values())
        chosen = self._started_on[number] = min(nodes, key=counts.__getitem__)
        strategies: Any = self._cluster.ray.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(chosen, soft=True)

    def _end(self, number: int) -> None:
        """Kill an actor, which may have ended."""
        self._started_on.pop(number, None)
        actor, _ = self._actors.pop(number)
        with suppress(Exception), self._cluster.kept():  # of a Ray that was shut down
            self._cluster.ray.kill(actor)


class PolarmapWorker:
    """The actor, under whose name Ray lists it."""

    def stay(self, address: tuple[Any, ...], number: int, seconds: float) -> None:
        """The life of a worker, in a process of its own."""
        import ray

        context: Any = ray.get_runtime_context()
        place = f"Ray actor {context.get_actor_name()!r} on node {context.get_node_id()[:12]}"
        util: Any = ray.util
        machine = str(util.get_node_ip_address())
        serve_driver(DriverAddress(*address), number, seconds, None, place, machine)
