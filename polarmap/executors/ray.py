"""Ray, for single calls and as a place for persistent workers."""

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
from polarmap.executors.cluster_submit import ClusterSubmitter, complete_future
from polarmap.executors.remote_workers import NO_MACHINE_CHOICES, WorkerProvider
from polarmap.executors.worker_listener import find_local_address_towards, is_every_host_local
from polarmap.executors.worker_pool import GRACE_SECONDS
from polarmap.worker.daemon_threads import run_in_daemon_thread
from polarmap.worker.worker_entry import DriverAddress, serve_driver

NODE_LIST_INTERVAL = 5.0  # between two requests for the cluster's nodes
UNRESTRICTED_OPTIONS = {"num_cpus", "memory", "runtime_env", "name"}  # options that every node can meet
TRACE_FILTER_NAME = "polarmap_native_traces"  # the name of a handler for lines that Ray prints
# Lines of a stack trace of C++: its title, a frame of glog, and a frame of absl.
NATIVE_TRACE_PATTERN = re.compile(r"^\W*\*\*\* |\*\*\* (StackTrace|SIG)|\[0x[0-9a-f]+\]|(^|\s)@ +0x[0-9a-f]+")
MIN_PUT_BYTES = 1 << 16  # of an argument: a larger one travels once to each node


class RayConnection:
    """Ray, as this process is connected to it, and what makes tasks and actors there.

    Parameters
    ----------
    ray_spec : the module, initialized, what `ray.remote(num_cpus=..., memory=...)` gives, or
        "ray://host:port"
    """

    def __init__(self, ray_spec: Any) -> None:
        import ray

        self.ray_module: Any = ray
        if isinstance(ray_spec, str):
            ray_spec = self._connect(ray_spec)
        if self.get_unavailable_reason():
            raise ExecutorError(
                "Ray is not initialized: call ray.init(), with the address of a cluster, before"
            )
        hide_native_stack_traces()
        # Private to Ray, which has no other way to ask and go on at once.
        self._shutdown_lock: Any = getattr(ray._private.worker, "_connect_or_shutdown_lock", nullcontext())
        self.make_remote: Callable[[Any], Any] = ray.remote if ray_spec is ray else ray_spec

    def _connect(self, head_address: str) -> Any:
        """The module, connected to the cluster at an address unless it is to one."""
        if not self.ray_module.is_initialized():
            try:
                self.ray_module.init(head_address)
            except Exception as error:
                raise ExecutorError(f"no Ray answers at {head_address}: {error}") from error
        return self.ray_module

    def get_unavailable_reason(self) -> str:
        """Why it takes nothing any more; empty if it does."""
        return "" if self.ray_module.is_initialized() else "it was shut down"

    def get_driver_host(self) -> str:
        """Return the address of this machine in connections to the head node; empty if it is not known."""
        with suppress(Exception):  # a Ray client has no such address
            host, _, _ = self.ray_module.get_runtime_context().gcs_address.rpartition(":")
            return find_local_address_towards(host)
        return ""

    def list_node_addresses(self) -> dict[str, str]:
        """Return the address of the machine of each node that is alive and has CPUs, by the node's id."""
        nodes = [node for node in self.ray_module.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}

    def has_placement_options(self) -> bool:
        """Return whether the options of `ray.remote` say more of where tasks may run than CPUs
        and memory.
        """
        options = getattr(self.make_remote, "keywords", {}).get("options", {})
        return not UNRESTRICTED_OPTIONS.issuperset(options)

    @contextmanager
    def hold_connection(self) -> Iterator[None]:
        """Nobody shuts it down meanwhile, or Ray would start one of its own; RuntimeError if it is gone."""
        with self._shutdown_lock:
            if reason := self.get_unavailable_reason():
                raise RuntimeError(reason)
            yield


def hide_native_stack_traces() -> None:
    """Keep Ray from printing native stack traces of its raylets in this process, as far as it can be told.

    A raylet that was cut off ends with one, which Ray would print here. Other lines are printed as before.
    """
    with suppress(AttributeError, ImportError):  # of a Ray that hands lines on in another way
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        if (TRACE_FILTER_NAME, remove_native_stack_traces) not in dispatcher.handlers:
            dispatcher.handlers = [(TRACE_FILTER_NAME, remove_native_stack_traces), *dispatcher.handlers]


