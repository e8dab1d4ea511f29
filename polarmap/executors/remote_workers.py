"""The workers of a pool elsewhere: functions of Lithops or tasks of Dask that stay, and call their driver."""

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

CONNECT_TIMEOUT = 300.0  # that a worker may take to call: clusters fetch images, clouds start cold
MAX_LAUNCH_FAILURES = 3  # of launches, one after the other, before a map fails for which no worker is there
# Pause before the next launch after a failure. The pause doubles with each failure in a row.
MIN_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
RENEWAL_DIVISOR = 8  # one in so many workers is renewed at a time
# Workers expire after between these fractions of their time limit, so that they do not all end at once.
MIN_LIFETIME_FRACTION = 0.6
MAX_LIFETIME_FRACTION = 0.9
MACHINE_PROBE_INTERVAL = 5.0  # between two tries to start a worker on a machine where none has started
NO_MACHINE_CHOICES: Mapping[int, str] = MappingProxyType({})
GOLDEN_RATIO = 0.6180339887  # its multiples are spread evenly over the fractions


class WorkerProvider:
    """A place where workers can be started that stay.

    name : as reports tell it.
    max_worker_seconds : that a worker may take at most; inf where nobody ends it.
    max_workers : that there can be at a time; None if that is not known.
    shares_files : whether its workers are on this machine, and share its files.
    shares_host : whether they are, as far as it is known now: they map blocks, and ask for what they do not
        find.
    imports_polarmap : whether they can import this package; else what they need of it travels with each f.
    reach : the storage that its workers can use.
    bucket, key_prefix : of what workers and driver leave for each other; None where there is no storage.
    listing_interval : between listings of a storage, which say who has ended; inf where it is known without.
    worker_spec : what each worker is given, as far as that is known.
    driver_host : the address of this machine in the engine's own connection, which workers try first; empty
        if it is not known.
    no_connection_advice : what a user can do if workers cannot connect to this process.
    placement_timeout : in which a worker that was started on a machine calls, unless the machine is
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
        """What reports workers to `on_connected` that do not call by TCP; None where there is no storage."""
        return None

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str] = NO_MACHINE_CHOICES,
    ) -> None:
        """Start these, each for so many seconds; ExecutorError if that is impossible.

        machine_by_worker : where to start them, by number; the site chooses for those that are left out, and
            if a machine is gone.
        """
        raise NotImplementedError

    def list_machines(self) -> Sequence[str]:
        """Return the addresses of the machines that can run workers now; empty if the site chooses them.

        Called without a lock, on a thread that may wait for the answer.
        """
        return ()

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        """Cancel the start of workers that have not called."""

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """Those that have ended since the last time, and why, as far as that was told.

        may_query : whether the site may take a while to find out why.
        """
        raise NotImplementedError

    def get_unavailable_reason(self) -> str:
        """Why none will be started any more, by nobody; empty if they may be."""
        return ""

    def remove_leftover_objects(self) -> None:
        """Remove what those that have ended have left, which may take long."""

    def close(self) -> None:
        """Let all of them end, as far as that can be done here; remove what they have left."""
        raise NotImplementedError

    def make_block_store(self) -> BlockStore:
        """Return where its workers find blocks if they share no files with this process."""
        return DriverBlockStore(self.key_prefix)

    def collect_module_sources(self, pickled_function: bytes) -> Mapping[str, tuple[str, bool]]:
        """Sources of the modules that a pickled function names and workers may not have."""
        return {}


@dataclass
class LaunchedWorker:
    """A worker that was started, and is not known to have ended.

    launched_at : when; ends : when it ends by itself.
    has_connected : whether it was ever there.
    machine : where it was to be started; empty if the site chose.
    is_extra : whether it was started beyond the number that is wanted, to take the place of another one.
    """

    launched_at: float
    expires_at: float
    has_connected: bool = False
    machine: str = ""
    is_extra: bool = False

    def is_overdue(self, now: float) -> bool:
        """Whether it has not called for so long that it is not counted on."""
        return not self.has_connected and now > self.launched_at + CONNECT_TIMEOUT

    def compute_billed_seconds(self, since: float) -> float:
        """For how many it is paid since then; one that is missed is paid no longer."""
        now = time.monotonic()
        billed_until = self.launched_at + CONNECT_TIMEOUT if self.is_overdue(now) else now
        return max(0.0, billed_until - max(self.launched_at, since))


class Backoff:
    """When to try again what fails: after pauses that double, until it succeeds.

    n_failures : of failures, one after the other.
    last_reason : of the last one.
    """

    def __init__(self) -> None:
        self.n_failures, self.last_reason = 0, ""
        self._first_failed_at = self._next_retry_at = 0.0

    def record_failure(self, reason: str) -> None:
        """Note a failure: the pause before the next try doubles."""
        now = time.monotonic()
        self._first_failed_at = self._first_failed_at if self.n_failures else now
        seconds = MIN_BACKOFF_SECONDS * 2 ** min(self.n_failures, 10)
        self._next_retry_at = now + min(MAX_BACKOFF_SECONDS, seconds)
        self.n_failures, self.last_reason = self.n_failures + 1, reason

    def can_retry(self) -> bool:
        """Whether it may be tried now."""
        return time.monotonic() >= self._next_retry_at

    def get_failing_seconds(self) -> float:
        """For how long it has failed."""
        return time.monotonic() - self._first_failed_at if self.n_failures else 0.0


class RemoteWorkerPool(WorkerPool):
    """Those of one pool. They are started as maps want them, and renewed before they end.

    A worker that is busy with the task of a map that has ended is left, and another one started if it
    is missed: when it comes back there may be one too many, which then goes.

    Parameters
    ----------
    provider : belongs to these workers, and is closed with them.
    max_workers : at a time; None: what the site has room for.
    listen_endpoint : whether workers may call on a socket, and where; else by way of the site's storage only.
    block_cache_bytes : bytes of blocks that each worker may keep.
    n_threads : that each may use for linear algebra.
    tcp_timeout : seconds of silence after which the connection to a worker is lost, at both ends.
    fetch_timeout : seconds that a worker may take to read a block from the provider's storage.
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
        self._launched: dict[int, LaunchedWorker] = {}  # by number, until they are known to have ended
        self._launch_backoff = Backoff()  # after launches that the provider could not make
        self._startup_backoff = Backoff()  # after launched workers that never connected
        self._newest_given_up_id = -1  # after one of them was of another version of polarmap
        self._machines = tuple(provider.list_machines())
        self._unreachable_until: dict[str, float] = {}  # machines where none has started: when to try again
        self._rebalance_backoff = Backoff()  # workers, to machines that have too few
        self._unbilled_seconds = 0.0  # of workers that have ended since the last bill
        self._n_unbilled_starts = 0
        self._billed_at = time.monotonic()  # what is to be paid
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
        """Start as many workers as are missing of the `n_workers` that would be of use now."""
        with self._lock:
            self._check_open()
            n_allowed = n_workers if self._max_workers is None else min(n_workers, self._max_workers)
            self._n_wanted = max(self._n_wanted, n_allowed)
            self._launch_missing_workers()

    def maybe_scale_up(self, allocation: Allocation, n_queued: int) -> None:
        """Start anew what has failed, and one more where others keep a map from going on.

        ExecutorError if no worker is there, and none will be.
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
                raise ExecutorError(f"no worker of {provider_name} starts: {reason or 'they end'}")
            if self._launched and not self._workers and now > allocation.last_progress_at + CONNECT_TIMEOUT:
                explanation = f": {reason}" if reason else ""
                raise ExecutorError(
                    f"no worker of {provider_name} has called within {CONNECT_TIMEOUT:g} s{explanation}"
                )
            is_blocked = (
                allocation.n_queued
                and self._choose_idle_worker(tuple) is None
                and self.is_allocation_starved(allocation)
            )
            self.request_workers(len(self) + 1 if is_blocked else 0)

    def _check_protocol_versions(self) -> None:
        """Give up workers of other versions of polarmap; ExecutorError if no worker is there besides.

        All workers are then given up that have not connected yet, so that the next map starts others.
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
        """What they have been paid for since this was asked before, from the start to the end of each."""
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
        """Return where workers were to connect if none has ever done so, and what to do; empty if one has."""
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
        """Return how a worker has ended that is gone; ExecutorError if that is because all were ended."""
        description, error = super().get_exit_reason(worker), worker.channel.failure
        if isinstance(error, FrameError) or error is None:
            return description
        label = worker.label and f" ({worker.label})"
        if isinstance(error, ConnectionResetError):  # also where a process is killed that has not read all
            return f"the connection to its worker was reset, which has ended or is out of reach{label}"
        return f"the connection to its worker was lost: {error.strerror or error}{label}"

    def flush_messages(self) -> None:
        """Send all messages that wait to be sent."""
        if self._storage_channels is not None:
            self._storage_channels.flush_messages()

    def maintain_workers(self) -> None:
        """Renew workers that will end soon, forget those that have ended."""
        machines = tuple(self._provider.list_machines())  # without the lock, too
        with self._lock:
            if self._is_closed:
                return
            self._machines = machines
            self._remove_exited_workers()
            self._poll_unallocated_workers()
            self._cancel_unconnected_launches()
            self._launch_missing_workers()
            self._rebalance_workers_across_machines()
        # without the lock: no map waits for a storage that does not answer
        self._provider.remove_leftover_objects()

    def close(self) -> None:
        """End them all."""
        super().close()
        for resource in (self._listener, self._storage_channels, self._provider):
            if resource is not None:
                resource.close()

    def after_fork(self) -> None:
        """Let go of them, in a process that was forked of the one that has them."""
        super().after_fork()
        if self._listener is not None:
            self._listener.after_fork()

    def _start_worker(self) -> WorkerHandle | None:
        return None  # `request_workers` starts others, which join when they are there

    def _get_expiry_time(self, worker: WorkerHandle) -> float:
        """When a worker ends by itself, on the monotonic clock."""
        return self._launched[worker.worker_id].expires_at

    def _terminate_worker(self, worker_id: int) -> None:
        """Forget a worker that has ended: it is paid no longer."""
        launched = self._launched.pop(worker_id, None)
        self._unbilled_seconds += launched.compute_billed_seconds(self._billed_at) if launched else 0.0

    def _remove_unneeded_workers(self) -> None:
        """Let free workers go whose time is over, or that are more than were ever wanted: who ends first."""
        self._remove_idle_workers(len(self._workers), self._get_expiry_time, time.monotonic())
        n_excess = self._count_excess_workers()
        if len(self._machines) < 2:
            self._remove_idle_workers(n_excess, self._get_expiry_time)
        else:
            self._remove_workers_from_overfull_machines(n_excess)

    def _count_excess_workers(self) -> int:
        """Return how many more workers there are than are wanted; less than 0 if some are missing."""
        return len(self._workers) - self._count_stuck_workers() - self._n_wanted

    def _remove_workers_from_overfull_machines(self, n_excess: int) -> None:
        """Let free workers go, as long as there are too many and their machine has no fewer than others."""
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
        """Remove a worker: if it was the last one of its machine, that may be cut off."""
        super()._remove_worker(worker)
        is_last = not any(other_worker.machine == worker.machine for other_worker in self._workers.values())
        if is_last and worker.machine in self._machines:
            self._unreachable_until.setdefault(worker.machine, time.monotonic() + MACHINE_PROBE_INTERVAL)

    def _choose_idle_worker(
        self, get_task_keys: Callable[[], Collection[Hashable]], allocation: Allocation | None = None
    ) -> WorkerHandle | None:
        """Return the free worker for the next task: see `choose_worker_for_task`."""
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
        """Take a worker that has called into the table."""
        with self._lock:
            if self._is_closed:
                channel.close()
                return
            launched = self._launched.get(worker_id)
            if launched is None:
                channel.close()  # it was given up
                return
            launched.has_connected = True
            previous_handle = self._workers.pop(worker_id, None)
            if previous_handle is not None and not previous_handle.has_open_session:
                self._remove_worker(previous_handle)  # it was started again by its site
            elif previous_handle is not None:
                # the map that waits for it sees that it is gone, and closes it
                previous_handle.channel.disconnect()
            self._startup_backoff, self.latest_channel_name = Backoff(), channel_name
            self._workers[worker_id] = WorkerHandle(worker_id, channel, machine=launched.machine)
            self._unreachable_until.pop(launched.machine, None)
            for allocation in self._get_open_allocations():
                if allocation.n_queued:
                    allocation.wake_session()

    def _launch_missing_workers(self) -> None:
        """As many as are wanted, besides those that are busy with what nobody waits for.

        For those that end soon others are started, a few at a time.
        """
        # the site may refuse as long
        renewal_deadline = time.monotonic() + min(OUTAGE_SECONDS, 0.1 * self._provider.max_worker_seconds)
        workers = self._workers.values()
        n_expiring = sum(self._get_expiry_time(worker) < renewal_deadline for worker in workers)
        n_useful = len(self._workers) - self._count_stuck_workers() + self._count_starting_workers()
        n_missing = self._n_wanted + min(n_expiring, -(-self._n_wanted // RENEWAL_DIVISOR)) - n_useful
        if n_missing > 0 and self._startup_backoff.can_retry() and self._launch_backoff.can_retry():
            try:
                self._launch_workers(n_missing)
                self._launch_backoff = Backoff()
            except ExecutorError as error:  # of a site that has given workers before: its storage may be away
                if (
                    not self.latest_channel_name
                    or self._provider.get_unavailable_reason()
                    or self._launch_backoff.get_failing_seconds() > OUTAGE_SECONDS
                ):
                    raise
                self._launch_backoff.record_failure(str(error))

    def _count_stuck_workers(self) -> int:
        """How many are busy for maps that have ended, and were given the time to come to an end."""
        return sum(worker.get_abandoned_seconds() > GRACE_SECONDS for worker in self._get_abandoned_workers())

    def _count_starting_workers(self) -> int:
        """How many workers were started, have not called, and may soon."""
        now = time.monotonic()
        launched = self._launched.values()
        return sum(not (item.has_connected or item.is_extra or item.is_overdue(now)) for item in launched)

    def _launch_workers(self, n_workers: int) -> None:
        """Start workers, on the machines that have the fewest if the site does not choose these."""
        reachable = [machine for machine in self._machines if machine not in self._unreachable_until]
        machines = reachable if len(self._machines) > 1 else []
        chosen_machines = choose_machines(n_workers, machines, self._count_workers_by_machine())
        self._launch_on_machines(chosen_machines or [""] * n_workers)

    def _launch_on_machines(self, machines: Sequence[str], is_extra: bool = False) -> None:
        """Start a worker on each of these machines; the site chooses the machine where the name is empty."""
        now, lifetimes, launched = time.monotonic(), {}, {}
        worker_ids = itertools.islice(self._worker_ids, len(machines))
        for worker_id, machine in zip(worker_ids, machines, strict=True):
            spread = (MAX_LIFETIME_FRACTION - MIN_LIFETIME_FRACTION) * (worker_id * GOLDEN_RATIO % 1)
            lifetime_fraction = MIN_LIFETIME_FRACTION + spread
            lifetimes[worker_id] = lifetime_fraction * self._provider.max_worker_seconds
            expires_at = now + lifetimes[worker_id]
            launched[worker_id] = LaunchedWorker(now, expires_at, machine=machine, is_extra=is_extra)
        machine_by_worker = {key: item.machine for key, item in launched.items() if item.machine}
        # who calls before it returns waits for our lock
        self._provider.launch_workers(self._driver_address, lifetimes, machine_by_worker)
        self._launched |= launched
        self._n_unbilled_starts += len(launched)

    def _count_workers_by_machine(self) -> Counter[str]:
        """Return how many workers each machine has, including those that are being started there."""
        counts = Counter(worker.machine for worker in self._workers.values())
        counts.update(launched.machine for launched in self._launched.values() if not launched.has_connected)
        return counts

    def _cancel_unconnected_launches(self) -> None:
        """Cancel the start of workers on machines from which none has called in time, or that are gone.

        Others are started elsewhere, as the engine may let a task wait forever for a machine that is cut off.
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
        """Start workers on machines that have too few: `_remove_unneeded_workers` then lets as many go
        elsewhere.

        Of a machine that could not be reached, one worker finds out whether it can be reached again.
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
            with contextlib.suppress(ExecutorError):  # enough workers are there: later is early enough
                self._launch_on_machines(target_machines, is_extra=True)

    def _remove_exited_workers(self) -> None:
        """Forget those whose end was told."""
        startup_failure: str | None = None
        exited = self._provider.collect_exited_workers(may_query=not self.latest_channel_name)
        for worker_id, reason in exited.items():
            launched, worker = self._launched.get(worker_id), self._workers.get(worker_id)
            if launched is not None and not launched.has_connected:
                startup_failure = reason
                self._terminate_worker(worker_id)
            elif worker is not None and worker.allocation is None:
                self._remove_worker(worker)
            if self._storage_channels is not None:  # on a socket, whoever waits for it sees that it is gone
                self._storage_channels.disconnect(worker_id)
        if startup_failure is not None:
            self._startup_backoff.record_failure(startup_failure)
