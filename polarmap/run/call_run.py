"""The calls of one executor on one run, while it stays open."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping
from math import inf
from typing import NamedTuple

from polarmap.blocks.call_blocks import CallBlocks
from polarmap.errors import WorkerLostError
from polarmap.executors.base import Attempt, Began, Failure, Outcome, Run
from polarmap.run.call import LEAST_SECONDS, REMEMBERED, Call, LateCalls
from polarmap.worker.any_value import from_result
from polarmap.worker.pytree import unflatten

START_SECONDS = 0.02  # the longest a wait for outcomes lasts while calls wait for workers whose number grows
MOST_CALLS = 4096  # of a run, which keeps a little of each
GHOST_SECONDS = 1.0  # that a worker may be busy with what another one has done


class Limits(NamedTuple):
    """What an executor does with its calls.

    most : calls that are given to its run at a time; None: all.
    grows : whether as many more are given to it as it seems to have room for.
    backups : that a late call may get.
    retries : of one whose worker was lost.
    """

    most: int | None
    grows: bool
    backups: int
    retries: int

    def room(self, given: int, running: int) -> int:
        """How many more calls a run gets that has been given so many, of which some run."""
        if self.most is None:
            return 1 << 30
        most = max(self.most, running + max(self.most, running) // 2) if self.grows else self.most
        return max(0, most - given)


Durations = defaultdict[Hashable, deque[float]]  # of the latest calls of each function


def no_durations() -> Durations:
    """Those of no function."""
    return defaultdict(lambda: deque(maxlen=REMEMBERED))


class CallRun:
    """Calls that were given to a run.

    run, blocks : the run, and the blocks that it was opened with.
    durations : what earlier calls took; those of new ones are added.
    """

    def __init__(self, run: Run, blocks: CallBlocks, limits: Limits, durations: Durations) -> None:
        self._run, self._blocks, self._limits, self._durations = run, blocks, limits, durations
        self._calls: dict[int, Call] = {}
        self._late: dict[Hashable, LateCalls] = {}
        self._running: set[Attempt] = set()  # that have begun, as far as is known
        self._unbegun: set[Attempt] = set()
        self._ghosts: dict[Attempt, float] = {}  # attempts that run although their call is done

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return not self._calls

    @property
    def is_worn(self) -> bool:
        """Whether further calls are better given to another run."""
        return self._blocks.n >= MOST_CALLS or self._worn_at <= self._run.now()

    @property
    def _worn_at(self) -> float:
        """When the oldest ghost will have been one for too long; inf if there is none."""
        return min(self._ghosts.values(), default=inf) + GHOST_SECONDS

    @property
    def room(self) -> int:
        """How many more calls it may be given."""
        if len(self._calls) < (self._limits.most or 0):
            return self._limits.room(len(self._calls), 0)
        return self._limits.room(len(self._calls), len(self._running))

    def start(self, calls: Iterable[Call]) -> None:
        """Give it these."""
        tasks = {self._blocks.add(call.take_block()): call for call in calls}
        if not tasks:
            return
        self._calls |= tasks
        self._submit(tasks)

    def step(self, may_back_up: bool) -> None:
        """Wait until something has ended, and see what that means.

        may_back_up : whether no call waits for a worker that a backup would take.
        """
        events = self._run.wait(self._wait_seconds(may_back_up))
        while events:
            event = events.pop(0)
            if isinstance(event, Began):
                self._note_began(event)
            else:
                self._note(event)
        if may_back_up:
            self._back_up()

    def fail(self, error: BaseException) -> None:
        """The run has failed: so have all calls that are under way."""
        for task in list(self._calls):
            self._take(task).fail(error)

    def _wait_seconds(self, may_back_up: bool) -> float:
        if not may_back_up:
            return START_SECONDS if self._limits.grows else max(0.0, self._worn_at - self._run.now())
        wait = min((one.next_moment() for one in self._late.values()), default=inf) - self._run.now()
        if self._unbegun:  # one may begin now
            wait = min(wait, min((one.late_after() for one in self._late.values()), default=LEAST_SECONDS))
        return max(1e-3, wait)

    def _note_began(self, event: Began) -> None:
        """An attempt runs; that of a call that is done already says nothing."""
        task, attempt, when = event
        self._running.add((task, attempt))
        self._unbegun.discard((task, attempt))
        call = self._calls.get(task)
        if call is not None and attempt in call.running and attempt not in call.began:
            call.began[attempt] = when
            self._late_calls(call).begin((task, attempt), when)

    def _late_calls(self, call: Call) -> LateCalls:
        found = self._late.get(call.function)
        if found is None:
            found = self._late[call.function] = LateCalls(self._durations[call.function])
        return found

    def _note(self, outcome: Outcome) -> None:
        """What became of an attempt: the first that returns counts."""
        task, attempt = outcome.task, outcome.attempt
        self._running.discard((task, attempt))
        self._unbegun.discard((task, attempt))
        call = self._calls.get(task)
        if call is None:
            self._forget_ghost(task, attempt)
            return
        call.running.discard(attempt)
        late = self._late_calls(call)
        late.end((task, attempt))
        if outcome.failure is not None:
            self._fail(task, call, outcome.failure)
            return
        if attempt in call.began:
            late.learn(self._run.now() - call.began[attempt], is_later=attempt > 0)
        call = self._take(task)
        try:
            value = from_result(unflatten(outcome.structure or ("array",), outcome.leaves or []))
        except BaseException as error:
            call.fail(error)
        else:
            call.return_(value)

    def _fail(self, task: int, call: Call, failure: Failure) -> None:
        """An attempt has failed: start it again if its worker was lost, unless others run."""
        if failure.kind == "raised":
            self._take(task).fail(failure.cause or RuntimeError(str(failure)), is_of_f=True)
            return
        call.losses += 1
        if call.running:
            return
        if call.losses <= self._limits.retries:
            self._submit({task: call})
            return
        self._take(task).fail(
            WorkerLostError(f"a call was lost {call.losses} times, with its worker: {failure.message}")
        )

    def _back_up(self) -> None:
        """Start calls once more whose latest attempt is late."""
        now = self._run.now()
        for task, attempt in [late for one in self._late.values() for late in one.late_at(now)]:
            call = self._calls[task]
            if attempt == max(call.running) and call.backups < self._limits.backups:
                call.backups += 1
                self._submit({task: call})

    def _submit(self, calls: Mapping[int, Call]) -> None:
        """One more attempt of each."""
        attempts = [(task, call.start()) for task, call in calls.items()]
        self._unbegun.update(attempts)
        self._run.submit(attempts)

    def _take(self, task: int) -> Call:
        """A call that is over."""
        call = self._calls.pop(task)
        if not call.running:
            self._blocks.forget(task)
        for attempt in call.running:
            self._ghosts[task, attempt] = self._run.now()
            self._unbegun.discard((task, attempt))
            self._late_calls(call).end((task, attempt))
        return call

    def _forget_ghost(self, task: int, attempt: int) -> None:
        """It has ended; its block is of use until the last one of its task has."""
        del self._ghosts[task, attempt]
        if not any(one == task for one, _ in self._ghosts):
            self._blocks.forget(task)
