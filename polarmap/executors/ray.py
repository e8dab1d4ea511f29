"""Connects to Ray clusters: runs calls, partitions data there, and starts persistent workers."""

from __future__ import annotations

import re
import secrets
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.engine import Engine, PartitionedData, complete_future, compute_rows_per_block
from polarmap.executors.remote_workers import NO_MACHINE_CHOICES
from polarmap.executors.worker_listener import find_local_address_towards, is_every_host_local
from polarmap.executors.worker_pool import GRACE_SECONDS
from polarmap.worker.daemon_threads import run_in_daemon_thread
from polarmap.worker.locations import ClusterLocation
from polarmap.worker.worker_entry import DriverAddress, serve_driver

# The interval, in seconds, at which Ray is asked for its list of nodes.
NODE_LIST_INTERVAL = 5.0
# `ray.remote` options that do not restrict the choice of nodes. With other options, Ray places the workers.
UNRESTRICTED_OPTIONS = {"num_cpus", "memory", "runtime_env", "name"}
TRACE_FILTER_NAME = "polarmap_native_traces"  # the name of our handler in Ray's log dispatcher
# Matches the lines of a C++ stack trace: the title, and the frames in the formats of glog and absl.
NATIVE_TRACE_PATTERN = re.compile(r"^\W*\*\*\* |\*\*\* (StackTrace|SIG)|\[0x[0-9a-f]+\]|(^|\s)@ +0x[0-9a-f]+")
# Arguments of at least this many bytes are sent once to each node, not with every call.
MIN_PUT_BYTES = 1 << 16


