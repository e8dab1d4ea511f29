"""Short tasks of a kind go to a worker together: to send each by itself takes longer than to do it."""

from __future__ import annotations

import pickle
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from itertools import groupby
from math import inf
from types import MappingProxyType
from typing import Any

import numpy as np

from polarmap.executors import unwrap_faulty_executor
from polarmap.executors.interface import (
    AttemptId,
    Failure,
    MapExecutor,
    Outcome,
    TaskBlocks,
    read_only_view,
    to_failure,
)
from polarmap.executors.pool import Pool
from polarmap.run.lateness import BACKUP_SECONDS, LateAttempts, LatenessRule
from polarmap.run.loop import Need, Policy
from polarmap.run.policies import Backups
from polarmap.run.tasks import TaskTable
from polarmap.worker.environment import count_available_cores
from polarmap.worker.pytree import Array, unpickle_array
from polarmap.worker.segments import INLINE
from polarmap.worker.task_functions import MAX_BATCH_SECONDS
from polarmap.worker.task_records import ErrorInfo, Fault

MOST_BATCHES = 128  # that workers are given at a time: what waits may turn out to be short
FIRST_BATCHES = 8  # that workers are given before any has begun; later two for each at work
BATCH_SECONDS = 0.02  # that one takes, or not much longer
WORTH_SECONDS = 0.002  # that one takes at least, where as much waits: to send it takes a tenth of that
LATE_SECONDS = 4 * MAX_BATCH_SECONDS  # after which the items of one are given anew, each by itself
MOST_TOGETHER = 1024  # items: each waits for those before it, and is late where one of these is
MOST_KINDS = 64  # of items of which it is remembered how long they take
BATCHES_PER_CORE = 4  # of what waits, where it is not much
OWN_FAULTS = "raise", "garbage"  # that strike an item and not the whole batch
NO_FAULTS: Mapping[int, Fault] = MappingProxyType({})
ENDLESS = LatenessRule(1, min_seconds=BACKUP_SECONDS)  # no item is late before


class Items:
    """What is to be done by one function, in its order.

    kind : the same for items that take about as long.
    head : what a worker needs besides the pickles of items.
    blocks : each as it travels: as a pickle, or as an array where it goes by itself.
    """

    def __init__(self, kind: Hashable, head: Any = None, blocks: Iterable[bytes | Array] = ()) -> None:
        self.kind, self.head, self.blocks = kind, head, list(blocks)
        # How much larger the number of an item is among all of a `Batches`: (first item, difference).
        self.offsets = list[tuple[int, int]]()

    def begins(self, numbers: Sequence[int]) -> Sequence[int]:
        """Those of these that may begin, or have: nobody has cancelled them, and nobody can any more."""
        return numbers

    def position(self, number: int) -> int:
        """Return the number of an item among all items of a `Batches`, in the order of submission."""
        return number + self.offsets[bisect_right(self.offsets, (number, inf)) - 1][1]


Batch = tuple[Items, Sequence[int]]  # some that come together


# What became of some items: by number, what each gave, as `value_of` reads it, and why others gave nothing.
Ends = tuple[Items, Sequence[tuple[int, bytes | Array]], Sequence[tuple[int, Failure]]]


