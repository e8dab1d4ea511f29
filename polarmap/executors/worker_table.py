"""The workers of a pool as their driver sees them, and which of its maps may take one next.

A worker is free, or at a task of a map; when that map ends before the task, the worker is abandoned until it
has come to its end. What a worker was told and has not ended stands in `KeptWorker.orders`: the one that it
does, and those behind that. Nobody else keeps account of it but links by way of a storage, which count.

A map that is alone takes as many workers as may be busy. Several share them: one that becomes free goes to
the map with the fewest tasks under way, then to the one that has waited longest.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError
from polarmap.worker.polling import POLLIN, POLLOUT, Poll, wait_until_ready
from polarmap.worker.socket_channel import (
    CANCEL,
    EXIT_KINDS,
    FINAL_REPLY,
    HELLO,
    JOB,
    MODULES,
    TASK,
    TASK_END_KINDS,
    TASK_REPLY,
    Message,
)

if TYPE_CHECKING:
    from polarmap.executors.objects import Link

PLACE_BYTES = 500  # the longest description of its machine, host and place that is read from a worker
REMEMBERED = 1024  # tasks of each worker
GRACE_SECONDS = 1.0  # that a map waits for tasks of others, and workers may take for what nobody waits for

Order = tuple[int, int, int]  # map, task and attempt


@dataclass(eq=False)
class Lease:
    """What a run holds workers by until it ends.

    wake : lets the run look whether it may start a task.
    workers : that are at its tasks, also after its end, by the descriptors of their links.
    poll : of these descriptors, and of what else the run waits for.
    receiving : the workers whose link has messages that are not written yet.
    waiting : tasks that it would start.
    is_listening : whether it starts tasks as soon as it is woken.
    since : when a task of it started or ended last, or it began to wait, on the monotonic clock.
    was_idle : whether cores were idle when it looked last.
    ended : when it did; None: it has not.
    n_tasks : the number of tasks of the run; 0 if it does not matter on which machines they run.
    n_tasks_on : the number of tasks that each machine has been given, for workers whose machine is known.
    """

    wake: Callable[[], None]
    workers: dict[int, KeptWorker] = field(default_factory=dict)
    poll: Any = field(default_factory=Poll)
    receiving: set[KeptWorker] = field(default_factory=set)
    waiting: int = 0
    is_listening: bool = False
    since: float = field(default_factory=time.monotonic)
    was_idle: bool = False
    ended: float | None = None
    n_tasks: int = 0
    n_tasks_on: dict[str, int] = field(default_factory=dict)

    def watch(self, worker: KeptWorker) -> None:
        """Poll the link of a worker for replies, and for room to write as long as messages for it wait."""
        has_unsent = worker.link.has_unsent
        (self.receiving.add if has_unsent else self.receiving.discard)(worker)
        self.poll.register(worker.descriptor, POLLIN | POLLOUT if has_unsent else POLLIN)


@dataclass(eq=False)
class KeptWorker:
    """A worker that stays, as its driver sees it.

    lease : of the map whose task it does, or did when that map ended; None while it is free.
    descriptor : by which that map polls its link.
    orders : what it was told to do and has not ended: the order, and the task in a form that means the same
        to later maps of the same blocks.
    since : when it began with the first of them, or else became free, on the monotonic clock.
    process, place : its number on its machine, and how its engine calls it, as soon as it has said so.
    machine : the address of its machine, or until the worker has said that, where it was started; empty if
        the engine has no addresses.
    host : the name of its machine, for reports; empty until the worker has said that, and on the driver's.
    map : of which it was told last, by number.
    function : digest of the one that it has.
    took : seconds of the latest task of which it has told.
    is_leaving : whether it has said that it ends itself.
    done : the tasks that it did most recently, whose blocks it has in memory; in the same form.
    """

    number: int
    link: Link
    lease: Lease | None = None
    descriptor: int = -1
    orders: deque[tuple[Order, Hashable]] = field(default_factory=deque)
    since: float = inf
    process: int | None = None
    place: str = ""
    machine: str = ""
    host: str = ""
    map: int = -1
    function: bytes | None = None
    took: float = inf
    is_leaving: bool = False
    done: dict[Hashable, None] = field(default_factory=dict)

    @property
    def is_awaited(self) -> bool:
        """Whether a map waits for this worker."""
        return self.lease is not None and self.lease.ended is None

    def abandoned_for(self) -> float:
        """For how many seconds nobody has waited for its task; it has one, and its map has ended."""
        assert self.lease is not None
        return time.monotonic() - (self.lease.ended or 0.0)

    def note(self, order: Order, task: Hashable) -> None:
        """Note that the worker was told of this task."""
        if not self.orders:
            self.since = time.monotonic()
        self.orders.append((order, task))
        if self.machine and self.lease is not None:
            self.lease.n_tasks_on[self.machine] = self.lease.n_tasks_on.get(self.machine, 0) + 1

    def receive(self) -> tuple[list[Message], bool]:
        """What it has said of its task since the last time, and whether it will say more.

        One that speaks of another task than it was told to do is gone: nothing that it says is of use.
        """
        said, is_there = self.link.receive()
        kept = []
        for message in said:
            if message.kind == HELLO and message.header.isdigit():
                self.process = int(message.header)
                if message.data:
                    self._note_whereabouts(bytes(message.data[:PLACE_BYTES]).decode(errors="replace"))
            elif self.orders and message.attempt_key == self.orders[0][0]:
                kept.append(message)
                self.is_leaving |= message.kind in EXIT_KINDS
                if message.kind in TASK_END_KINDS:
                    _, task = self.orders.popleft()
                    self.since = time.monotonic()
                    if message.kind in (TASK_REPLY, FINAL_REPLY):  # else it may not have looked at its block
                        self._note_done(task)
            else:
                self.link.hang_up()
                return kept, False
        return kept, is_there

    def cancel(self) -> bool:
        """Cancel the tasks of the worker. Return False if it has none, and nothing is on its way to it.

        Messages that wait are dropped. No reply is to come of a task whose call was among them.
        """
        link = self.link
        if link.has_unsent:
            for message in link.drop_unsent():
                if message.kind in (JOB, MODULES):
                    self.map, self.function = -1, None
                elif message.kind == TASK:
                    self.orders = deque([one for one in self.orders if one[0] != message.attempt_key])
        if self.orders:
            link.send(Message(CANCEL, self.orders[0][0]))
        return bool(self.orders or link.has_unsent)

    def write(self) -> bool:
        """Write what the link takes of the messages that wait. Return False if the worker is lost."""
        link = self.link
        if link.flush() and not link.is_stalled():
            return True
        link.failure = link.failure or TimeoutError("it took no further byte of its block")
        return False

    def _note_whereabouts(self, text: str) -> None:
        """Note the machine, the host name and the place that the worker has told, a line each."""
        machine, host, self.place = [*text.split("\n", 2), "", ""][:3]
        self.machine = machine
        self.host = host if machine in ("", host) else f"{host} ({machine})"

    def _note_done(self, task: Hashable) -> None:
        self.done.pop(task, None)
        self.done[task] = None
        if len(self.done) > REMEMBERED:
            del self.done[next(iter(self.done))]


class WorkerTable:
    """What the workers of all pools have in common. Maps on several threads may take them.

    are_near : whether it takes no time to tell them something.
    channel : over which the latest worker elsewhere has called; empty if none has.

    Parameters
    ----------
    most : at a time, not counting those that are abandoned.
    """

    are_near = False
    channel = ""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._lock = threading.RLock()  # a run that is closed by its destructor may interrupt anything
        self._numbers = itertools.count()
        self._workers: dict[int, KeptWorker] = {}
        self._leases = set[weakref.ref[Lease]]()  # an interrupt may have kept one from being closed
        self._limit = self._first_limit()  # of tasks under way
        self._changed = time.monotonic()  # when a task was started or ended last
        self._is_closed = False
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self._workers)

    def count_busy(self) -> int:
        """Return the number of workers that are at a task, also at one that nobody waits for any more."""
        return sum(worker.lease is not None for worker in list(self._workers.values()))

    def count_by_host(self) -> dict[str, int]:
        """Return how many workers run on each host, by the names in reports, as far as these are known."""
        return dict(Counter(worker.host for worker in list(self._workers.values()) if worker.host))

    def surroundings(self, pickled: bytes) -> bytes:
        """The `ProcessEnvironment` that workers are to find around a function, pickled; empty for what is
        there.
        """
        return b""

    def want(self, count: int) -> None:
        """So many would be of use now."""

    def look(self, lease: Lease, queued: int) -> None:
        """See, where there is no news, whether more tasks could run of so many that might start."""

    def shortage(self) -> str:
        """Return why no worker has been there yet, and what to do; empty if one has, or can start at once."""
        return ""

    def flush(self) -> None:
        """Send all messages that wait to be sent, without waiting; ExecutorError if that is impossible."""

    def tend(self) -> None:
        """What is to be done now and then while no map runs; what raises an error is tried again."""

    def paid(self) -> Stay | None:
        """What they have been paid for since this was asked before; None where nobody pays for them."""
        return None

    def open(self, wake: Callable[[], None]) -> Lease:
        """For one more run; `wake` lets it look whether it may start a task."""
        with self._lock:
            if not self._leases:
                self._limit = self._first_limit()
            lease = Lease(wake)
            self._leases.add(weakref.ref(lease, self._leases.discard))
            return lease

    def is_alone(self) -> bool:
        """Whether one run is open at most."""
        return len(self._leases) < 2

    def idle_for(self) -> float:
        """For how many seconds no run has been open."""
        return 0.0 if self._leases else time.monotonic() - self._changed

    def take(
        self,
        lease: Lease,
        waiting: int,
        tasks: Callable[[], Collection[Hashable]] = tuple,
    ) -> KeptWorker | None:
        """One for so many tasks that wait: that has done one of these before, is free, or is new.

        None where it is the turn of another run, where as many tasks are under way as may be, or where there
        are as many workers as there may be.
        """
        with self._lock:
            if waiting and not lease.waiting:
                lease.since = time.monotonic()
            lease.waiting = waiting
            if len(self._leases) > 1:
                may_take = self._call_next(lease) is lease
            else:
                may_take = waiting > 0 and len(lease.workers) < self._limit
            if not may_take:
                return None
            worker = self._best_free(tasks, lease)
            if worker is None:
                self._review()
                worker = self._best_free(tasks, lease) or self._another()
            if worker is None:
                return None
            worker.lease, worker.descriptor = lease, worker.link.fileno()
            lease.workers[worker.descriptor] = worker
            lease.poll.register(worker.descriptor, POLLIN)
            if worker.link.has_unsent:
                lease.watch(worker)
            self._changed = lease.since = time.monotonic()
            return worker

    def give_back(self, worker: KeptWorker) -> None:
        """It does nothing for its map any more, which may have ended; another may start a task."""
        with self._lock:
            lease, worker.since = worker.lease, time.monotonic()
            worker.orders.clear()
            if lease is None:
                return
            if lease.workers.pop(worker.descriptor, None) is not None:
                lease.poll.unregister(worker.descriptor)
            lease.receiving.discard(worker)
            worker.lease = None  # at last: an interrupt before leaves it abandoned
            if lease.ended is None:
                self._changed = lease.since = worker.since
                if len(self._leases) > 1:
                    self._call_next(lease)

    def remove(self, worker: KeptWorker) -> None:
        """It is gone, or is to go; ExecutorError if that is because another thread has ended them all.

        Others of its process or machine may have gone with it.
        """
        with self._lock:
            self._remove(worker)
            self._review()
            self._check_open()

    def pause(self, lease: Lease) -> None:
        """Nobody waits for its run now: it cannot be told that it may start a task."""
        lease.is_listening = False
        if len(self._leases) > 1:
            with self._lock:
                self._call_next()

    def leave(self, lease: Lease, number: int | None = None) -> None:
        """A map, of this number, ends: who is at its tasks is left to whoever needs it next, or kills it.

        All that did its tasks and are near are told, as there is something to do for them before the next.
        """
        with self._lock:
            self._leases.discard(weakref.ref(lease))
            lease.ended = self._changed = time.monotonic()
            if self._leases:  # what the others need beyond is seen when they leave cores idle
                self._limit = max(self._under_way(), self._first_limit())
                self._call_next()
            for worker in list(lease.workers.values()):
                if self._is_closed:
                    worker.link.close()
                elif worker.orders and not worker.cancel():
                    self.give_back(worker)
            for worker in self._workers.values() if self.are_near else ():
                if worker.lease is None and worker.map == number:
                    worker.link.send(Message(CANCEL, (number, -1, -1)))

    def abandon(self, worker: KeptWorker) -> None:
        """Nobody waits for its task any more: it is left as if its map had ended."""
        with self._lock:
            is_busy, orders = worker.cancel(), worker.orders.copy()
            self.give_back(worker)
            if is_busy:
                worker.orders, worker.lease = orders, Lease(lambda: None, ended=time.monotonic())

    def ending(self, worker: KeptWorker) -> str:
        """How one has ended that is gone; ExecutorError if that is because all were ended."""
        self._check_open()
        return "its worker process ended without reporting" + (worker.place and f" ({worker.place})")

    def held_tasks(self, tasks: Callable[[], Collection[Hashable]]) -> set[Hashable]:
        """Those of these whose block no free worker has, but one that is still at an abandoned task."""
        with self._lock:
            if not self._abandoned():
                return set()
            self._review()
            abandoned = self._abandoned()
            under_way = {one.orders[0][1] for one in abandoned if one.orders}
            free = [one.done for one in self._workers.values() if one.lease is None]
            held = {one for one in tasks() if one in under_way or any(one in each.done for each in abandoned)}
            return {task for task in held if not any(task in done for done in free)}

    def is_starved(self, lease: Lease) -> bool:
        """Whether no task of its run is under way, and none of others was started or ended for long."""
        return not lease.workers and time.monotonic() > self._changed + GRACE_SECONDS

    def close(self) -> None:
        """End them all: maps that run on them now fail."""
        with self._lock:
            self._is_closed = True
            for worker in list(self._workers.values()):
                if worker.is_awaited:  # its map sees it end, at a descriptor that is still there
                    self._end(worker.number)
                    worker.link.hang_up()
                else:
                    self._remove(worker)
            self._workers.clear()

    def forget(self) -> None:
        """Let go of workers and runs, in a process that was forked of the one that has them."""
        self._is_closed, self._lock = True, threading.RLock()  # that another thread may have held
        self._leases.clear()
        for worker in self._workers.values():
            worker.link.close()
        self._workers.clear()

    def _check_open(self) -> None:
        if os.getpid() != self._owner:
            raise ExecutorError("this process was forked while a map ran, which goes on in its parent only")
        if self._is_closed:
            raise ExecutorError("the workers were ended while a map ran on them, by close() or shutdown()")

    def _first_limit(self) -> int:
        """How many tasks may be under way to begin with."""
        return sys.maxsize

    def _another(self) -> KeptWorker | None:
        """A new one, or one that is free in a moment, if it can be had at once."""
        raise NotImplementedError

    def _end(self, number: int) -> None:
        """Let the process of a worker end."""

    def _give_up(self) -> None:
        """Remove those that are to go: abandoned ones, or others that took the place of these."""

    def _open(self) -> list[Lease]:
        """The leases of runs that have not ended."""
        return [lease for one in list(self._leases) if (lease := one()) is not None]

    def _under_way(self) -> int:
        """Tasks of all runs that workers are at."""
        return sum(len(one.workers) for one in self._open())

    def _call_next(self, asking: Lease | None = None) -> Lease | None:
        """The run whose turn it is to start a task, if one more may be under way; told but for `asking`.

        Of those with tasks that wait and a thread that can start them. Tasks of others that never end keep
        no map from going on.
        """
        able = [one for one in self._open() if one.waiting and (one.is_listening or one is asking)]
        first = min(able, key=lambda one: (len(one.workers), one.since), default=None)
        if first is None:
            return None
        under_way, most = self._under_way(), self._most or sys.maxsize
        if under_way >= self._limit and (under_way >= most or not self.is_starved(first)):
            return None
        if first is not asking:
            first.wake()
        return first

    def _best_free(
        self, tasks: Callable[[], Collection[Hashable]], lease: Lease | None = None
    ) -> KeptWorker | None:
        """Return a free worker that has done one of these tasks, else one that is up, else any or None.

        lease : of the map that is to use the worker, where tables spread its tasks over machines.
        """
        free = [one for one in self._workers.values() if one.lease is None]
        names = tasks() if len(free) > 1 else ()

        def fit(one: KeptWorker) -> tuple[bool, bool]:
            return not one.done.keys().isdisjoint(names), one.process is not None

        best = next((one for one in free if all(fit(one))), None)
        return best or max(free, key=fit, default=None)

    def _abandoned(self) -> list[KeptWorker]:
        """Those at tasks of maps that have ended, the one that is so for longest first."""
        # A destructor may end a map at any moment.
        left = [one for one in list(self._workers.values()) if one.lease and one.lease.ended is not None]
        return sorted(left, key=KeptWorker.abandoned_for, reverse=True)

    def _review(self, seconds: float = 0.0) -> None:
        """Take back those that come to the end of an abandoned task by now, or one within so many seconds.

        Let go of those that do not, and of free ones that are gone.
        """
        unused = [one for one in list(self._workers.values()) if one.lease is None] + self._abandoned()
        heard = set(wait_until_ready([worker.link for worker in unused], POLLIN, seconds))
        for worker in [one for one in unused if one.link in heard or one.link.has_unsent]:
            is_there = not worker.link.has_unsent or worker.write()
            if is_there and worker.link in heard:
                _, is_there = worker.receive()
            if worker.is_leaving or not is_there:
                self._remove(worker)
            elif not (worker.orders or worker.link.has_unsent):
                self.give_back(worker)
        self._give_up()

    def _drop(self, surplus: int, first: Callable[[KeptWorker], float], until: float = inf) -> None:
        """Let so many free workers go, those for which `first` is least and no more than `until`."""
        free = sorted((one for one in self._workers.values() if one.lease is None), key=first)
        for worker in free[: max(0, surplus)]:
            if first(worker) <= until:
                self._remove(worker)

    def _remove(self, worker: KeptWorker) -> None:
        self.give_back(worker)
        if self._workers.get(worker.number) is worker:
            del self._workers[worker.number]
            self._end(worker.number)
        worker.link.close()
