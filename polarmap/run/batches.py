"""Short tasks of a run go to a worker together: to send one by itself takes longer than to do it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from polarmap.executors.base import (
    Attempt,
    Began,
    Coded,
    Event,
    MapExecutor,
    Outcome,
    Payload,
    Run,
    WrappedExecutor,
    failure_of,
    lost,
)
from polarmap.executors.pool import Pool
from polarmap.worker.block_functions import BATCH_MOST_SECONDS, in_batches
from polarmap.worker.messages import Error
from polarmap.worker.parts import MESSAGE
from polarmap.worker.pytree import Array, from_block, to_block
from polarmap.worker.surroundings import available_cores

MOST_BATCHES = 128  # that workers are given at a time: what waits may turn out to be short
FIRST_BATCHES = 8  # of several tasks that workers are given before any has begun; later two for each at work
BATCH_SECONDS = 0.02  # that one takes, or not much longer
LATE_SECONDS = 4 * BATCH_MOST_SECONDS  # after which the tasks of one are given anew, each by itself
MOST_TOGETHER = 64  # tasks: each waits for those before it, and is late where one of these is
MOST_KINDS = 64  # of tasks of which it is remembered how long they take
BATCHES_PER_CORE = 4  # of what waits, where it is not much

Kinds = Callable[[int], Hashable]  # what is the same for tasks that take about as long; None: it goes alone


class InBatches(WrappedExecutor):
    """An executor whose workers, if they are processes here, are given several short tasks at once.

    The blocks of its maps are arrays of bytes, as `to_block` makes them; what f returns is one, too.
    """

    def __init__(self, executor: MapExecutor, kind_of: Kinds) -> None:
        super().__init__(executor)
        self._kind_of = kind_of

    def open(self, payload: Payload) -> Run:
        """A run of the executor underneath, or one before it."""
        if isinstance(self._executor, Pool) and self._executor.is_here:
            return BatchedRun(self._executor, payload, self._kind_of)
        return self._executor.open(payload)


class Batches(Coded):
    """Batches of tasks that have not ended, by number, as the blocks of a run.

    attempts : at the tasks of each.
    dropped : tells of an attempt for which nobody waits any more.
    """

    structure, source = ("array",), MESSAGE

    def __init__(self, blocks: Coded, dropped: Callable[[Attempt], None]) -> None:
        self._blocks, self._dropped = blocks, dropped
        self.attempts: dict[int, list[Attempt]] = {}
        self._latest: tuple[int, list[Array]] = -1, []

    @property
    def n(self) -> int:  # type: ignore[override]
        """How many there are now."""
        return len(self.attempts)

    def leaves(self, index: int) -> list[Array]:
        """The blocks of a batch as one, which no other is like; CancelledError if nobody waits for any."""
        if self._latest[0] != index:
            self._latest = index, [self._block(index)]
        return self._latest[1]

    def _block(self, index: int) -> Array:
        blocks, wanted = list[Array](), list[Attempt]()
        for one in self.attempts[index]:
            try:
                blocks += self._blocks.leaves(one[0])
                wanted.append(one)
            except CancelledError:
                self._dropped(one)
        self.attempts[index] = wanted
        if not wanted:
            raise CancelledError
        return blocks[0] if len(blocks) == 1 else to_block([one.tobytes() for one in blocks]).view(np.int8)


class BatchedRun:
    """A run whose tasks are given in batches to one of an executor.

    First attempts at tasks of a kind go together once it is known that these are short. Each has its own
    outcome; what is lost with others is started again by itself. A batch that takes long is given up, and
    its attempts begin anew, each by itself: one that sleeps, or waits for another, holds up none behind it.
    """

    def __init__(self, executor: MapExecutor, payload: Payload, kind_of: Kinds) -> None:
        self._kind_of = kind_of
        self._waiting = deque[Attempt]()
        self._open = set[Attempt]()  # whose end has not been told
        self._alone = set[Attempt]()  # that go by themselves
        self._several = set[int]()  # numbers of batches of more than one that have not ended
        self._began: dict[int, float] = {}  # when a worker took one of these
        self._news: list[Event] = []
        self._seconds: dict[Hashable, float] = {}  # of a task of each kind, as its worker measured it
        self._batches = Batches(payload.blocks, self._drop)
        self._number = 0  # of the next batch
        self._run = executor.open(replace(payload, f=in_batches(payload.f), blocks=self._batches))
        self.now, self.wake, self.close = self._run.now, self._run.wake, self._run.close

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Let them wait until there is room for them."""
        self._open.update(attempts)
        self._waiting += attempts
        self._hand_on()

    def wait(self, timeout: float) -> list[Event]:
        """What happened to each attempt."""
        late = min(self._began.values(), default=inf) + LATE_SECONDS
        for event in self._run.wait(0.0 if self._news else max(0.0, min(timeout, late - self.now()))):
            if isinstance(event, Began) and event.task in self._several:
                self._began[event.task] = event.when  # it is told when they have ended, or begin anew
            elif isinstance(event, Began):
                self._tell_began(self._batches.attempts[event.task], event.when)
            else:
                self._tell_ended(event)
        self._give_up(self.now() - LATE_SECONDS)
        self._hand_on()
        news, self._news = self._news, []
        return news

    def withdraw(self, attempts: Sequence[Attempt]) -> None:
        """Nobody waits for these any more; those in one batch with others go on."""
        unwanted = self._open.intersection(attempts)
        for one in unwanted:
            self._drop(one)
        self._alone -= unwanted
        self._waiting = deque(one for one in self._waiting if one not in unwanted)
        batches = self._batches.attempts.items()
        self._run.withdraw([(number, 0) for number, batch in batches if unwanted.issuperset(batch)])

    def _tell_began(self, batch: list[Attempt], when: float) -> None:
        self._news += [Began(*one, when) for one in batch if one in self._open]

    def _tell_ended(self, outcome: Outcome) -> None:
        """What an outcome says of those in a batch, and before that when they began."""
        batch = self._batches.attempts.pop(outcome.task)
        self._several.discard(outcome.task)
        ended = self._ended(batch, outcome)
        if outcome.task in self._began:
            self._tell_began(batch[: len(ended)], self._began.pop(outcome.task))
        self._news += [one for one in ended if (one.task, one.attempt) in self._open]
        self._open.difference_update(batch[: len(ended)])
        if len(ended) < len(batch):  # what its worker has left
            self._waiting = deque(sorted(self._open.intersection(batch).union(self._waiting)))

    def _give_up(self, late: float) -> None:
        """Let those in batches that began before this moment wait again, each for a worker of its own."""
        numbers = [number for number, when in self._began.items() if when <= late]
        for number in numbers:
            del self._began[number]
            batch, self._batches.attempts[number] = self._batches.attempts[number], []
            self._alone.update(self._open.intersection(batch))
            if batch:  # nobody may want any by now
                self._learn(batch[0], LATE_SECONDS / len(batch))
        if numbers:
            self._several.difference_update(numbers)
            self._waiting = deque(sorted(self._alone.union(self._waiting)))
            self._run.withdraw([(number, 0) for number in numbers])

    def _drop(self, attempt: Attempt) -> None:
        self._open.discard(attempt)
        self._news.append(lost(*attempt, "nobody waits for it any more"))

    def _hand_on(self) -> None:
        """Let workers have what waits, as long as that is not too much.

        One by itself goes once no batch of several is left that may be given up: so those by themselves go
        in their order, as one may wait for the next.
        """
        numbers = []
        most = min(MOST_BATCHES, 2 * len(self._began) + FIRST_BATCHES)
        while self._waiting and self._batches.n < MOST_BATCHES and len(self._several) < most:
            batch = self._next_batch()
            if len(batch) > 1:
                self._several.add(self._number)
            elif self._several:
                self._waiting.appendleft(batch[0])
                break
            numbers.append((self._number, 0))
            self._batches.attempts[self._number] = batch
            self._alone.difference_update(batch)
            self._number += 1
        self._run.submit(numbers)

    def _next_batch(self) -> list[Attempt]:
        """The first attempt that waits, and those behind it that go with it."""
        batch = [self._waiting.popleft()]
        kind, waiting = self._kind_of(batch[0][0]), len(self._waiting)
        seconds = self._seconds.get(kind, 0.0)
        if kind is None or not seconds or self._goes_alone(batch[0]):
            return batch
        share = waiting // (BATCHES_PER_CORE * available_cores())
        most = min(MOST_TOGETHER, int(BATCH_SECONDS / seconds), share)
        while len(batch) < most and self._kind_of((following := self._waiting[0])[0]) == kind:
            if self._goes_alone(following):
                break
            batch.append(self._waiting.popleft())
        return batch

    def _goes_alone(self, attempt: Attempt) -> bool:
        return attempt[1] > 0 or attempt in self._alone

    def _ended(self, batch: list[Attempt], outcome: Outcome) -> list[Outcome]:
        """What became of each attempt, but for the last ones if their worker has left these."""
        if not batch:  # it was given up, or nobody wanted any
            return []
        if outcome.failure is not None or len(batch) == 1:
            ends = [outcome._replace(task=task, attempt=attempt) for task, attempt in batch]
        else:
            told = from_block(outcome.leaves[0])
            seconds = outcome.seconds / len(told)
            ends = [_outcome(one, end, seconds) for one, end in zip(batch, told)]
        if outcome.failure is None:
            self._learn(batch[0], ends[0].seconds)
        return ends

    def _learn(self, attempt: Attempt, seconds: float) -> None:
        """Take in how long a task of the kind of this one took."""
        kind = self._kind_of(attempt[0])
        self._seconds[kind] = (self._seconds.pop(kind, seconds) + seconds) / 2
        if len(self._seconds) > MOST_KINDS:
            del self._seconds[next(iter(self._seconds))]  # of which none has ended for longest


def _outcome(attempt: Attempt, told: tuple[bool, Any], seconds: float) -> Outcome:
    """What a worker tells of one of a batch."""
    has_returned, value = told
    if has_returned:
        return Outcome(*attempt, [np.frombuffer(value, np.uint8)], ("array",), None, seconds)
    return Outcome(*attempt, [], (), failure_of(Error(*value)), seconds)
