"""Which of the maps that run on one pool may start its next task: slots belong to the pool.

A map that is alone takes them all. Several share them: a slot that becomes free goes to the one with the
fewest tasks under way, then to the one that has waited longest.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from polarmap.worker.process_identity import process_status
from polarmap.worker.process_state import available_cores

FIRST_LOOK_SECONDS = 0.005  # without news, before it is seen whether tasks leave the cores idle
UNHEARD_SECONDS = 0.05  # that a reply may wait for its driver where many maps share a process
STANDSTILL_SECONDS = 1.0  # in which no slot became free, before a map that has none gets one more


@dataclass(eq=False)
class Lease:
    """By which a run holds workers, until it ends.

    wake : lets the run look whether it may start a task.
    under_way : from the workers that do its tasks to since when, on the monotonic clock.
    waiting : tasks that it would start.
    is_listening : whether it starts tasks as soon as it is woken.
    since : when a task of it started or ended last, or it began to wait.
    was_idle : whether cores were idle when it looked last.
    ended : when it did; None: it has not.
    """

    wake: Callable[[], None]
    under_way: dict[Any, float] = field(default_factory=dict)
    waiting: int = 0
    is_listening: bool = False
    since: float = field(default_factory=time.monotonic)
    was_idle: bool = False
    ended: float | None = None


class PoolSlots:
    """Those of one pool, and the leases of the runs that share them.

    Parameters
    ----------
    most : int or None
        Tasks at a time, from the first moment. None: on this machine as many as keep its cores busy,
        elsewhere as many as there are workers.
    is_here : bool
        Whether workers are processes of this machine.
    """

    def __init__(self, most: int | None, is_here: bool) -> None:
        self._most, self._is_here = most, is_here
        self._lock = threading.RLock()  # a run that is closed by its destructor may interrupt anything
        self._leases = set[weakref.ref[Lease]]()  # an interrupt may have kept one from being closed
        self._cores, self._limit = 1, sys.maxsize
        self._looked = 0.0
        self._changed = time.monotonic()  # when a task was started or ended last

    def open(self, wake: Callable[[], None]) -> Lease:
        """For one more run; `wake` lets it look whether it may start a task."""
        with self._lock:
            if not self._leases:
                self._cores = available_cores()
                self._limit = first_limit(self._cores, self._most) if self._is_here else sys.maxsize
            lease = Lease(wake)
            self._leases.add(weakref.ref(lease, self._leases.discard))
            return lease

    def close(self, lease: Lease) -> None:
        """It ends, and its slots are free. Safe to call twice."""
        with self._lock:
            if lease.ended is not None:
                return
            lease.ended = self._changed = time.monotonic()
            self._leases.discard(weakref.ref(lease))
            if self._is_here:  # what the others need beyond is seen when they leave cores idle
                self._limit = max(self.under_way, first_limit(self._cores, self._most))
            self._call_next()

    def forget(self) -> None:
        """Let go of the runs, in a process that was forked of the one that has them."""
        self._lock = threading.RLock()  # that another thread may have held
        self._leases.clear()

    def is_alone(self) -> bool:
        """Whether one run is open at most."""
        return len(self._leases) <= 1

    def may_take(self, lease: Lease, waiting: int) -> bool:
        """Whether one of so many tasks may start now; if another run is to come first, that one is told."""
        with self._lock:
            if waiting and not lease.waiting:
                lease.since = time.monotonic()
            lease.waiting = waiting
            if len(self._leases) < 2:
                return waiting > 0 and len(lease.under_way) < self._limit
            first = self._next(lease)
            if first is None or not self._has_slot_for(first):
                return False
            if first is not lease:
                first.wake()
            return first is lease

    def take(self, lease: Lease, worker: Any) -> None:
        """This worker does a task of its run."""
        with self._lock:
            self._changed = lease.since = lease.under_way[worker] = time.monotonic()

    def give_back(self, lease: Lease, worker: Any) -> None:
        """It does none any more."""
        with self._lock:
            if lease.under_way.pop(worker, None) is not None:
                self._changed = lease.since = time.monotonic()
                self._call_next(lease)

    def pause(self, lease: Lease) -> None:
        """Nobody waits for it now: it cannot be told of slots."""
        lease.is_listening = False
        if not self.is_alone():
            with self._lock:
                self._call_next(lease)

    def is_starved(self, lease: Lease) -> bool:
        """Whether nothing of it runs, and nothing of the others was started or ended for long."""
        return not lease.under_way and time.monotonic() > self._changed + STANDSTILL_SECONDS

    def look_for_idle_cores(self, lease: Lease, queued: int) -> None:
        """Let more tasks run where those that do leave the cores idle, seen twice in a row by a run.

        queued : tasks of the run that might start.
        """
        with self._lock:
            if self._limit >= (self._most or sys.maxsize):
                return
            now = time.monotonic()
            if not self.is_alone():
                if now < self._looked + FIRST_LOOK_SECONDS:  # another run has looked
                    return
                queued += sum(one.waiting for one in self._open() if one is not lease)
            self._looked = now
            idle = sum(self._is_idle(*one, now) for each in self._open() for one in each.under_way.items())
            extra = extra_slots(self._cores, self.under_way - idle, idle, queued)
            if extra and lease.was_idle:
                self._limit = min(self._limit + extra, self._most or sys.maxsize)
                self._call_next(lease)
            lease.was_idle = bool(extra)

    def _is_idle(self, worker: Any, since: float, now: float) -> bool:
        """Whether its process waits; among several maps not yet, if its driver may just not have heard it."""
        is_new = not self.is_alone() and now < since + UNHEARD_SECONDS
        return not is_new and worker.process is not None and is_waiting(worker.process)

    @property
    def under_way(self) -> int:
        """Tasks of all runs that workers do."""
        return sum(len(one.under_way) for one in self._open())

    def _open(self) -> list[Lease]:
        return [lease for one in list(self._leases) if (lease := one()) is not None]

    def _next(self, asking: Lease | None = None) -> Lease | None:
        """The run whose turn it is, of those with tasks that wait and a thread that can start them."""
        ready = [one for one in self._open() if one.waiting and (one.is_listening or one is asking)]
        return min(ready, key=lambda one: (len(one.under_way), one.since), default=None)

    def _has_slot_for(self, lease: Lease) -> bool:
        """Whether there is room; tasks of others that never end keep no map from going on."""
        most = self._most or sys.maxsize
        return self.under_way < self._limit or (self.under_way < most and self.is_starved(lease))

    def _call_next(self, asking: Lease | None = None) -> None:
        """Tell the run whose turn it is, if there is room for one more task; `asking` looks by itself."""
        if not (asking and len(self._leases) < 2):
            first = self._next()
            if first is not None and first is not asking and self._has_slot_for(first):
                first.wake()


def first_limit(cores: int, most: int | None) -> int:
    """Tasks that run at once to begin with: so many as were asked for, if any were.

    Else one more than there are cores, as a worker that has been told of its next task leaves no core idle;
    all of them where nobody can see whether they keep cores busy.
    """
    if most is not None:
        return most
    return cores + 1 if os.path.exists("/proc/self/stat") else sys.maxsize


def extra_slots(cores: int, busy: int, idle: int, queued: int) -> int:
    """Slots to open now: `busy` tasks compute, `idle` ones have started and do not, the rest waits.

    Where many tasks idle, more of those waiting will: their number grows by half each time.

    >>> extra_slots(cores=2, busy=2, idle=5, queued=9), extra_slots(2, 0, 4, 9), extra_slots(2, 1, 8, 9)
    (0, 2, 4)
    >>> extra_slots(cores=4, busy=0, idle=20, queued=1), extra_slots(4, 1, 0, 50)
    (1, 3)
    """
    return min(max(cores - busy, idle // 2), queued) if busy < cores else 0


def is_waiting(process: int) -> bool:
    """Whether a process wants no core now: it sleeps, or waits for a disk or the network."""
    try:
        return process_status(process)[0] != b"R"
    except OSError:
        return False