def remove_native_stack_traces(log_batch: dict[str, Any]) -> None:
    """Remove native stack traces from lines that Ray is about to print, if they are those of a raylet."""
    if log_batch.get("pid") == "raylet":
        lines = log_batch.get("lines", ())
        log_batch["lines"] = [line for line in lines if not NATIVE_TRACE_PATTERN.search(line)]


class RaySubmitter(ClusterSubmitter):
    """Tasks of Ray, none of which it starts again by itself."""

    name = "Ray"

    def __init__(self, ray_spec: Any) -> None:
        self._connection = RayConnection(ray_spec)
        self._make_remote_task = cache(self._connection.make_remote)
        self._put_cache: dict[int, tuple[Any, Any]] = {}  # by identity: large arguments of several calls
        self._lock = threading.Lock()
        self._abandoned_refs: list[Any] = []  # tasks for which nobody waits any more

    def get_unavailable_reason(self) -> str:
        """Why it takes no tasks any more."""
        return self._connection.get_unavailable_reason()

    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        with self._connection.hold_connection():
            remote_task = self._make_remote_task(call).options(name="polarmap task", max_retries=0)
            object_ref = remote_task.remote(*map(self._to_remote_argument, arguments))
            object_ref.future().add_done_callback(partial(_copy_result, future))
        return partial(self._schedule_cancellation, object_ref)

    def _schedule_cancellation(self, object_ref: Any) -> None:
        """Let a task for which nobody waits end by itself, or cancel it after a while.

        Ray ends this process if a task is cancelled in the moment in which its reply comes
        (ray-project/ray#54798, which mends a part of it).
        """
        with self._lock:
            self._abandoned_refs.append(object_ref)
            is_first = len(self._abandoned_refs) == 1
        if is_first:
            run_in_daemon_thread(self._cancel_unfinished_tasks)

    def _cancel_unfinished_tasks(self) -> None:
        time.sleep(GRACE_SECONDS)
        with self._lock:
            abandoned_refs, self._abandoned_refs = self._abandoned_refs, []
        with suppress(Exception), self._connection.hold_connection():  # of a Ray that was shut down
            ray = self._connection.ray_module
            n_refs = len(abandoned_refs)
            _, unfinished = ray.wait(abandoned_refs, num_returns=n_refs, timeout=0, fetch_local=False)
            for object_ref in unfinished:
                ray.cancel(object_ref)

    def _to_remote_argument(self, argument: Any) -> Any:
        """An argument, or what Ray has of a large one."""
        if not isinstance(argument, bytes) or len(argument) < MIN_PUT_BYTES:
            return argument
        if id(argument) not in self._put_cache:
            self._put_cache[id(argument)] = argument, self._connection.ray_module.put(argument)
        return self._put_cache[id(argument)][1]


def _copy_result(future: Future[Any], ray_future: Future[Any]) -> None:
    """Let the future of ours end as Ray's does."""
    error = ray_future.exception()
    complete_future(future, None if error else ray_future.result(), error)


