"""The tasks of one map: what was started, what runs, what ended and how.

Knows no codes and no results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from polarmap.errors import raised_by
from polarmap.executors.interface import AttemptId, Failure, Outcome
from polarmap.report import TaskState
from polarmap.run.lateness import LateAttempts

# States of attempts that decide the state of a task without a result, the first one that any of them has.
PRECEDENCE = TaskState.RUNNING, TaskState.QUEUED, TaskState.ABANDONED, TaskState.CANCELLED


@dataclass(slots=True)
class Task:
    """What is known of one task.

    late : which of its attempts are late, among those of tasks of its kind; None if nobody wants to know.
    submitted : for each attempt, the second of the map in which it was handed out.
    states : for each attempt, its state, which `TaskTable` changes.
    began : for each attempt that the executor has handed to a worker, when: it becomes late from then on.
    started : for each attempt that a worker is known to have started, when.
    returned : whether an attempt ended with a result that was not rejected.
    returned_attempt : the attempt whose result came last, -1 if there is none.
    came : when the latest result came, in seconds after the start of the map.
    seconds : that its worker spent on it.
    failures : why attempts gave nothing, and why results were rejected.
    backups : how many attempts are in the place of late ones.
    n_shared_losses : how many attempts were lost as parts of a batch, which any item of it may have caused.
    hosts : for each attempt whose worker's machine is known, its host name; None if there is none.
    """

    late: LateAttempts[AttemptId] | None = None
    submitted: list[float] = field(default_factory=list)
    states: list[TaskState] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    returned: bool = False
    returned_attempt: int = -1
    came: float | None = None
    seconds: float | None = None
    failures: list[Failure] = field(default_factory=list)
    backups: int = 0
    n_shared_losses: int = 0
    hosts: dict[int, str] | None = None

    @property
    def host(self) -> str | None:
        """The machine of the attempt that returned a result, else of the latest one; None if unknown."""
        if not self.hosts:
            return None
        return self.hosts.get(self.returned_attempt if self.returned else max(self.hosts))

    @property
    def attempts(self) -> int:
        """How often it was started."""
        return len(self.submitted)

    @property
    def state(self) -> TaskState:
        """The state of the result, if there is one, else of the attempts."""
        states = self.states
        if self.returned:
            return states[self.returned_attempt]
        if not states:
            return TaskState.HELD_BACK
        return next((state for state in PRECEDENCE if state in states), TaskState.FAILED)

    @property
    def first_start(self) -> float | None:
        """When a worker started the first attempt, None if that is not known.

        The worker itself measured how long its task took, which bounds when it started. That is all that is
        known where an executor does not tell, and better where it was slow to tell.
        """
        told = self.started.get(0)
        if self.returned_attempt or self.came is None or not self.seconds:
            return told
        measured = max(self.submitted[0], self.came - self.seconds)
        return measured if told is None else min(told, measured)

    @property
    def own_attempts(self) -> int:
        """The number of attempts that count against `retries`: all but those lost with a batch."""
        return len(self.submitted) - self.n_shared_losses

    @property
    def last_failure(self) -> Failure | None:
        """Why it gave nothing, as last said."""
        return self.failures[-1] if self.failures else None

    @property
    def last_raised(self) -> Failure | None:
        """The last failure that f raised, whatever became of later attempts; None if it never raised."""
        return next((one for one in reversed(self.failures) if one.kind == "raised"), None)

    def forget_shapes(self) -> None:
        """A result has come: that others had a wrong shape makes no difference, unless it has one, too."""
        self.failures = [one for one in self.failures if one.kind != "shape"]


class TaskTable:
    """The tasks of a map, by number; every change costs O(log n).

    Attributes
    ----------
    running : dict from task to set of int
        Its attempts that run, or wait for a slot; tasks of which none does are not in it.
    arrived : dict from task to float
        When the result came that stands, in seconds after the start.
    failed : set of int
        Tasks that were started, do not run and have not returned a result that stands.
    held_back : set of int
        Tasks that have not been started.
    unbegun : set of int
        Tasks of which the executor has not told when their latest attempt, which has not ended, began.
    unwanted : list of (task, attempt)
        Attempts at tasks that were forgotten, of which the executor is to be told.
    shortage : str
        Why no worker is there for any task, as `NoWorkers` tells it; empty if one is, or it is not known.
    has_hosts : bool
        Whether the machine of any worker is known.
    """

    shortage = ""
    has_hosts = False

    def __init__(self, n: int, late: LateAttempts[AttemptId] | None = None) -> None:
        self._tasks = {index: Task(late) for index in range(n)}
        self.running: dict[int, set[int]] = {}
        self.arrived: dict[int, float] = {}
        self.failed: set[int] = set()
        self.held_back = set(range(n))
        self.unbegun: set[int] = set()
        self.unwanted: list[AttemptId] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> Task:
        return self._tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def add(self, index: int, late: LateAttempts[AttemptId] | None = None) -> None:
        """There is one more task, of a kind of which these attempts are; it is held back."""
        self._tasks[index] = Task(late)
        self.held_back.add(index)

    def known(self) -> list[int]:
        """The numbers of all."""
        return list(self._tasks)

    def forget(self, index: int) -> None:
        """Nothing is wanted of a task any more, and nothing kept: what is told of it makes no difference."""
        task = self._tasks.pop(index, None)
        if task is not None and task.late is not None:
            for attempt in task.began:
                task.late.end((index, attempt))
        self.arrived.pop(index, None)
        self.unwanted += [(index, attempt) for attempt in self.running.pop(index, ())]
        for some in (self.failed, self.held_back, self.unbegun):
            some.discard(index)

    def part(
        self, index: int, new: int, failure: Failure, late: LateAttempts[AttemptId], is_shared: bool = False
    ) -> None:
        """Make a part of a task that failed a task of its own, which was started as often.

        is_shared : whether all of the task failed with it, so that the failure may be due to another part.
        """
        submitted = list(self._tasks[index].submitted)
        states = [TaskState.FAILED] * len(submitted)
        task = self._tasks[new] = Task(late, submitted, states, failures=[failure])
        task.n_shared_losses = task.attempts if is_shared else 0
        self.failed.add(new)

    def regrouped(self, parts: Mapping[int, Sequence[int]], n: int) -> TaskTable:
        """The same of n tasks, of which each of these consists of some."""
        table = TaskTable(n)
        table.shortage = self.shortage
        for index, numbers in parts.items():
            task = self._tasks[index]
            seconds = None if task.seconds is None else task.seconds / len(numbers)
            for number in numbers:
                table._tasks[number] = replace(task, seconds=seconds)
                if index in self.arrived:
                    table.arrived[number] = self.arrived[index]
                if index in self.running:
                    table.running[number] = self.running[index]
        return table

    def start(self, indices: Collection[int], elapsed: float) -> list[AttemptId]:
        """The next attempt of each, which is handed out now."""
        attempts = []
        for index in indices:
            submitted = self._tasks[index].submitted
            attempts.append((index, len(submitted)))
            submitted.append(elapsed)
        self._move(attempts, TaskState.QUEUED)
        return attempts

    def note_began(
        self, index: int, attempt: int, when: float, is_certain: bool = True, host: str = ""
    ) -> None:
        """Note when an attempt began to run, as `AttemptStarted` tells; what is told of it later is
        ignored.
        """
        task = self._tasks.get(index)
        if task is None or attempt not in self.running.get(index, ()):
            return
        if host:
            self._note_host(task, attempt, host)
        if attempt not in task.began:
            task.began[attempt] = when
            if task.late is not None and not task.returned:
                task.late.begin((index, attempt), when)
            if attempt == len(task.submitted) - 1:
                self.unbegun.discard(index)
        if is_certain and attempt not in task.started:
            task.started[attempt] = when
            self._move([(index, attempt)], TaskState.RUNNING)

    def note(self, outcome: Outcome, elapsed: float) -> None:
        """Note what became of an attempt."""
        index, task = outcome.task, self._tasks.get(outcome.task)
        if task is None:  # it was forgotten
            return
        if outcome.host:
            self._note_host(task, outcome.attempt, outcome.host)
        state = TaskState.SURPLUS if outcome.failure is None else TaskState.FAILED
        if outcome.failure is None and not task.returned:
            state = TaskState.ARRIVED
            task.returned, task.returned_attempt, task.seconds = True, outcome.attempt, outcome.seconds
            task.came = self.arrived[index] = elapsed
            if task.failures:
                task.forget_shapes()
            began = task.began.get(outcome.attempt)
            took = outcome.seconds if began is None else elapsed - began
            if task.late is not None:
                task.late.learn(took, is_later=outcome.attempt > 0 or index >= task.late.at_once)
        elif outcome.failure is not None and not task.returned:
            task.failures.append(outcome.failure)
            if task.late is not None:
                task.late.end((index, outcome.attempt))
        self._move([(index, outcome.attempt)], state)

    def _note_host(self, task: Task, attempt: int, host: str) -> None:
        """Note on which machine an attempt runs, or ran."""
        self.has_hosts = True
        task.hosts = {**(task.hosts or {}), attempt: host}

    def reject(self, index: int, failure: Failure) -> None:
        """A result turned out to be none."""
        task = self._tasks[index]
        task.returned = False
        task.failures.append(failure)
        self.arrived.pop(index, None)
        if task.late is not None:
            for attempt in task.began.keys() & self.running.get(index, ()):  # they are of use again
                task.late.begin((index, attempt), task.began[attempt])
        self._move([(index, task.returned_attempt)], TaskState.FAILED)

    def accept(self, index: int) -> None:
        """The result that came stands, though it was rejected for its shape."""
        task = self._tasks[index]
        assert task.came is not None
        task.returned, self.arrived[index] = True, task.came
        task.forget_shapes()
        self._move([(index, task.returned_attempt)], TaskState.ARRIVED)

    def end(self) -> None:
        """Note that the map is over: attempts that run are abandoned, and those that do not are cancelled."""
        abandoned, cancelled = list[AttemptId](), list[AttemptId]()
        for index, attempts in self.running.items():
            states = self._tasks[index].states
            for attempt in attempts:
                is_running = states[attempt] is TaskState.RUNNING
                (abandoned if is_running else cancelled).append((index, attempt))
        self._move(abandoned, TaskState.ABANDONED)
        self._move(cancelled, TaskState.CANCELLED)

    def note_surplus(self, indices: Iterable[int]) -> None:
        """Note that the results of these tasks, as far as they have any, were not needed."""
        returned = [index for index in indices if self._tasks[index].returned]
        self._move([(index, self._tasks[index].returned_attempt) for index in returned], TaskState.SURPLUS)

    def forget_exceptions(self) -> None:
        """Keep of failures what is said of them: exceptions hold frames, and so what the caller had there."""
        for task in self:
            if task.failures:
                task.failures = [one._replace(cause=None) for one in task.failures]

    @property
    def coming(self) -> set[int]:
        """Tasks whose results may still come."""
        return self.running.keys() - self.arrived.keys()

    @property
    def seconds(self) -> list[float]:
        """What workers spent on results, whatever became of them."""
        return [task.seconds for task in self if task.seconds is not None]

    @property
    def first_cause(self) -> BaseException | None:
        """The exception of the first task that raised one, with a note that names it."""
        for index, task in enumerate(self):
            for failure in task.failures:
                if failure.cause is not None:
                    return raised_by(f"task {index} of {len(self._tasks)}", failure.cause)
        return None

    def _move(self, attempts: Iterable[AttemptId], state: TaskState) -> None:
        """Change the state of attempts, and the sets that follow from states: nothing else changes states."""
        for index, attempt in attempts:
            task = self._tasks[index]
            if state is TaskState.QUEUED:
                task.states.append(state)
                self.running.setdefault(index, set()).add(attempt)
                self.unbegun.add(index)
                self.failed.discard(index)
                self.held_back.discard(index)
                continue
            task.states[attempt] = state
            if state is TaskState.RUNNING:
                continue
            if attempt == len(task.submitted) - 1:
                self.unbegun.discard(index)
            if task.late is not None and task.returned:
                for begun in task.began:
                    task.late.end((index, begun))
            left = self.running.get(index)
            if left is not None:
                left.discard(attempt)
            if not left:
                self.running.pop(index, None)
                (self.failed.discard if task.returned else self.failed.add)(index)