class Batches(TaskBlocks, Policy):
    """Items as the tasks of a run: which start when, alone or together; and their blocks.

    First attempts at items of a kind go together once it is known that these are short, if workers are
    processes here. Each has its own end; one that is lost with others is started again by itself, and the
    loss does not count against its retries. So an item that kills its worker each time kills one worker with
    a batch and then one with each attempt of its own. A batch
    that takes long is given up, and its items begin anew, each by itself: one that sleeps, or waits for
    another, holds up none behind it. Else those are started once more that are late, if none waits.

    Parameters
    ----------
    joins : whether short ones go together.
    most : items that its run is given at a time, where they do not.
    backups : that a late one may get.
    faults : injected into items, which are counted in the order of submission.

    Attributes
    ----------
    batches : dict from task to Batch
        What each task consists of, as long as anything is wanted of it.
    """

    structure, location = ("array",), INLINE

    def __init__(self, joins: bool, most: int, backups: int, faults: Mapping[int, Fault] = NO_FAULTS) -> None:
        Policy.__init__(self, 0)
        self._submitted = 0
        self._travel_alone = {position for position, fault in faults.items() if fault.kind in OWN_FAULTS}
        self._suffered: dict[int, set[AttemptId]] = {}  # by the position of an item that has a fault
        self._joins, self._most = joins, MOST_BATCHES if joins else most
        self._waiting = deque[Batch]()
        self._alone = deque[Batch]()  # that go first, and by themselves
        self._number = 0  # of the next task
        self.batches: dict[int, Batch] = {}
        self._several = set[int]()  # tasks of several that have not ended
        self._latest: tuple[int, list[Array]] = -1, []
        self._seconds: dict[Hashable, float] = {}  # of an item of each kind, as its worker measured it
        self._backups = Backups(0, ENDLESS, backups)
        self.late = self._backups.late
        # The attempts at items of each kind, as long as there is one, or it is among the latest.
        self._kinds = weakref.WeakValueDictionary[Hashable, LateAttempts[AttemptId]]()
        self._latest_kinds = deque[LateAttempts[AttemptId]](maxlen=MOST_KINDS)

    def append(self, items: Items, numbers: Sequence[int]) -> None:
        """Let some of these wait behind those that do."""
        offset = self._submitted - numbers[0]
        if not items.offsets or items.offsets[-1][1] != offset:
            items.offsets.append((numbers[0], offset))
        self._submitted += numbers[-1] + 1 - numbers[0]

        def may_join(number: int) -> bool:
            return isinstance(items.blocks[number], bytes)

        if all(map(may_join, numbers)):  # a range stays one: it is cut in no time
            self._waiting.append((items, numbers))
            return
        for are_small, some in groupby(numbers, may_join):
            found = list(some)
            self._waiting.extend([(items, found)] if are_small else [(items, [one]) for one in found])

    # -- as the blocks of a run ----------------------------------------------------------------

    @property
    def n(self) -> int:  # type: ignore[override]
        """How many there are now."""
        return len(self.batches)

    def block_leaves(self, task: int) -> list[Array]:
        """The items of a task as they travel to its worker; CancelledError if nobody waits for any."""
        if self._latest[0] != task:
            self._latest = task, [self._block(task)]
        return self._latest[1]

    def _block(self, index: int) -> Array:
        items, numbers = self.batches.get(index) or (None, [])
        if items is not None:
            numbers = items.begins(numbers)
            self.batches[index] = items, numbers
        if items is None or not numbers:
            raise CancelledError
        blocks = [items.blocks[number] for number in numbers]
        if isinstance(blocks[0], np.ndarray):
            return read_only_view(blocks[0])
        return np.frombuffer(pickle.dumps((items.head, blocks), pickle.HIGHEST_PROTOCOL), np.int8)

    def find_fault(self, faults: Mapping[int, Fault], task: int, attempt: int) -> Fault | None:
        """Return the fault that an attempt at a batch is to suffer: the first that one of its items has left.

        Attempts are counted for each item, because an item may go from one task to another.
        """
        items, numbers = self.batches.get(task) or (None, ())
        if items is None:
            return None
        for position in map(items.position, numbers):
            if (fault := faults.get(position)) is None:
                continue
            suffered = self._suffered.setdefault(position, set())
            if (task, attempt) in suffered or len(suffered) < fault.attempts:
                suffered.add((task, attempt))
                return fault
        return None

    # -- as the policy of a schedule -----------------------------------------------------------

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Tasks of items that wait; late ones, if none waits for a worker that a backup would take."""
        for index in [one for one in sorted(self._several) if self._late_at(tasks, one) <= now]:
            self._give_up(tasks, index)
        while batch := self._next_batch(tasks):
            items, numbers = self.batches[self._number] = batch
            if len(numbers) > 1:
                self._several.add(self._number)
            tasks.add(self._number, self._kind_of(items) if len(numbers) == 1 else None)
            self._number += 1
        if tasks.held_back or tasks.unbegun or self._waiting or self._alone:
            return sorted(tasks.held_back)
        return self._backups.due(tasks, need, now)

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until a task may be late; none is while it is not known that all run, which it soon may be."""
        late = min((self._late_at(tasks, index) for index in self._several), default=inf)
        return min(late - now, BACKUP_SECONDS if tasks.unbegun else self._backups.wait_seconds(tasks, now))

    def _late_at(self, tasks: TaskTable, index: int) -> float:
        """When one of several items becomes late; never before it is known to have begun."""
        return min(tasks[index].began.values(), default=inf) + LATE_SECONDS

    def _give_up(self, tasks: TaskTable, index: int) -> None:
        """Let the items of a task wait for a worker of their own each."""
        items, numbers = self.batches[index]
        if numbers:
            self._learn(items.kind, LATE_SECONDS / len(numbers))
        self._alone.extend((items, [number]) for number in numbers)
        self.forget_task(tasks, index)

    def _next_batch(self, tasks: TaskTable) -> Batch | None:
        """Items that go to a worker now; None if none waits, or workers have enough to do.

        One by itself goes once no batch of several is left that may be given up: so those by themselves go
        in their order, as one may wait for the next.
        """
        waiting = self._alone or self._waiting
        if not waiting:
            return None
        items, numbers = waiting[0]
        most = self._most_together(items, numbers)
        room, at_work = self._most, len(tasks.running) - len(tasks.unbegun)
        if self._joins and (most > 1 or items.kind not in self._seconds):  # else they are known to be long
            room = min(room, 2 * at_work + FIRST_BATCHES)
        if len(tasks.running) + len(tasks.held_back) >= room or (most == 1 and self._several):
            return None
        waiting.popleft()
        if self._travel_alone:
            most = self._most_without_fault(items, numbers[:most])
        if len(numbers) > most:
            waiting.appendleft((items, numbers[most:]))
        return items, numbers[:most]

    def _most_together(self, items: Items, numbers: Sequence[int]) -> int:
        """How many of these a worker may be given at once."""
        seconds = self._seconds.get(items.kind)
        if not (self._joins and seconds):
            return 1
        share = max(
            len(numbers) // (BATCHES_PER_CORE * count_available_cores()), int(WORTH_SECONDS / seconds)
        )
        return max(1, min(MOST_TOGETHER, int(BATCH_SECONDS / seconds), share))

    def _most_without_fault(self, items: Items, numbers: Sequence[int]) -> int:
        """Return how many of these items may share a batch: an item that is to fail by itself is alone."""
        found = (turn for turn, number in enumerate(numbers) if items.position(number) in self._travel_alone)
        return max(1, next(found, len(numbers)))

    def _kind_of(self, items: Items) -> LateAttempts[AttemptId]:
        """The attempts at items of a kind, which is the latest now."""
        kind = self._kinds.get(items.kind)
        if kind is None:
            kind = self._kinds[items.kind] = LateAttempts(ENDLESS, is_endless=True)
            self._backups.add(kind)
        if kind in self._latest_kinds:
            self._latest_kinds.remove(kind)
        self._latest_kinds.append(kind)
        return kind

    # -- as tasks end --------------------------------------------------------------------------

    def ended(self, tasks: TaskTable, outcome: Outcome) -> Ends | None:
        """What an outcome says of items; of those that failed with others nothing yet: they begin anew alone.

        None where nobody waits for its task any more.
        """
        index, failure = outcome.task, outcome.failure
        items, numbers = self.batches.get(index) or (None, [])
        self._several.discard(index)
        if items is None or not numbers:
            self.forget_task(tasks, index)
            return None
        if failure is not None:
            for number in numbers if len(numbers) > 1 else ():
                self.part(tasks, index, number, failure, is_shared=True)
            return items, (), [(number, failure) for number in numbers if len(numbers) == 1]
        if len(numbers) == 1:
            self._learn(items.kind, outcome.seconds)
            return items, [(numbers[0], outcome.leaves[0])], ()
        data, errors = unpickle_array(outcome.leaves[0])
        self._learn(items.kind, outcome.seconds / len(data))
        if len(numbers) > len(data):  # what its worker has left
            self._waiting.appendleft((items, numbers[len(data) :]))
            self.batches[index] = items, numbers[: len(data)]
        failures = [(numbers[one], to_failure(ErrorInfo(*error))) for one, error in errors.items()]
        found = zip(numbers, data)
        return items, [pair for one, pair in enumerate(found) if one not in errors], failures

    def part(
        self, tasks: TaskTable, index: int, number: int, failure: Failure, is_shared: bool = False
    ) -> None:
        """Make an item that failed, and was not alone in its task, a task of its own.

        is_shared : whether all items of the task failed with it. The attempt then does not count against its
            retries, as any of the others may have killed the worker.
        """
        items, numbers = self.batches[index]
        tasks.part(index, self._number, failure, self._kind_of(items), is_shared)
        self.batches[self._number] = items, [number]
        self._number += 1
        self.batches[index] = items, [one for one in numbers if one != number]
        if len(numbers) == 1:
            self.forget_task(tasks, index)

    def forget_task(self, tasks: TaskTable, index: int) -> None:
        """Nothing is wanted of a task any more."""
        self.batches.pop(index, None)
        self._several.discard(index)
        tasks.forget(index)

    def _learn(self, kind: Hashable, seconds: float) -> None:
        """Take in how long an item of a kind took."""
        self._seconds[kind] = (self._seconds.pop(kind, seconds) + seconds) / 2
        if len(self._seconds) > MOST_KINDS:
            del self._seconds[next(iter(self._seconds))]  # of which none has ended for longest


def go_together(executor: MapExecutor, backups: int, retries: int) -> bool:
    """Whether short items do: on processes here, if each that is lost or late with others is tried again."""
    executor = unwrap_faulty_executor(executor)
    return isinstance(executor, Pool) and executor.is_local and backups > 0 and retries > 0


def value_of(data: bytes | Array) -> Any:
    """What an item gave, of the pickle or the block that its worker has sent."""
    return unpickle_array(data) if isinstance(data, np.ndarray) else pickle.loads(data)
