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

from polarmap.clouds.limits import Worker, kept_bytes
from polarmap.clouds.prices import Stay, listing_requests
from polarmap.errors import ExecutorError
from polarmap.executors.block_store import BlockStore
from polarmap.executors.machines import (
    best_worker,
    choose_machines,
    largest_share,
    may_lose_worker,
    underfull_machines,
)
from polarmap.executors.objects import Join, Link, ObjectLinks
from polarmap.executors.tcp import WorkerListener
from polarmap.executors.worker_table import GRACE_SECONDS, KeptWorker, Lease, WorkerTable
from polarmap.worker.persistent_worker import DriverAddress
from polarmap.worker.retries import OUTAGE_SECONDS
from polarmap.worker.socket_channel import TCP_TIMEOUT, Endpoint, FrameError

START_SECONDS = 300.0  # that a worker may take to call: clusters fetch images, clouds start cold
FAILURES = 3  # of launches, one after the other, before a map fails for which no worker is there
FIRST_PAUSE, LAST_PAUSE = 0.5, 60.0  # seconds after a failure in which none is started, doubled each time
RENEWED_SHARE = 8  # one in so many workers is renewed at a time
FIRST_END, LAST_END = 0.6, 0.9  # of the time that a worker may take: when it ends by itself, staggered
PROBE_SECONDS = 5.0  # between two tries to start a worker on a machine where none has started
NO_MACHINES: Mapping[int, str] = MappingProxyType({})
GOLDEN = 0.6180339887  # its multiples are spread evenly over the fractions


class Site:
    """A place where workers can be started that stay.

    name : as reports tell it.
    seconds : that a worker may take at most; inf where nobody ends it.
    workers : that there can be at a time; None if that is not known.
    shares_files : whether its workers are on this machine, and share its files.
    is_near : whether they are, as far as it is known now: they map blocks, and ask for what they do not find.
    has_polarmap : whether they can import this package; else what they need of it travels with each f.
    reach : `away` and `storage` of its workers, as `check_reachable` takes them.
    bucket, prefix : of what workers and driver leave for each other; None where there is no storage.
    look_seconds : between listings of a storage, which say who has ended; inf where it is known without.
    limits : what each worker is given, as far as that is known.
    driver_host : the address of this machine in the engine's own connection, which workers try first; empty
        if it is not known.
    without_connections : what a user can do if workers cannot connect to this process.
    place_seconds : in which a worker that was started on a machine calls, unless the machine is unreachable.
    """

    name: str
    seconds = inf
    workers: int | None = None
    shares_files = is_near = has_polarmap = False
    reach = "", ""
    bucket: str | None = None
    prefix = ""
    look_seconds = inf
    limits: Worker | None = None
    driver_host = ""
    without_connections = "pass listen=False, so that messages travel by way of the storage"
    place_seconds = START_SECONDS

    def object_links(self, join: Join) -> ObjectLinks | None:
        """What reports workers to `join` that do not call by TCP; None where there is no storage."""
        return None

    def launch(
        self, address: DriverAddress, workers: Mapping[int, float], machines: Mapping[int, str] = NO_MACHINES
    ) -> None:
        """Start these, each for so many seconds; ExecutorError if that is impossible.

        machines : where to start them, by number; the site chooses for those that are left out, and if a
            machine is gone.
        """
        raise NotImplementedError

    def machines(self) -> Sequence[str]:
        """Return the addresses of the machines that can run workers now; empty if the site chooses them.

        Called without a lock, on a thread that may wait for the answer.
        """
        return ()

    def withdraw(self, workers: Collection[int]) -> None:
        """Cancel the start of workers that have not called."""

    def ended(self, may_ask: bool = True) -> dict[int, str]:
        """Those that have ended since the last time, and why, as far as that was told.

        may_ask : whether the site may take a while to find out why.
        """
        raise NotImplementedError

    def gone(self) -> str:
        """Why none will be started any more, by nobody; empty if they may be."""
        return ""

    def remove_left(self) -> None:
        """Remove what those that have ended have left, which may take long."""

    def close(self) -> None:
        """Let all of them end, as far as that can be done here; remove what they have left."""
        raise NotImplementedError

    def block_store(self) -> BlockStore:
        """Where blocks lie for its workers, if they share no files with this process."""
        return BlockStore(self.prefix)

    def modules(self, pickled: bytes) -> Mapping[str, tuple[str, bool]]:
        """Sources of the modules that a pickled function names and workers may not have."""
        return {}