class RayEngine(Engine):
    """A connection to a Ray cluster, which runs calls and hosts persistent workers.

    Single calls are Ray tasks without retries. Persistent workers are Ray actors, spread over the nodes. Each
    actor is a separate process that runs tasks for this driver.

    Parameters
    ----------
    ray_spec : module, callable or str
        The initialized module `ray`, the result of `ray.remote(num_cpus=..., memory=...)`, or
        "ray://host:port".
    """

    name, location = "Ray", ClusterLocation(backend="ray")
    no_connection_advice = "pass executor=ray to the map, whose tasks then are tasks of Ray"
    # A worker must connect within this many seconds of its launch. Even a busy node can start several
    # processes in this time.
    placement_timeout = 20.0

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
        # Hold this lock so that Ray is not shut down between a check of the connection and its use. The lock
        # is private to Ray, which has no public alternative.
        self._shutdown_lock: Any = getattr(ray._private.worker, "_connect_or_shutdown_lock", nullcontext())
        # Converts a function or class to a remote one, with the options that the user passed to `ray.remote`.
        self.make_remote: Callable[[Any], Any] = ray.remote if ray_spec is ray else ray_spec
        self._make_remote_function = cache(self.make_remote)
        # Large arguments that several calls share: the argument's `id()` -> (argument, Ray reference).
        self._put_cache: dict[int, tuple[Any, Any]] = {}
        self._lock = threading.Lock()
        # References to the results of cancelled tasks that may still be running.
        self._abandoned_refs: list[Any] = []
        # The actor from which workers get references to blocks. It exits when its last handle is deleted.
        self._holder_actor: Any = None
        self._holder_name, self._n_held = f"polarmap blocks {uuid.uuid4()}", 0
        self._pool_token = secrets.token_hex(4)
        self._address_by_node: dict[str, str] = {}
        self._nodes_listed_at = time.monotonic()
        # Worker id -> the node on which the worker's actor was started.
        self._node_by_worker: dict[int, str] = {}
        # Worker id -> (the worker's actor, a future that is done once the actor has ended).
        self._actors: dict[int, tuple[Any, Future[Any]]] = {}

    def _connect(self, head_address: str) -> Any:
        """Connect to the Ray cluster at an address, unless Ray is already connected. Return module `ray`."""
        if not self.ray_module.is_initialized():
            try:
                self.ray_module.init(head_address)
            except Exception as error:
                raise ExecutorError(f"no Ray answers at {head_address}: {error}") from error
        return self.ray_module

    def get_unavailable_reason(self) -> str:
        """Return why Ray accepts no more tasks, or an empty string if it accepts them."""
        return "" if self.ray_module.is_initialized() else "it was shut down"

    @contextmanager
    def prevent_shutdown(self) -> Iterator[None]:
        """Keep other threads from shutting Ray down inside this context.

        After a shutdown, a call to Ray could start a new cluster. Raises RuntimeError if Ray has already been
        shut down.
        """
        with self._shutdown_lock:
            if reason := self.get_unavailable_reason():
                raise RuntimeError(reason)
            yield

    # -- single calls --------------------------------------------------------------------------

    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        with self.prevent_shutdown():
            remote_task = self._make_remote_function(call).options(name="polarmap task", max_retries=0)
            object_ref = remote_task.remote(*map(self._to_remote_argument, arguments))
            object_ref.future().add_done_callback(partial(_copy_result, future))
        return partial(self._schedule_cancellation, object_ref)

    def _schedule_cancellation(self, object_ref: Any) -> None:
        """Cancel a task whose result is not needed, unless it ends within GRACE_SECONDS.

        The delay makes it unlikely that a task is cancelled just as its reply arrives, which would make Ray
        terminate this process (ray-project/ray#54798 is a partial fix).
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
        with suppress(Exception), self.prevent_shutdown():  # Do nothing if Ray was shut down.
            ray = self.ray_module
            n_refs = len(abandoned_refs)
            _, unfinished = ray.wait(abandoned_refs, num_returns=n_refs, timeout=0, fetch_local=False)
            for object_ref in unfinished:
                ray.cancel(object_ref)

    def _to_remote_argument(self, argument: Any) -> Any:
        """Convert an argument of a remote call to a Ray reference if it is a large `bytes` object.

        Other arguments are returned unchanged. With a reference, an argument that several calls share is sent
        to each node only once.
        """
        if not isinstance(argument, bytes) or len(argument) < MIN_PUT_BYTES:
            return argument
        if id(argument) not in self._put_cache:
            self._put_cache[id(argument)] = argument, self.ray_module.put(argument)
        return self._put_cache[id(argument)][1]

    # -- data ----------------------------------------------------------------------------------

    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        """Submit `function(*arguments)` as a Ray task. Return references to its `n_outputs` results."""
        remote_function = self._make_remote_function(function)
        object_refs = remote_function.options(name="polarmap data", num_returns=n_outputs).remote(*arguments)
        return [object_refs] if n_outputs == 1 else list(object_refs)

    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        """Return the values of Ray object references."""
        values: list[Any] = self.ray_module.get(list(references))
        return values

    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        """Partition data of the cluster into blocks. Return None if `data` is not of a supported type.

        Each reference of a list of Ray references becomes a block. The rows of a `ray.data.Dataset` are
        divided into `n_blocks` blocks or, if this is None, into about as many as the dataset already has.
        """
        if isinstance(data, list):
            all_ray_references = all(hasattr(chunk, "future") and hasattr(chunk, "hex") for chunk in data)
            return PartitionedData(self, [[chunk] for chunk in data], None) if all_ray_references else None
        if not hasattr(data, "to_numpy_refs"):
            return None
        data = data.materialize()
        n_rows = data.count()
        rows_per_block = compute_rows_per_block(n_rows, n_blocks, data.num_blocks())
        split_datasets = data.split_at_indices(list(range(rows_per_block, n_rows, rows_per_block)))
        return PartitionedData(self, [chunk.to_numpy_refs() for chunk in split_datasets], n_rows)

    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        """Return a name for each reference, by which persistent workers look up its value.

        A persistent worker cannot receive references in messages, because Ray passes them only to its own
        tasks and actors. An actor therefore holds the references, and a name consists of the actor's name and
        an index.
        """
        if self._holder_actor is None:
            holder_class = self._make_remote_function(PolarmapBlocks)
            self._holder_actor = holder_class.options(name=self._holder_name, num_cpus=0).remote()
        first_index, self._n_held = self._n_held, self._n_held + len(references)
        self.ray_module.get(self._holder_actor.add_references.remote(list(references)))
        return [(self._holder_name, reference_index) for reference_index in range(first_index, self._n_held)]

    # -- persistent workers --------------------------------------------------------------------

    def discover_machines(self) -> None:
        """Ask Ray for its nodes and CPUs, and update the attributes that depend on them."""
        self.max_workers = int(self.ray_module.cluster_resources().get("CPU", 0)) or None
        self._address_by_node = self._list_node_addresses()
        self._nodes_listed_at = time.monotonic()
        self.shares_host = is_every_host_local(list(self._address_by_node.values()))
        self.driver_host = self._find_driver_host()

    def _find_driver_host(self) -> str:
        """Return the address that this machine uses in connections to Ray's head node, or "" if unknown."""
        with suppress(Exception):  # The address is unknown if Ray is used through a Ray client.
            host, _, _ = self.ray_module.get_runtime_context().gcs_address.rpartition(":")
            return find_local_address_towards(host)
        return ""

    def _list_node_addresses(self) -> dict[str, str]:
        """Return the address of each live node that has CPUs, by node id."""
        nodes = [node for node in self.ray_module.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}

    def list_machines(self) -> list[str]:
        """Return the addresses of the nodes on which persistent workers can be placed.

        The list is empty if the user has passed options to `ray.remote` that restrict the choice of nodes.
        """
        options = getattr(self.make_remote, "keywords", {}).get("options", {})
        if not UNRESTRICTED_OPTIONS.issuperset(options):
            return []
        if time.monotonic() > self._nodes_listed_at + NODE_LIST_INTERVAL:
            with suppress(Exception), self.prevent_shutdown():  # Do nothing if Ray was shut down.
                self._address_by_node = self._list_node_addresses()
            self._nodes_listed_at = time.monotonic()
        return list(dict.fromkeys(self._address_by_node.values()))

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        """Kill the actors of workers that have not connected."""
        for worker_id in worker_ids:
            if worker_id in self._actors:
                self._kill_actor(worker_id)

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str] = NO_MACHINE_CHOICES,
    ) -> None:
        """Start an actor for each persistent worker, on the machine chosen for it.

        Ray chooses the node of a worker for which no machine was chosen.
        """
        try:
            actor_class = self.make_remote(PolarmapWorker)
            for worker_id, lifetime_seconds in lifetimes.items():
                actor_name = f"polarmap worker {worker_id} of pool {self._pool_token}"
                strategy = self._choose_scheduling_strategy(worker_id, machine_by_worker.get(worker_id))
                configured_class = actor_class.options(
                    name=actor_name, scheduling_strategy=strategy, max_restarts=0
                )
                with self.prevent_shutdown():
                    actor = configured_class.remote()
                    served_ref = actor.serve.remote(tuple(driver_address), worker_id, lifetime_seconds)
                    self._actors[worker_id] = actor, served_ref.future()
        except Exception as error:
            reason = self.get_unavailable_reason() or f"{type(error).__name__}: {error}"
            raise ExecutorError(f"{self.name} cannot start actors: {reason}") from error

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """Return the persistent workers whose actor has ended, as a dict from worker id to reason."""
        exit_reasons = {}
        for worker_id, (_, exit_future) in list(self._actors.items()):
            if exit_future.done():
                error = exit_future.exception()
                error = getattr(error, "cause", None) or error  # the error that the actor raised
                exit_reasons[worker_id] = f"{type(error).__name__}: {error}" if error else "finished"
                self._kill_actor(worker_id)
        return exit_reasons

    def close(self) -> None:
        """Wait for the actors, which exit when their sockets are closed, and kill those that remain.

        The wait takes at most GRACE_SECONDS.
        """
        exit_futures = [exit_future for _, exit_future in self._actors.values()]
        wait_for(exit_futures, 0 if self.get_unavailable_reason() else GRACE_SECONDS)
        for worker_id in list(self._actors):
            self._kill_actor(worker_id)

    def _choose_scheduling_strategy(self, worker_id: int, machine: str | None) -> Any:
        """Return the scheduling strategy that places an actor on a machine.

        Among the machine's nodes, choose the one with the fewest workers. Ray falls back to another node if
        this one is down or full.
        """
        nodes = [node for node, address in self._address_by_node.items() if address == machine]
        if not nodes:
            return "SPREAD"
        n_workers_by_node = Counter(self._node_by_worker.values())
        chosen_node = self._node_by_worker[worker_id] = min(nodes, key=n_workers_by_node.__getitem__)
        strategies: Any = self.ray_module.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(chosen_node, soft=True)

    def _kill_actor(self, worker_id: int) -> None:
        """Kill a worker's actor, which may have ended already."""
        self._node_by_worker.pop(worker_id, None)
        actor, _ = self._actors.pop(worker_id)
        with suppress(Exception), self.prevent_shutdown():  # Do nothing if Ray was shut down.
            self.ray_module.kill(actor)


