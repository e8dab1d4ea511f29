"""Pools of persistent workers on a cluster or cloud: Lithops functions, Dask tasks or Ray actors.

    RemoteWorkerPool --launch_workers--> WorkerProvider --> worker
           ^                                                  |
           +--- WorkerListener or StorageChannelServer <------+  connects to its driver

A `WorkerProvider` starts and stops workers on one kind of cluster. The pool decides how many workers are
needed and on which machines, replaces workers before they reach their time limit, and tracks billed usage.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from polarmap.clouds.limits import WorkerSpec, compute_block_cache_bytes
from polarmap.clouds.prices import PersistentUsage, count_listing_requests
from polarmap.errors import ExecutorError
from polarmap.executors.block_store import BlockStore, DriverBlockStore
from polarmap.executors.interface import Reach
from polarmap.executors.storage_channels import OnConnected, StorageChannelServer, WorkerChannel
from polarmap.executors.worker_listener import WorkerListener
from polarmap.executors.worker_placement import (
    can_spare_worker,
    choose_machines,
    choose_worker_for_task,
    compute_max_per_machine,
    find_underfull_machines,
)
from polarmap.executors.worker_pool import GRACE_SECONDS, Allocation, WorkerHandle, WorkerPool
from polarmap.worker.handshake import Endpoint
from polarmap.worker.messages import FrameError
from polarmap.worker.retries import OUTAGE_SECONDS
from polarmap.worker.socket_channel import TCP_TIMEOUT
from polarmap.worker.worker_entry import DriverAddress

# A worker must connect within this many seconds. A cloud may have to download a container image first.
CONNECT_TIMEOUT = 300.0
# A job without workers fails after this many consecutive failed launches.
MAX_LAUNCH_FAILURES = 3
# The pause, in seconds, between a failed launch and the next one. The pause starts at the minimum, and
# doubles with each consecutive failure up to the maximum.
MIN_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
# If workers reach their time limit soon, at most 1 / RENEWAL_DIVISOR of all workers are replaced at a time.
RENEWAL_DIVISOR = 8
# The lifetime of each worker is a different fraction of the time limit, between these two numbers, so that
# the workers do not all exit at once.
MIN_LIFETIME_FRACTION = 0.6
MAX_LIFETIME_FRACTION = 0.9
MACHINE_PROBE_INTERVAL = 5.0  # seconds between attempts to start a worker on an unreachable machine
NO_MACHINE_CHOICES: Mapping[int, str] = MappingProxyType({})
# Multiples of this number, modulo 1, are spread evenly over [0, 1). They determine the workers' lifetimes.
GOLDEN_RATIO = 0.6180339887


class WorkerProvider:
    """The interface through which a pool starts and stops persistent workers on a cluster or cloud.

    Attributes
    ----------
    name : str
        The name of the cluster or cloud in reports.
    max_worker_seconds : float
        The time limit of a worker in seconds; inf without a limit.
    max_workers : int or None
        The maximum number of workers; None if it is unknown.
    shares_files : bool
        True if the workers are on this machine and can access its files.
    shares_host : bool
        True if all machines known so far are this machine. Workers then memory-map block files, and request
        blocks from the driver if a file is missing.
    imports_polarmap : bool
        True if workers can import polarmap. Otherwise, the code that they need is sent with each function.
    reach : Reach
        The storage that workers can access.
    bucket : str or None
        The bucket for messages between workers and driver; None if there is no storage.
    key_prefix : str
        The common key prefix of these messages.
    listing_interval : float
        Seconds between the storage listings that detect exited workers; inf if no listing is needed.
    worker_spec : WorkerSpec or None
        The memory, cores, time limit and price of each worker; None if they are unknown.
    driver_host : str
        This machine's address in connections to the cluster, which workers try first; empty if it is unknown.
    no_connection_advice : str
        Advice for the error message if workers cannot connect to this process.
    placement_timeout : float
        A worker launched on a chosen machine must connect within this many seconds, or the machine counts as
        unreachable.
    """

    name: str
    max_worker_seconds = inf
    max_workers: int | None = None
    shares_files = shares_host = imports_polarmap = False
    reach = Reach()
    bucket: str | None = None
    key_prefix = ""
    listing_interval = inf
    worker_spec: WorkerSpec | None = None
    driver_host = ""
    no_connection_advice = "pass listen=False, so that messages travel by way of the storage"
    placement_timeout = CONNECT_TIMEOUT

    def open_storage_channels(self, on_connected: OnConnected) -> StorageChannelServer | None:
        """Start to exchange messages through object storage with workers that cannot connect by TCP.

        Return None if there is no storage. `on_connected(worker_id, channel, channel_name)` is called for
        each worker that connects.
        """
        return None

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str] = NO_MACHINE_CHOICES,
    ) -> None:
        """Start workers, which then connect to the driver at `driver_address`.

        Parameters
        ----------
        driver_address : DriverAddress
            Where and how the workers connect to the driver.
        lifetimes : mapping of int to float
            The lifetime of each worker in seconds, by worker id.
        machine_by_worker : mapping of int to str
            The machine on which to start each worker, by worker id. The provider chooses a machine for
            workers that are not in the mapping, and for those whose machine no longer exists.

        Raises
        ------
        ExecutorError
            If the cluster accepts no workers.
        """
        raise NotImplementedError

    def list_machines(self) -> Sequence[str]:
        """Return the addresses of the machines that can run workers now.

        The result is empty if the provider chooses the machines itself. The call may block, so the
        pool does not hold its lock meanwhile.
        """
        return ()

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        """Cancel the launch of workers that have not connected yet."""

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """Return the workers that exited since the last call, and the reasons, by worker id.

        The reason is "" if it is unknown. With `may_query`, the provider may take longer to find it out.
        """
        raise NotImplementedError

    def get_unavailable_reason(self) -> str:
        """Return why no more workers can be started, or an empty string if they can."""
        return ""

    def remove_leftover_objects(self) -> None:
        """Remove the objects that exited workers have left in the storage. This may take long."""

    def close(self) -> None:
        """Stop all workers, if the cluster supports it, and remove the objects that they have stored."""
        raise NotImplementedError

    def make_block_store(self) -> BlockStore:
        """Return the store from which workers on other machines read blocks."""
        return DriverBlockStore(self.key_prefix)

    def collect_module_sources(self, pickled_function: bytes) -> Mapping[str, tuple[str, bool]]:
        """Return the modules that a pickled function needs and workers may not have installed.

        The result maps each module name to its source code and whether it is a package.
        """
        return {}


@dataclass
class LaunchedWorker:
    """A worker that was launched on a cluster or cloud and is not known to have exited.

    Attributes
    ----------
    launched_at, expires_at : float
        When the worker was launched and when its lifetime ends, on the monotonic clock.
    has_connected : bool
        True once the worker has connected to the driver.
    machine : str
        The machine on which the worker was launched; empty if the provider chose the machine.
    is_extra : bool
        True if the worker is to replace another one, so that the pool temporarily has more workers than
        needed.
    """

    launched_at: float
    expires_at: float
    has_connected: bool = False
    machine: str = ""
    is_extra: bool = False

    def is_overdue(self, now: float) -> bool:
        """Return True if the worker has not connected within CONNECT_TIMEOUT after its launch."""
        return not self.has_connected and now > self.launched_at + CONNECT_TIMEOUT

    def compute_billed_seconds(self, since: float) -> float:
        """Return the number of seconds after `since` for which the worker is billed.

        `since` is a time on the monotonic clock. A worker that has not connected within CONNECT_TIMEOUT is
        assumed to have exited when this timeout ended.
        """
        now = time.monotonic()
        billed_until = self.launched_at + CONNECT_TIMEOUT if self.is_overdue(now) else now
        return max(0.0, billed_until - max(self.launched_at, since))


class Backoff:
    """Exponential backoff: the pause before the next retry doubles with each consecutive failure.

    Attributes
    ----------
    n_failures : int
        The number of consecutive failures.
    last_reason : str
        The reason of the last failure; empty if there was none.
    """

    def __init__(self) -> None:
        self.n_failures, self.last_reason = 0, ""
        self._first_failed_at = self._next_retry_at = 0.0

    def record_failure(self, reason: str) -> None:
        """Record a failure and double the pause before the next retry."""
        now = time.monotonic()
        self._first_failed_at = self._first_failed_at if self.n_failures else now
        seconds = MIN_BACKOFF_SECONDS * 2 ** min(self.n_failures, 10)
        self._next_retry_at = now + min(MAX_BACKOFF_SECONDS, seconds)
        self.n_failures, self.last_reason = self.n_failures + 1, reason

    def can_retry(self) -> bool:
        """Return True if the pause after the last failure is over."""
        return time.monotonic() >= self._next_retry_at

    def get_failing_seconds(self) -> float:
        """Return the seconds since the first consecutive failure, or 0 if there was none."""
        return time.monotonic() - self._first_failed_at if self.n_failures else 0.0


class RemoteWorkerPool(WorkerPool):
    """A pool of workers on a cluster or cloud, started on demand and replaced before they expire.

    When a map ends, its running tasks are not killed. If later maps need more workers before these tasks end,
    additional workers are started. Once the tasks have ended, surplus workers are removed.

    Parameters
    ----------
    provider : WorkerProvider
        The provider that starts the workers. The pool owns and closes it.
    max_workers : int or None
        The maximum number of workers; None for the provider's limit.
    listen_endpoint : bool or Endpoint
        True: workers may connect by TCP. An endpoint: workers connect to this host and port. False: messages
        only travel through the provider's storage.
    block_cache_bytes : int
        The number of bytes of blocks that each worker may cache.
    n_threads : int
        The number of threads that each worker may use for linear algebra.
    tcp_timeout : float
        Both sides treat a connection as lost after this many seconds of silence.
    fetch_timeout : float
        The time limit in seconds for a worker to read a block from the provider's storage.
    """

    def __init__(
        self,
        provider: WorkerProvider,
        max_workers: int | None,
        listen_endpoint: bool | Endpoint,
        block_cache_bytes: int,
        n_threads: int,
        tcp_timeout: float = TCP_TIMEOUT,
        fetch_timeout: float = inf,
    ) -> None:
        super().__init__(max_workers if max_workers is not None else provider.max_workers)
        self._provider = provider
        self._n_wanted = 0
        # The launched workers, by worker id, except those that are known to have exited.
        self._launched: dict[int, LaunchedWorker] = {}
        # Delays the next launch after the provider, i.e. the cluster or cloud, has refused a launch.
        self._launch_backoff = Backoff()
        # Delays the next launch after workers have exited before they connected to this process.
        self._startup_backoff = Backoff()
        # Workers with ids up to this one were discarded, because some of them run another polarmap version.
        self._newest_given_up_id = -1
        self._machines = tuple(provider.list_machines())
        # Unreachable machine -> when to start a worker there again, on the monotonic clock.
        self._unreachable_until: dict[str, float] = {}
        self._rebalance_backoff = Backoff()  # limits how often workers are moved between machines
        # The billed time of exited workers, in seconds, since `take_billed_usage` was last called.
        self._unbilled_seconds = 0.0
        self._n_unbilled_starts = 0
        self._billed_at = time.monotonic()  # when `take_billed_usage` was last called
        key = secrets.token_bytes(32)
        self._listener: WorkerListener | None = None
        self._storage_channels: StorageChannelServer | None = None
        try:
            self._storage_channels = provider.open_storage_channels(self._on_connected)
            if listen_endpoint:
                endpoint = listen_endpoint if isinstance(listen_endpoint, tuple) else None
                local_only, host = provider.shares_files, provider.driver_host
                self._listener = WorkerListener(
                    key, self._on_connected, local_only, endpoint, tcp_timeout, host
                )
        except Exception as error:
            self.close()
            raise ExecutorError(f"{provider.name} has no workers: {type(error).__name__}: {error}") from error
        endpoints = () if self._listener is None else self._listener.endpoints
        if provider.worker_spec is not None:
            block_cache_bytes = min(block_cache_bytes, compute_block_cache_bytes(provider.worker_spec))
        storage_and_limits = provider.bucket, provider.key_prefix, block_cache_bytes, n_threads
        self._driver_address = DriverAddress(endpoints, key, *storage_and_limits, tcp_timeout, fetch_timeout)

    def request_workers(self, n_workers: int) -> None:
        """Start workers until there are `n_workers`, or as many as the pool's limit allows."""
        with self._lock:
            self._check_open()
            n_allowed = n_workers if self._max_workers is None else min(n_workers, self._max_workers)
            self._n_wanted = max(self._n_wanted, n_allowed)
            self._launch_missing_workers()

    def maybe_scale_up(self, allocation: Allocation, n_queued: int) -> None:
        """Replace failed workers, and start one more worker if other sessions use all workers.

        A session runs the tasks of one map. Another worker is started only if this session has queued tasks
        but no worker, and no task has started or ended for GRACE_SECONDS. Raises ExecutorError if no worker
        is connected and none is expected to connect.
        """
        now = time.monotonic()
        with self._lock:
            self._check_open()
            self._check_protocol_versions()
            self._remove_exited_workers()
            provider_name, reason = self._provider.name, self._startup_backoff.last_reason
            if not self._workers and (unavailable := self._provider.get_unavailable_reason()):
                raise ExecutorError(f"{provider_name} starts no worker: {unavailable}")
            if not self._workers and self._startup_backoff.n_failures >= MAX_LAUNCH_FAILURES:
                raise ExecutorError(
                    f"no worker of {provider_name} starts: {reason or 'they exit before they connect'}"
                )
            if self._launched and not self._workers and now > allocation.last_progress_at + CONNECT_TIMEOUT:
                explanation = f": {reason}" if reason else ""
                raise ExecutorError(
                    f"no worker of {provider_name} has connected within {CONNECT_TIMEOUT:g} s{explanation}"
                )
            is_blocked = (
                allocation.n_queued
                and self._choose_idle_worker(tuple) is None
                and self.is_allocation_starved(allocation)
            )
            self.request_workers(len(self) + 1 if is_blocked else 0)

    def _check_protocol_versions(self) -> None:
        """Discard workers whose version of polarmap differs from that of this process.

        Raises ExecutorError if no other worker is connected. In this case, workers that are still starting
        are also discarded, and the next map starts new ones.
        """
        sources = [source for source in (self._listener, self._storage_channels) if source is not None]
        for mismatch in (source.mismatches.popleft() for source in sources for _ in list(source.mismatches)):
            if mismatch.worker_id > self._newest_given_up_id:
                self._startup_backoff.record_failure(str(mismatch))
                self._terminate_worker(mismatch.worker_id)
                if not self._workers:
                    self._newest_given_up_id = max([mismatch.worker_id, *self._launched])
                    for worker_id in [key for key, item in self._launched.items() if not item.has_connected]:
                        self._terminate_worker(worker_id)
                    raise ExecutorError(str(mismatch))

    def take_billed_usage(self) -> PersistentUsage | None:
        """Return the workers' billed time and storage requests since the last call."""
        with self._lock:
            now = time.monotonic()
            launched = self._launched.values()
            billed_seconds = sum(item.compute_billed_seconds(self._billed_at) for item in launched)
            worker_seconds = self._unbilled_seconds + billed_seconds
            n_started = self._n_unbilled_starts
            n_polls = min(now - self._billed_at, worker_seconds) / self._provider.listing_interval
            n_listings = n_polls * count_listing_requests(len(self._launched))
            self._unbilled_seconds, self._n_unbilled_starts, self._billed_at = 0.0, 0, now
        n_writes, n_reads = 0, 0
        if self._storage_channels is not None:
            n_writes, n_reads = self._storage_channels.take_request_counts(worker_seconds)
        return PersistentUsage(worker_seconds, n_started, n_writes + round(n_listings), n_reads)

    def explain_missing_workers(self) -> str:
        """Explain why no worker has connected and what the user can do. Return "" if one has connected."""
        if self.latest_channel_name:
            return ""
        message = f"no worker of {self._provider.name} has connected to this process yet"
        if self._listener is None:
            return f"{message} by way of its storage"
        hosts = " or ".join(f"{host}:{port}" for host, port in self._listener.endpoints)
        cause = "Either none has started, or a firewall is in between"
        advice = "name an address that workers reach in Pool(listen='host:port')"
        return f"{message}, at {hosts}. {cause}: {advice}, or {self._provider.no_connection_advice}"

    def get_exit_reason(self, worker: WorkerHandle) -> str:
        """Return how a worker exited, for error messages. Raises ExecutorError if the pool is closed."""
        description, error = super().get_exit_reason(worker), worker.channel.failure
        if isinstance(error, FrameError) or error is None:
            return description
        label = worker.label and f" ({worker.label})"
        # A reset connection does not imply that the network has failed: the connection is also reset if the
        # worker process is killed before it has read all data.
        if isinstance(error, ConnectionResetError):
            return f"the connection to its worker was reset: it has exited or cannot be reached{label}"
        return f"the connection to its worker was lost: {error.strerror or error}{label}"

    def flush_messages(self) -> None:
        """Send all buffered messages without blocking."""
        if self._storage_channels is not None:
            self._storage_channels.flush_messages()

    def maintain_workers(self) -> None:
        """Replace workers that expire soon, and remove workers that have exited."""
        machines = tuple(self._provider.list_machines())  # This may block, so do not hold the lock.
        with self._lock:
            if self._is_closed:
                return
            self._machines = machines
            self._remove_exited_workers()
            self._poll_unallocated_workers()
            self._cancel_unconnected_launches()
            self._launch_missing_workers()
            self._rebalance_workers_across_machines()
        # Do not hold the lock here, so that jobs do not wait for a storage that may hang.
        self._provider.remove_leftover_objects()

    def close(self) -> None:
        """Stop all workers, and close the listener, the storage channels and the provider."""
        super().close()
        for resource in (self._listener, self._storage_channels, self._provider):
            if resource is not None:
                resource.close()

    def after_fork(self) -> None:
        """Forget the workers in a forked child process. They belong to the parent process."""
        super().after_fork()
        if self._listener is not None:
            self._listener.after_fork()

    def _start_worker(self) -> WorkerHandle | None:
        return None  # `request_workers` starts the workers, and `_on_connected` adds them.

    def _get_expiry_time(self, worker: WorkerHandle) -> float:
        """Return when a worker's lifetime ends, on the monotonic clock."""
        return self._launched[worker.worker_id].expires_at

    def _terminate_worker(self, worker_id: int) -> None:
        """Forget a worker that has exited, and record its billed time."""
        launched = self._launched.pop(worker_id, None)
        self._unbilled_seconds += launched.compute_billed_seconds(self._billed_at) if launched else 0.0

    def _remove_unneeded_workers(self) -> None:
        """Remove idle workers whose lifetime has ended, then idle workers that are not needed.

        On a single machine, the workers that expire first are removed first. With several machines, workers
        are removed from the machine that has the most.
        """
        self._remove_idle_workers(len(self._workers), self._get_expiry_time, time.monotonic())
        n_excess = self._count_excess_workers()
        if len(self._machines) < 2:
            self._remove_idle_workers(n_excess, self._get_expiry_time)
        else:
            self._remove_workers_from_overfull_machines(n_excess)

    def _count_excess_workers(self) -> int:
        """Return how many more workers there are than needed. The number is negative if workers are missing.

        Workers that are still busy with a task of a finished map do not count.
        """
        return len(self._workers) - self._count_stuck_workers() - self._n_wanted

    def _remove_workers_from_overfull_machines(self, n_excess: int) -> None:
        """Remove up to `n_excess` idle workers from machines with more than their fair share of workers."""
        for _ in range(n_excess):
            n_workers_by_machine = Counter(worker.machine for worker in self._workers.values())
            removable_workers = [
                item
                for item in self._workers.values()
                if item.allocation is None
                and can_spare_worker(item.machine, self._machines, n_workers_by_machine)
            ]
            if not removable_workers:
                return
            removed_worker = max(
                removable_workers,
                key=lambda item: (n_workers_by_machine[item.machine], -self._get_expiry_time(item)),
            )
            self._remove_worker(removed_worker)
            self._unreachable_until.pop(removed_worker.machine, None)

    def _remove_worker(self, worker: WorkerHandle) -> None:
        """Remove a worker. If it was the last one on its machine, treat the machine as unreachable.

        After MACHINE_PROBE_INTERVAL, the pool tries again to start a worker there.
        """
        super()._remove_worker(worker)
        is_last = not any(other_worker.machine == worker.machine for other_worker in self._workers.values())
        if is_last and worker.machine in self._machines:
            self._unreachable_until.setdefault(worker.machine, time.monotonic() + MACHINE_PROBE_INTERVAL)

    def _choose_idle_worker(
        self, get_task_keys: Callable[[], Collection[Hashable]], allocation: Allocation | None = None
    ) -> WorkerHandle | None:
        """Choose an idle worker for the next task, balancing the number of tasks across machines."""
        if allocation is None or not allocation.n_tasks or len(self._machines) < 2:
            return super()._choose_idle_worker(get_task_keys)
        idle_workers = [item for item in self._workers.values() if item.allocation is None]
        if len(idle_workers) < 2:
            return idle_workers[0] if idle_workers else None
        n_machines = len({item.machine for item in self._workers.values()})
        max_per_machine = compute_max_per_machine(allocation.n_tasks, n_machines)
        task_keys = frozenset(get_task_keys())
        return choose_worker_for_task(idle_workers, task_keys, allocation.n_tasks_by_machine, max_per_machine)

    def _on_connected(self, worker_id: int, channel: WorkerChannel, channel_name: str) -> None:
        """Add a worker that has connected. Called on a background thread."""
        with self._lock:
            if self._is_closed:
                channel.close()
                return
            launched = self._launched.get(worker_id)
            if launched is None:
                channel.close()  # The pool no longer expects this worker.
                return
            launched.has_connected = True
            previous_handle = self._workers.pop(worker_id, None)
            if previous_handle is not None and not previous_handle.has_open_session:
                self._remove_worker(previous_handle)  # The provider has restarted the worker.
            elif previous_handle is not None:
                # Only disconnect. The session that uses the worker then notices this and closes the channel.
                previous_handle.channel.disconnect()
            self._startup_backoff, self.latest_channel_name = Backoff(), channel_name
            self._workers[worker_id] = WorkerHandle(worker_id, channel, machine=launched.machine)
            self._unreachable_until.pop(launched.machine, None)
            for allocation in self._get_open_allocations():
                if allocation.n_queued:
                    allocation.wake_session()

    def _launch_missing_workers(self) -> None:
        """Start workers until there are as many as needed.

        Workers that are still busy with a task of a finished map do not count. Workers that expire soon are
        replaced, a few at a time.
        """
        # Replace workers well before they expire, because the provider may be unavailable for some time.
        renewal_deadline = time.monotonic() + min(OUTAGE_SECONDS, 0.1 * self._provider.max_worker_seconds)
        workers = self._workers.values()
        n_expiring = sum(self._get_expiry_time(worker) < renewal_deadline for worker in workers)
        n_useful = len(self._workers) - self._count_stuck_workers() + self._count_starting_workers()
        n_missing = self._n_wanted + min(n_expiring, -(-self._n_wanted // RENEWAL_DIVISOR)) - n_useful
        if n_missing > 0 and self._startup_backoff.can_retry() and self._launch_backoff.can_retry():
            try:
                self._launch_workers(n_missing)
                self._launch_backoff = Backoff()
            except ExecutorError as error:
                # If workers have connected before, this may be a temporary outage, so try again later.
                if (
                    not self.latest_channel_name
                    or self._provider.get_unavailable_reason()
                    or self._launch_backoff.get_failing_seconds() > OUTAGE_SECONDS
                ):
                    raise
                self._launch_backoff.record_failure(str(error))

    def _count_stuck_workers(self) -> int:
        """Return the number of workers still busy with a task of a map that ended over GRACE_SECONDS ago."""
        return sum(
            worker.get_seconds_since_session_closed() > GRACE_SECONDS
            for worker in self._get_abandoned_workers()
        )

    def _count_starting_workers(self) -> int:
        """Return the number of launched workers that are still expected to connect."""
        now = time.monotonic()
        launched = self._launched.values()
        return sum(not (item.has_connected or item.is_extra or item.is_overdue(now)) for item in launched)

    def _launch_workers(self, n_workers: int) -> None:
        """Start workers, on the machines with the fewest workers if there are several machines."""
        reachable = [machine for machine in self._machines if machine not in self._unreachable_until]
        machines = reachable if len(self._machines) > 1 else []
        chosen_machines = choose_machines(n_workers, machines, self._count_workers_by_machine())
        self._launch_on_machines(chosen_machines or [""] * n_workers)

    def _launch_on_machines(self, machines: Sequence[str], is_extra: bool = False) -> None:
        """Start one worker on each listed machine. For an empty name, the provider chooses a machine."""
        now, lifetimes, launched = time.monotonic(), {}, {}
        worker_ids = itertools.islice(self._worker_ids, len(machines))
        for worker_id, machine in zip(worker_ids, machines, strict=True):
            spread = (MAX_LIFETIME_FRACTION - MIN_LIFETIME_FRACTION) * (worker_id * GOLDEN_RATIO % 1)
            lifetime_fraction = MIN_LIFETIME_FRACTION + spread
            lifetimes[worker_id] = lifetime_fraction * self._provider.max_worker_seconds
            expires_at = now + lifetimes[worker_id]
            launched[worker_id] = LaunchedWorker(now, expires_at, machine=machine, is_extra=is_extra)
        machine_by_worker = {key: item.machine for key, item in launched.items() if item.machine}
        # A worker may connect before this call returns. It is added afterwards, because `_on_connected` waits
        # for the lock, which this thread holds.
        self._provider.launch_workers(self._driver_address, lifetimes, machine_by_worker)
        self._launched |= launched
        self._n_unbilled_starts += len(launched)

    def _count_workers_by_machine(self) -> Counter[str]:
        """Return the number of workers on each machine, including workers that are still starting."""
        counts = Counter(worker.machine for worker in self._workers.values())
        counts.update(launched.machine for launched in self._launched.values() if not launched.has_connected)
        return counts

    def _cancel_unconnected_launches(self) -> None:
        """Cancel the launch of workers on machines that are unreachable or no longer exist.

        The workers are then started on other machines. Otherwise, a cluster could wait forever for a machine
        that was lost.
        """
        now, reached_machines = time.monotonic(), {worker.machine for worker in self._workers.values()}
        not_connected = {
            key: item
            for key, item in self._launched.items()
            if item.machine and not item.has_connected and item.machine not in reached_machines
        }
        overdue_ids = [
            worker_id
            for worker_id, launched in not_connected.items()
            if launched.machine not in self._machines
            or now > launched.launched_at + self._provider.placement_timeout
        ]
        for worker_id in overdue_ids:
            self._unreachable_until[self._launched[worker_id].machine] = now + MACHINE_PROBE_INTERVAL
            self._terminate_worker(worker_id)
        if overdue_ids:
            self._provider.cancel_launch(overdue_ids)

    def _rebalance_workers_across_machines(self) -> None:
        """Start extra workers on machines that have fewer workers than others.

        `_remove_unneeded_workers` then removes the same number from the other machines. On a machine that was
        unreachable, a single worker is started to probe whether it is reachable again.
        """
        now, n_workers_by_machine = time.monotonic(), self._count_workers_by_machine()
        if len(self._machines) < 2 or not self._workers or not self._launch_backoff.can_retry():
            return
        target_machines = [
            item
            for item in self._machines
            if now > self._unreachable_until.get(item, inf) and not n_workers_by_machine[item]
        ]
        reachable = [item for item in self._machines if item not in self._unreachable_until]
        n_excess = max(0, self._count_excess_workers()) + sum(
            item.is_extra and not item.has_connected and item.machine in reachable
            for item in self._launched.values()
        )
        underfull = (
            find_underfull_machines(reachable, n_workers_by_machine, n_excess) if len(reachable) > 1 else []
        )
        if not (underfull or n_excess):
            self._rebalance_backoff = Backoff()
        elif underfull and self._rebalance_backoff.can_retry():
            target_machines += underfull
            self._rebalance_backoff.record_failure("workers are not spread evenly")
        if target_machines:
            # Ignore failures, because there are enough workers. The next call tries again.
            with contextlib.suppress(ExecutorError):
                self._launch_on_machines(target_machines, is_extra=True)

    def _remove_exited_workers(self) -> None:
        """Remove the workers that have exited according to the provider."""
        startup_failure: str | None = None
        exited = self._provider.collect_exited_workers(may_query=not self.latest_channel_name)
        for worker_id, reason in exited.items():
            launched, worker = self._launched.get(worker_id), self._workers.get(worker_id)
            if launched is not None and not launched.has_connected:
                startup_failure = reason
                self._terminate_worker(worker_id)
            elif worker is not None and worker.allocation is None:
                self._remove_worker(worker)
            if self._storage_channels is not None:
                # A session notices that the socket of an exited worker is closed. It cannot notice this for a
                # worker that exchanges messages through storage, so disconnect this worker here.
                self._storage_channels.disconnect(worker_id)
        if startup_failure is not None:
            self._startup_backoff.record_failure(startup_failure)