@dataclass
class StartedWorker:
    """A worker that was started, and is not known to have ended.

    began : when; ends : when it ends by itself.
    has_called : whether it was ever there.
    machine : where it was to be started; empty if the site chose.
    is_extra : whether it was started beyond the number that is wanted, to take the place of another one.
    """

    began: float
    ends: float
    has_called: bool = False
    machine: str = ""
    is_extra: bool = False

    def is_missed(self, now: float) -> bool:
        """Whether it has not called for so long that it is not counted on."""
        return not self.has_called and now > self.began + START_SECONDS

    def seconds(self, since: float) -> float:
        """For how many it is paid since then; one that is missed is paid no longer."""
        now = time.monotonic()
        until = self.began + START_SECONDS if self.is_missed(now) else now
        return max(0.0, until - max(self.began, since))


class Backoff:
    """When to try again what fails: after pauses that double, until it succeeds.

    count : of failures, one after the other.
    reason : of the last one.
    """

    def __init__(self) -> None:
        self.count, self.reason = 0, ""
        self._first = self._next = 0.0

    def note_failure(self, reason: str) -> None:
        """Note a failure: the pause before the next try doubles."""
        now = time.monotonic()
        self._first = self._first if self.count else now
        self._next = now + min(LAST_PAUSE, FIRST_PAUSE * 2 ** min(self.count, 10))
        self.count, self.reason = self.count + 1, reason

    def is_due(self) -> bool:
        """Whether it may be tried now."""
        return time.monotonic() >= self._next

    def seconds(self) -> float:
        """For how long it has failed."""
        return time.monotonic() - self._first if self.count else 0.0