def _copy_result(future: Future[Any], ray_future: Future[Any]) -> None:
    """Complete `future` with the result or exception of a finished Ray future."""
    error = ray_future.exception()
    complete_future(future, None if error else ray_future.result(), error)


def hide_native_stack_traces() -> None:
    """Stop Ray from printing stack traces of its node processes (raylets) in this process.

    A raylet that loses its connection exits with a native stack trace. Other lines are still printed. Does
    nothing in versions of Ray that lack the internal log dispatcher.
    """
    with suppress(AttributeError, ImportError):  # Some versions of Ray have no log dispatcher.
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        if (TRACE_FILTER_NAME, remove_native_stack_traces) not in dispatcher.handlers:
            dispatcher.handlers = [(TRACE_FILTER_NAME, remove_native_stack_traces), *dispatcher.handlers]


def remove_native_stack_traces(log_batch: dict[str, Any]) -> None:
    """Remove native stack traces from a node process's log lines that Ray is about to print."""
    if log_batch.get("pid") == "raylet":
        lines = log_batch.get("lines", ())
        log_batch["lines"] = [line for line in lines if not NATIVE_TRACE_PATTERN.search(line)]


class PolarmapWorker:
    """A Ray actor that runs a persistent worker.

    Ray shows the class name to users, for example in its dashboard.
    """

    def serve(self, driver_address: tuple[Any, ...], worker_id: int, lifetime_seconds: float) -> None:
        """Run tasks for a driver until the worker's lifetime is over."""
        import ray

        context: Any = ray.get_runtime_context()
        worker_label = f"Ray actor {context.get_actor_name()!r} on node {context.get_node_id()[:12]}"
        util: Any = ray.util
        machine = str(util.get_node_ip_address())
        serve_driver(DriverAddress(*driver_address), worker_id, lifetime_seconds, None, worker_label, machine)


class PolarmapBlocks:
    """A Ray actor that holds references to blocks, so that persistent workers can look them up.

    Ray shows the class name to users, for example in its dashboard.
    """

    def __init__(self) -> None:
        self._references: list[Any] = []

    def add_references(self, references: list[Any]) -> None:
        """Append references to the list from which `get_reference` returns a reference by its index."""
        self._references += references

    def get_reference(self, reference_index: int) -> list[Any]:
        """Return the reference with an index, wrapped in a list.

        Ray would replace a reference that is not in a list by its value.
        """
        return [self._references[reference_index]]