class RayWorkerProvider(WorkerProvider):
    """Actors, each a process that serves its driver, spread over the nodes.

    Parameters
    ----------
    ray_spec : the module, initialized, or what `ray.remote(num_cpus=..., memory=...)` gives
    """

    name, imports_polarmap = RaySubmitter.name, True
    no_connection_advice = "pass executor=ray to the map, whose tasks then are tasks of Ray"
    placement_timeout = 20.0  # in which a node starts several processes, also if its cores are busy

    def __init__(self, ray_spec: Any) -> None:
        self._connection, self._pool_token = RayConnection(ray_spec), secrets.token_hex(4)
        self.max_workers = int(self._connection.ray_module.cluster_resources().get("CPU", 0)) or None
        self._address_by_node = self._connection.list_node_addresses()
        self._nodes_listed_at = time.monotonic()  # for them
        self.shares_host = is_every_host_local(list(self._address_by_node.values()))
        self.driver_host = self._connection.get_driver_host()
        self._node_by_worker: dict[int, str] = {}  # on which node each actor was started
        self._actors: dict[int, tuple[Any, Future[Any]]] = {}  # and the end of its work

    def get_unavailable_reason(self) -> str:
        """Why it takes no actors any more."""
        return self._connection.get_unavailable_reason()

    def list_machines(self) -> list[str]:
        """Return the addresses of Ray's nodes; empty if the options of actors choose nodes."""
        if self._connection.has_placement_options():
            return []
        if time.monotonic() > self._nodes_listed_at + NODE_LIST_INTERVAL:
            with suppress(Exception), self._connection.hold_connection():  # of a Ray that was shut down
                self._address_by_node = self._connection.list_node_addresses()
            self._nodes_listed_at = time.monotonic()
        return list(dict.fromkeys(self._address_by_node.values()))

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        """Kill actors that have not called."""
        for worker_id in worker_ids:
            if worker_id in self._actors:
                self._kill_actor(worker_id)

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str] = NO_MACHINE_CHOICES,
    ) -> None:
        """Start an actor for each, on its machine, or where Ray spreads it to."""
        try:
            actor_class = self._connection.make_remote(PolarmapWorker)
            for worker_id, lifetime_seconds in lifetimes.items():
                actor_name = f"polarmap worker {worker_id} of pool {self._pool_token}"
                strategy = self._choose_scheduling_strategy(worker_id, machine_by_worker.get(worker_id))
                configured_class = actor_class.options(
                    name=actor_name, scheduling_strategy=strategy, max_restarts=0
                )
                with self._connection.hold_connection():
                    actor = configured_class.remote()
                    served_ref = actor.serve.remote(tuple(driver_address), worker_id, lifetime_seconds)
                    self._actors[worker_id] = actor, served_ref.future()
        except Exception as error:
            reason = self.get_unavailable_reason() or f"{type(error).__name__}: {error}"
            raise ExecutorError(f"{self.name} takes no actors: {reason}") from error

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """The workers whose actor has ended, and why."""
        exit_reasons = {}
        for worker_id, (_, exit_future) in list(self._actors.items()):
            if exit_future.done():
                error = exit_future.exception()
                error = getattr(error, "cause", None) or error  # what the actor has raised
                exit_reasons[worker_id] = f"{type(error).__name__}: {error}" if error else "finished"
                self._kill_actor(worker_id)
        return exit_reasons

    def close(self) -> None:
        """Let the actors end, as they do with their sockets, before they are killed: as with tasks."""
        exit_futures = [exit_future for _, exit_future in self._actors.values()]
        wait_for(exit_futures, 0 if self.get_unavailable_reason() else GRACE_SECONDS)
        for worker_id in list(self._actors):
            self._kill_actor(worker_id)

    def _choose_scheduling_strategy(self, worker_id: int, machine: str | None) -> Any:
        """Return the scheduling strategy for an actor on a machine, on its node that has the fewest of ours.

        Ray chooses another node if that one is gone, or has no room.
        """
        nodes = [node for node, address in self._address_by_node.items() if address == machine]
        if not nodes:
            return "SPREAD"
        n_workers_by_node = Counter(self._node_by_worker.values())
        chosen_node = self._node_by_worker[worker_id] = min(nodes, key=n_workers_by_node.__getitem__)
        strategies: Any = self._connection.ray_module.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(chosen_node, soft=True)

    def _kill_actor(self, worker_id: int) -> None:
        """Kill an actor, which may have ended."""
        self._node_by_worker.pop(worker_id, None)
        actor, _ = self._actors.pop(worker_id)
        with suppress(Exception), self._connection.hold_connection():  # of a Ray that was shut down
            self._connection.ray_module.kill(actor)


class PolarmapWorker:
    """The actor, under whose name Ray lists it."""

    def serve(self, driver_address: tuple[Any, ...], worker_id: int, lifetime_seconds: float) -> None:
        """The life of a worker, in a process of its own."""
        import ray

        context: Any = ray.get_runtime_context()
        worker_label = f"Ray actor {context.get_actor_name()!r} on node {context.get_node_id()[:12]}"
        util: Any = ray.util
        machine = str(util.get_node_ip_address())
        serve_driver(DriverAddress(*driver_address), worker_id, lifetime_seconds, None, worker_label, machine)