class RemoteWorkers(WorkerTable):
    """Those of one pool. They are started as maps want them, and renewed before they end.

    A worker that is busy with the task of a map that has ended is left, and another one started if it
    is missed: when it comes back there may be one too many, which then goes.

    Parameters
    ----------
    site : belongs to these workers, and is closed with them.
    most : at a time; None: what the site has room for.
    listens : whether workers may call on a socket, and where; else by way of the site's storage only.
    memory : bytes of blocks that each worker may keep.
    threads : that each may use for linear algebra.
    tcp_timeout : seconds of silence after which the connection to a worker is lost, at both ends.
    """

    def __init__(
        self,
        site: Site,
        most: int | None,
        listens: bool | Endpoint,
        memory: int,
        threads: int,
        tcp_timeout: float = TCP_TIMEOUT,
    ) -> None:
        super().__init__(most if most is not None else site.workers)
        self._site = site
        self._wanted = 0
        self._launched: dict[int, StartedWorker] = {}  # by number, until they are known to have ended
        self._refused, self._failed = Backoff(), Backoff()  # launches by the site, and of which nothing came
        self._machines = tuple(site.machines())
        self._unreachable: dict[str, float] = {}  # machines where none has started: when to try again
        self._moved = Backoff()  # workers, to machines that have too few
        self._seconds, self._started = 0.0, 0  # not accounted for, of workers that are gone, and starts
        self._asked = time.monotonic()  # what is to be paid
        key = secrets.token_bytes(32)
        self._listener: WorkerListener | None = None
        self._objects: ObjectLinks | None = None
        try:
            self._objects = site.object_links(self._join)
            if listens:
                at = listens if isinstance(listens, tuple) else None
                self._listener = WorkerListener(
                    key, self._join, site.shares_files, at, tcp_timeout, site.driver_host
                )
        except Exception as error:
            self.close()
            raise ExecutorError(f"{site.name} has no workers: {type(error).__name__}: {error}") from error
        endpoints = () if self._listener is None else self._listener.endpoints
        memory = memory if site.limits is None else min(memory, kept_bytes(site.limits))
        self._address = DriverAddress(endpoints, key, site.bucket, site.prefix, memory, threads, tcp_timeout)

    def want(self, count: int) -> None:
        """Start as many workers as are missing of the `count` that would be of use now."""
        with self._lock:
            self._check_open()
            self._wanted = max(self._wanted, count if self._most is None else min(count, self._most))
            self._start_missing()

    def look(self, lease: Lease, queued: int) -> None:
        """Start anew what has failed, and one more where others keep a map from going on.

        ExecutorError if no worker is there, and none will be.
        """
        now = time.monotonic()
        with self._lock:
            self._check_open()
            self._note_ended()
            name, reason = self._site.name, self._failed.reason
            if not self._workers and (gone := self._site.gone()):
                raise ExecutorError(f"{name} starts no worker: {gone}")
            if not self._workers and self._failed.count >= FAILURES:
                raise ExecutorError(f"no worker of {name} starts: {reason or 'they end'}")
            if self._launched and not self._workers and now > lease.since + START_SECONDS:
                why = f": {reason}" if reason else ""
                raise ExecutorError(f"no worker of {name} has called within {START_SECONDS:g} s{why}")
            is_kept = lease.waiting and self._best_free(tuple) is None and self.is_starved(lease)
            self.want(len(self) + 1 if is_kept else 0)

    def paid(self) -> Stay | None:
        """What they have been paid for since this was asked before, from the start to the end of each."""
        with self._lock:
            now = time.monotonic()
            seconds = self._seconds + sum(one.seconds(self._asked) for one in self._launched.values())
            started = self._started
            looks = min(now - self._asked, seconds) / self._site.look_seconds
            listings = looks * listing_requests(len(self._launched))
            self._seconds, self._started, self._asked = 0.0, 0, now
        writes, reads = (0, 0) if self._objects is None else self._objects.requests(seconds)
        return Stay(seconds, started, writes + round(listings), reads)

    def shortage(self) -> str:
        """Return where workers were to connect if none has ever done so, and what to do; empty if one has."""
        if self.channel:
            return ""
        said = f"no worker of {self._site.name} has connected to this process yet"
        if self._listener is None:
            return f"{said} by way of its storage"
        hosts = " or ".join(f"{host}:{port}" for host, port in self._listener.endpoints)
        cause = "Either none has started, or a firewall is in between"
        advice = "name an address that workers reach in Pool(listen='host:port')"
        return f"{said}, at {hosts}. {cause}: {advice}, or {self._site.without_connections}"

    def ending(self, worker: KeptWorker) -> str:
        """Return how a worker has ended that is gone; ExecutorError if that is because all were ended."""
        ended, error = super().ending(worker), worker.link.failure
        if isinstance(error, FrameError) or error is None:
            return ended
        place = worker.place and f" ({worker.place})"
        if isinstance(error, ConnectionResetError):  # also where a process is killed that has not read all
            return f"the connection to its worker was reset, which has ended or is out of reach{place}"
        return f"the connection to its worker was lost: {error.strerror or error}{place}"

    def flush(self) -> None:
        """Send all messages that wait to be sent."""
        if self._objects is not None:
            self._objects.flush()

    def tend(self) -> None:
        """Renew workers that will end soon, forget those that have ended."""
        machines = tuple(self._site.machines())  # without the lock, too
        with self._lock:
            if self._is_closed:
                return
            self._machines = machines
            self._note_ended()
            self._review()
            self._withdraw_unreached()
            self._start_missing()
            self._move_to_underfull()
        self._site.remove_left()  # without the lock: no map waits for a storage that does not answer

    def close(self) -> None:
        """End them all."""
        super().close()
        for one in (self._listener, self._objects, self._site):
            if one is not None:
                one.close()

    def forget(self) -> None:
        """Let go of them, in a process that was forked of the one that has them."""
        super().forget()
        if self._listener is not None:
            self._listener.forget()

    def _another(self) -> KeptWorker | None:
        return None  # `want` starts others, which join when they are there

    def _ends(self, worker: KeptWorker) -> float:
        """When a worker ends by itself, on the monotonic clock."""
        return self._launched[worker.number].ends

    def _end(self, number: int) -> None:
        """Forget a worker that has ended: it is paid no longer."""
        launch = self._launched.pop(number, None)
        self._seconds += launch.seconds(self._asked) if launch else 0.0

    def _give_up(self) -> None:
        """Let free workers go whose time is over, or that are more than were ever wanted: who ends first."""
        self._drop(len(self._workers), self._ends, time.monotonic())
        surplus = self._surplus()
        if len(self._machines) < 2:
            self._drop(surplus, self._ends)
        else:
            self._drop_where_too_many(surplus)

    def _surplus(self) -> int:
        """Return how many more workers there are than are wanted; less than 0 if some are missing."""
        return len(self._workers) - self._stuck() - self._wanted

    def _drop_where_too_many(self, surplus: int) -> None:
        """Let free workers go, as long as there are too many and their machine has no fewer than others."""
        for _ in range(surplus):
            counts = Counter(worker.machine for worker in self._workers.values())
            free = [
                one
                for one in self._workers.values()
                if one.lease is None and may_lose_worker(one.machine, self._machines, counts)
            ]
            if not free:
                return
            dropped = max(free, key=lambda one: (counts[one.machine], -self._ends(one)))
            self._remove(dropped)
            self._unreachable.pop(dropped.machine, None)

    def _remove(self, worker: KeptWorker) -> None:
        """Remove a worker: if it was the last one of its machine, that may be cut off."""
        super()._remove(worker)
        is_last = not any(one.machine == worker.machine for one in self._workers.values())
        if is_last and worker.machine in self._machines:
            self._unreachable.setdefault(worker.machine, time.monotonic() + PROBE_SECONDS)

    def _best_free(
        self, tasks: Callable[[], Collection[Hashable]], lease: Lease | None = None
    ) -> KeptWorker | None:
        """Return the free worker for the next task: see `best_worker`."""
        if lease is None or not lease.n_tasks or len(self._machines) < 2:
            return super()._best_free(tasks)
        free = [one for one in self._workers.values() if one.lease is None]
        if len(free) < 2:
            return free[0] if free else None
        share = largest_share(lease.n_tasks, len({one.machine for one in self._workers.values()}))
        return best_worker(free, frozenset(tasks()), lease.n_tasks_on, share)

    def _join(self, number: int, link: Link, channel: str) -> None:
        """Take a worker that has called into the table."""
        with self._lock:
            if self._is_closed:
                link.close()
                return
            launch = self._launched.get(number)
            if launch is None:
                link.close()  # it was given up
                return
            launch.has_called = True
            old = self._workers.pop(number, None)
            if old is not None and not old.is_awaited:
                self._remove(old)  # it was started again by its site
            elif old is not None:
                old.link.hang_up()  # the map that waits for it sees that it is gone, and closes it
            self._failed, self.channel = Backoff(), channel
            self._workers[number] = KeptWorker(number, link, machine=launch.machine)
            self._unreachable.pop(launch.machine, None)
            for lease in self._open():
                if lease.waiting:
                    lease.wake()

    def _start_missing(self) -> None:
        """As many as are wanted, besides those that are busy with what nobody waits for.

        For those that end soon others are started, a few at a time.
        """
        soon = time.monotonic() + min(OUTAGE_SECONDS, 0.1 * self._site.seconds)  # the site may refuse as long
        ending = sum(self._ends(worker) < soon for worker in self._workers.values())
        useful = len(self._workers) - self._stuck() + self._starting()
        missing = self._wanted + min(ending, -(-self._wanted // RENEWED_SHARE)) - useful
        if missing > 0 and self._failed.is_due() and self._refused.is_due():
            try:
                self._launch(missing)
                self._refused = Backoff()
            except ExecutorError as error:  # of a site that has given workers before: its storage may be away
                if not self.channel or self._site.gone() or self._refused.seconds() > OUTAGE_SECONDS:
                    raise
                self._refused.note_failure(str(error))

    def _stuck(self) -> int:
        """How many are busy for maps that have ended, and were given the time to come to an end."""
        return sum(worker.abandoned_for() > GRACE_SECONDS for worker in self._abandoned())

    def _starting(self) -> int:
        """How many workers were started, have not called, and may soon."""
        now = time.monotonic()
        launched = self._launched.values()
        return sum(not (one.has_called or one.is_extra or one.is_missed(now)) for one in launched)

    def _launch(self, count: int) -> None:
        """Start workers, on the machines that have the fewest if the site does not choose these."""
        reachable = [one for one in self._machines if one not in self._unreachable]
        machines = reachable if len(self._machines) > 1 else []
        self._launch_on(choose_machines(count, machines, self._count_by_machine()) or [""] * count)

    def _launch_on(self, machines: Sequence[str], is_extra: bool = False) -> None:
        """Start a worker on each of these machines; the site chooses the machine where the name is empty."""
        now, workers, launched = time.monotonic(), {}, {}
        for number, machine in zip(itertools.islice(self._numbers, len(machines)), machines, strict=True):
            share = FIRST_END + (LAST_END - FIRST_END) * (number * GOLDEN % 1)
            workers[number] = share * self._site.seconds
            launched[number] = StartedWorker(now, now + workers[number], machine=machine, is_extra=is_extra)
        where = {number: one.machine for number, one in launched.items() if one.machine}
        self._site.launch(self._address, workers, where)  # who calls before it returns waits for our lock
        self._launched |= launched
        self._started += len(launched)

    def _count_by_machine(self) -> Counter[str]:
        """Return how many workers each machine has, including those that are being started there."""
        counts = Counter(worker.machine for worker in self._workers.values())
        counts.update(one.machine for one in self._launched.values() if not one.has_called)
        return counts

    def _withdraw_unreached(self) -> None:
        """Cancel the start of workers on machines from which none has called in time, or that are gone.

        Others are started elsewhere, as the engine may let a task wait forever for a machine that is cut off.
        """
        now, reached = time.monotonic(), {worker.machine for worker in self._workers.values()}
        waiting = {
            number: one
            for number, one in self._launched.items()
            if one.machine and not one.has_called and one.machine not in reached
        }
        late = [
            number
            for number, one in waiting.items()
            if one.machine not in self._machines or now > one.began + self._site.place_seconds
        ]
        for number in late:
            self._unreachable[self._launched[number].machine] = now + PROBE_SECONDS
            self._end(number)
        if late:
            self._site.withdraw(late)

    def _move_to_underfull(self) -> None:
        """Start workers on machines that have too few: `_give_up` then lets as many go elsewhere.

        Of a machine that could not be reached, one worker finds out whether it can be reached again.
        """
        now, counts = time.monotonic(), self._count_by_machine()
        if len(self._machines) < 2 or not self._workers or not self._refused.is_due():
            return
        due = [one for one in self._machines if now > self._unreachable.get(one, inf) and not counts[one]]
        reachable = [one for one in self._machines if one not in self._unreachable]
        surplus = max(0, self._surplus()) + sum(
            one.is_extra and not one.has_called and one.machine in reachable
            for one in self._launched.values()
        )
        underfull = underfull_machines(reachable, counts, surplus) if len(reachable) > 1 else []
        if not (underfull or surplus):
            self._moved = Backoff()
        elif underfull and self._moved.is_due():
            due += underfull
            self._moved.note_failure("workers are not spread evenly")
        if due:
            with contextlib.suppress(ExecutorError):  # enough workers are there: later is early enough
                self._launch_on(due, is_extra=True)

    def _note_ended(self) -> None:
        """Forget those whose end was told."""
        failed: str | None = None
        for number, reason in self._site.ended(may_ask=not self.channel).items():
            launch, worker = self._launched.get(number), self._workers.get(number)
            if launch is not None and not launch.has_called:
                failed = reason
                self._end(number)
            elif worker is not None and worker.lease is None:
                self._remove(worker)
            if self._objects is not None:  # on a socket, whoever waits for it sees that it is gone
                self._objects.hang_up(number)
        if failed is not None:
            self._failed.note_failure(failed)
