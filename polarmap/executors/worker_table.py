"""The workers of a pool as their driver sees them: who is free, who is busy with what, who is gone.

What a worker was told and has not ended stands in `KeptWorker.orders`: the one that it does, and at most one
behind that. Nobody else keeps account of it but links by way of a storage, which count.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf
from select import POLLIN
from typing import Any

from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError
from polarmap.executors.base import check_reachable
from polarmap.executors.links import Link
from polarmap.executors.pool_slots import Lease, PoolSlots
from polarmap.worker.channels import ready
from polarmap.worker.frames import PROCESS, REPLIES, Message
from polarmap.worker.parts import Place
from polarmap.worker.process_state import Surroundings

REMEMBERED = 1024  # tasks of each worker
GRACE_SECONDS = 1.0  # in which one that is busy with a task that nobody waits for may come to its end

Order = tuple[int, int, int]  # map, task and attempt


@dataclass(eq=False)
class KeptWorker:
    """A worker that stays, as its driver sees it.

    lease : of the map whose task it does, or did when that map ended; None while it is free.
    orders : what it was told to do and has not ended: the order, and the task in a form that means the same
        to later maps of the same blocks.
    since : when it began with the first of them, on the monotonic clock.
    process : its number on its machine, as soon as it has said so.
    function : digest of the one that it has; around : what it was told last of what is around it;
    modules : sources of those that it was sent, by name.
    done : the tasks that it did most recently, whose blocks it has in memory; in the same form.
    freed : when it was free last, on the monotonic clock.
    """

    number: int
    link: Link
    lease: Lease | None = None
    orders: deque[tuple[Order, Hashable]] = field(default_factory=deque)
    since: float = inf
    process: int | None = None
    function: bytes | None = None
    around: Surroundings | None = None
    modules: dict[str, Any] = field(default_factory=dict)
    done: dict[Hashable, None] = field(default_factory=dict)
    freed: float = inf

    def free(self) -> None:
        """It has done its task."""
        self.freed = time.monotonic()
        self.lease = None
        self.orders.clear()

    def note(self, order: Order, task: Hashable) -> None:
        """It was told of this task."""
        if not self.orders:
            self.since = time.monotonic()
        self.orders.append((order, task))
        self.done.pop(task, None)
        self.done[task] = None
        if len(self.done) > REMEMBERED:
            del self.done[next(iter(self.done))]

    def receive(self) -> tuple[list[Message], bool]:
        """What it has said of its task since the last time, and whether it will say more.

        One that speaks of another task than it was told to do is gone: nothing that it says is of use.
        """
        said, is_there = self.link.receive()
        kept = []
        for message in said:
            if message.kind == PROCESS and message.header.isdigit():
                self.process = int(message.header)
            elif self.orders and message.order == self.orders[0][0]:
                kept.append(message)
                if message.kind in REPLIES:
                    self.orders.popleft()
                    self.since = time.monotonic()
            else:
                self.link.hang_up()
                return kept, False
        return kept, is_there


class WorkerTable:
    """What the workers of all pools have in common. Maps on several threads may take them.

    channel : over which the latest worker elsewhere has called; empty if none has.

    Parameters
    ----------
    most : int or None
        At a time, not counting those that are busy with tasks of maps that have ended.
    """

    is_here = False  # whether they are processes of this machine
    channel = ""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self.slots = PoolSlots(most, self.is_here)
        self._lock = threading.RLock()  # a run that is closed by its destructor may interrupt anything
        self._numbers = itertools.count()
        self._workers: dict[int, KeptWorker] = {}
        # Whose map has ended, the one that is so for longest first.
        self._abandoned: dict[KeptWorker, None] = {}
        self._is_closed = False
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self._workers)

    def check_source(self, source: Place | None, use: str) -> None:
        """ExecutorError for storage that they cannot reach; `use`: of the array."""
        check_reachable(source)

    def surroundings(self) -> Surroundings | None:
        """What they are to find around f; None: what is there."""
        return None

    def modules(self, pickled: bytes) -> Mapping[str, tuple[str, bool]]:
        """Sources of the modules that a function needs which they are to call, and they may lack."""
        return {}

    def want(self, count: int) -> None:
        """So many would be of use now."""

    def check(self) -> None:
        """ExecutorError if none is there, and none will be."""

    def flush(self, may_wait: bool = True) -> None:
        """Let all that was said be on its way; what cannot be told at once later, unless it may wait."""

    def tend(self) -> None:
        """What is to be done now and then while no map runs."""

    def paid(self) -> Stay | None:
        """What they have been paid for since this was asked before; None where nobody pays for them."""
        return None

    def take(self, lease: Lease, waiting: int, task: Hashable = None) -> KeptWorker | None:
        """One for the first of so many tasks that wait: that has done it before, or is free, or is new.

        None where there is no slot, or there are as many workers as there may be.
        """
        with self._lock:
            if not self.slots.may_take(lease, waiting):
                return None
            if self._abandoned:
                self._review()
            worker, best = None, -1
            for one in self._workers.values():
                if one.lease is None and (fit := 2 * (one.process is not None) + (task in one.done)) > best:
                    worker, best = one, fit
            worker = worker or self._another()
            if worker is None:
                return None
            worker.lease = lease
            self.slots.take(lease, worker)
            return worker

    def give_back(self, worker: KeptWorker) -> None:
        """It has done its task, and is free before its slot is: who takes that shall find it."""
        lease = worker.lease
        worker.free()
        if lease is not None:
            self.slots.give_back(lease, worker)

    def remove(self, worker: KeptWorker) -> None:
        """It is gone, or is to go; ExecutorError if that is because another thread has ended them all."""
        with self._lock:
            self._remove(worker)
            if worker.lease is not None:
                self.slots.give_back(worker.lease, worker)
            self._check_open()

    def leave(self, lease: Lease) -> None:
        """A map ends: who is at its tasks is told, and left to whoever needs it next, or kills it."""
        with self._lock:
            workers = dict.fromkeys(lease.under_way)
            self._abandoned |= {} if self._is_closed else workers
            self.slots.close(lease)
            for worker in workers:
                if self._is_closed:
                    worker.link.close()
                elif worker.orders:
                    worker.link.send(("cancel", worker.orders[0][0][0]))

    def ending(self, worker: KeptWorker) -> str:
        """How one has ended that is gone; ExecutorError if that is because all were ended."""
        self._check_open()
        return "its worker process ended without reporting"

    def abandoned_tasks(self) -> set[Hashable]:
        """What workers still do for maps that have ended."""
        if not self._abandoned:
            return set()
        with self._lock:
            self._review()
            return {task for worker in list(self._abandoned) for _, task in worker.orders}

    def close(self) -> None:
        """End them all: maps that run on them now fail."""
        with self._lock:
            self._is_closed = True
            for worker in list(self._workers.values()):
                if worker.lease is None or worker in self._abandoned:
                    self._remove(worker)
                else:  # its map sees it end, at a descriptor that is still there
                    self._end(worker)
                    worker.link.hang_up()
            self._workers.clear()

    def forget(self) -> None:
        """Let go of them, in a process that was forked of the one that has them."""
        self._is_closed, self._lock = True, threading.RLock()  # that another thread may have held
        self.slots.forget()
        for worker in self._workers.values():
            worker.link.close()
        self._workers.clear()
        self._abandoned.clear()

    def _check_open(self) -> None:
        if os.getpid() != self._owner:
            raise ExecutorError("this process was forked while a map ran, which goes on in its parent only")
        if self._is_closed:
            raise ExecutorError("the workers were ended while a map ran on them, by close() or shutdown()")

    def _another(self) -> KeptWorker | None:
        """A new one, if it can be had at once."""
        raise NotImplementedError

    def _end(self, worker: KeptWorker) -> None:
        """Let its process end."""

    def _give_up(self) -> None:
        """Remove those of the workers that are busy with tasks of maps that have ended that are to go."""

    def _review(self) -> None:
        """Take back those that have come to the end of an abandoned task; let go of those that do not."""
        abandoned = list(self._abandoned)  # of which a destructor may make more at any moment
        heard = set(ready([worker.link for worker in abandoned], POLLIN, 0.0))
        for worker in [one for one in abandoned if one.link in heard]:
            _, is_there = worker.receive()
            if not is_there:
                self._remove(worker)
            elif not worker.orders:
                del self._abandoned[worker]
                worker.free()
        self._give_up()

    def _drop(self, surplus: int, first: Callable[[KeptWorker], float], until: float = inf) -> None:
        """Let so many free workers go, those for which `first` is least and no more than `until`."""
        free = sorted((one for one in self._workers.values() if one.lease is None), key=first)
        for worker in free[: max(0, surplus)]:
            if first(worker) <= until:
                self._remove(worker)

    def _remove(self, worker: KeptWorker) -> None:
        self._abandoned.pop(worker, None)
        if self._workers.get(worker.number) is worker:
            del self._workers[worker.number]
            self._end(worker)
        worker.link.close()


def abandoned_for(worker: KeptWorker) -> float:
    """For how many seconds nobody has waited for its task."""
    assert worker.lease is not None
    return time.monotonic() - (worker.lease.ended or 0.0)
