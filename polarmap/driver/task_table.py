"""The tasks of one map: what was started, what runs, what ended and how.

Knows no codes and no results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from polarmap.driver.lateness import LateTracker
from polarmap.errors import annotate_exception
from polarmap.executors.interface import AttemptId, Failure, Outcome
from polarmap.report import TaskState

# States of attempts that decide the state of a task without a result, the first one that any of them has.
STATE_PRECEDENCE = TaskState.RUNNING, TaskState.QUEUED, TaskState.ABANDONED, TaskState.CANCELLED


@dataclass(slots=True)
class TaskRecord:
    """What is known of one task.

    late_tracker : which of its attempts are late, among those of tasks of its kind; None if nobody wants to
        know.
    submitted_at : for each attempt, the second of the map in which it was handed out.
    attempt_states : for each attempt, its state, which `TaskTable` changes.
    dispatched_at : for each attempt that the executor has handed to a worker, when: it becomes late from then
        on.
    started_at : for each attempt that a worker is known to have started, when.
    has_result : whether an attempt ended with a result that was not rejected.
    result_attempt : the attempt whose result came last, -1 if there is none.
    arrived_at : when the latest result came, in seconds after the start of the map.
    ended_at : when its latest attempt ended, in seconds after the start of the map.
    worker_seconds : that its worker spent on it.
    failures : why attempts gave nothing, and why results were rejected.
    n_backups : how many attempts are in the place of late ones.
    n_batch_losses : how many attempts were lost as parts of a batch, which any item of it may have caused.
    host_by_attempt : for each attempt whose worker's machine is known, its host name; None if there is none.
    """

    late_tracker: LateTracker[AttemptId] | None = None
    submitted_at: list[float] = field(default_factory=list)
    attempt_states: list[TaskState] = field(default_factory=list)
    dispatched_at: dict[int, float] = field(default_factory=dict)
    started_at: dict[int, float] = field(default_factory=dict)
    has_result: bool = False
    result_attempt: int = -1
    arrived_at: float | None = None
    ended_at: float = 0.0
    worker_seconds: float | None = None
    failures: list[Failure] = field(default_factory=list)
    n_backups: int = 0
    n_batch_losses: int = 0
    host_by_attempt: dict[int, str] | None = None

    @property
    def host(self) -> str | None:
        """The machine of the attempt that returned a result, else of the latest one; None if unknown."""
        if not self.host_by_attempt:
            return None
        return self.host_by_attempt.get(self.result_attempt if self.has_result else max(self.host_by_attempt))

    @property
    def n_attempts(self) -> int:
        """How often it was started."""
        return len(self.submitted_at)

    @property
    def state(self) -> TaskState:
        """The state of the result, if there is one, else of the attempts."""
        states = self.attempt_states
        if self.has_result:
            return states[self.result_attempt]
        if not states:
            return TaskState.HELD_BACK
        return next((state for state in STATE_PRECEDENCE if state in states), TaskState.FAILED)

    @property
    def first_started_at(self) -> float | None:
        """When a worker started the first attempt, None if that is not known.

        The worker itself measured how long its task took, which bounds when it started. That is all that is
        known where an executor does not tell, and better where it was slow to tell.
        """
        reported_start = self.started_at.get(0)
        if self.result_attempt or self.arrived_at is None or not self.worker_seconds:
            return reported_start
        inferred_start = max(self.submitted_at[0], self.arrived_at - self.worker_seconds)
        return inferred_start if reported_start is None else min(reported_start, inferred_start)

    @property
    def n_counted_attempts(self) -> int:
        """The number of attempts that count against `retries`: all but those lost with a batch."""
        return len(self.submitted_at) - self.n_batch_losses

    @property
    def last_failure(self) -> Failure | None:
        """Why it gave nothing, as last said."""
        return self.failures[-1] if self.failures else None

    @property
    def last_raised_failure(self) -> Failure | None:
        """The last failure that f raised, whatever became of later attempts; None if it never raised."""
        return next((failure for failure in reversed(self.failures) if failure.kind == "raised"), None)

    def drop_shape_failures(self) -> None:
        """A result has come: that others had a wrong shape makes no difference, unless it has one, too."""
        self.failures = [failure for failure in self.failures if failure.kind != "shape"]


class TaskTable:
    """The tasks of a map, by number; every change costs O(log n).

    Attributes
    ----------
    in_flight : dict from task to set of int
        Its attempts that run, or wait for a slot; tasks of which none does are not in it.
    arrived : dict from task to float
        When the result came that stands, in seconds after the start.
    failed : set of int
        Tasks that were started, do not run and have not returned a result that stands.
    held_back : set of int
        Tasks that have not been started.
    queued : set of int
        Tasks of which the executor has not told when their latest attempt, which has not ended, began.
    attempts_to_cancel : list of (task, attempt)
        Attempts at tasks that were forgotten, of which the executor is to be told.
    no_worker_reason : str
        Why no worker is there for any task, as `NoWorkers` tells it; empty if one is, or it is not known.
    has_known_hosts : bool
        Whether the machine of any worker is known.
    """

    no_worker_reason = ""
    has_known_hosts = False

    def __init__(self, n_tasks: int, late_tracker: LateTracker[AttemptId] | None = None) -> None:
        self._records = {task_index: TaskRecord(late_tracker) for task_index in range(n_tasks)}
        self.in_flight: dict[int, set[int]] = {}
        self.arrived: dict[int, float] = {}
        self.failed: set[int] = set()
        self.held_back = set(range(n_tasks))
        self.queued: set[int] = set()
        self.attempts_to_cancel: list[AttemptId] = []

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, task_index: int) -> TaskRecord:
        return self._records[task_index]

    def __iter__(self) -> Iterator[TaskRecord]:
        return iter(self._records.values())

    def add_task(self, task_index: int, late_tracker: LateTracker[AttemptId] | None = None) -> None:
        """There is one more task, of a kind of which these attempts are; it is held back."""
        self._records[task_index] = TaskRecord(late_tracker)
        self.held_back.add(task_index)

    def task_indices(self) -> list[int]:
        """The numbers of all."""
        return list(self._records)

    def discard_task(self, task_index: int) -> None:
        """Nothing is wanted of a task any more, and nothing kept: what is told of it makes no difference."""
        task = self._records.pop(task_index, None)
        if task is not None and task.late_tracker is not None:
            for attempt in task.dispatched_at:
                task.late_tracker.on_end((task_index, attempt))
        self.arrived.pop(task_index, None)
        self.attempts_to_cancel += [(task_index, attempt) for attempt in self.in_flight.pop(task_index, ())]
        for task_set in (self.failed, self.held_back, self.queued):
            task_set.discard(task_index)

    def split_off_task(
        self,
        task_index: int,
        new_task_index: int,
        failure: Failure,
        late_tracker: LateTracker[AttemptId],
        is_batch_loss: bool = False,
    ) -> None:
        """Make a part of a task that failed a task of its own, which was started as often.

        is_batch_loss : whether all of the task failed with it, so that the failure may be due to another
            part.
        """
        submitted_at, ended_at = (
            list(self._records[task_index].submitted_at),
            self._records[task_index].ended_at,
        )
        attempt_states = [TaskState.FAILED] * len(submitted_at)
        task = self._records[new_task_index] = TaskRecord(
            late_tracker, submitted_at, attempt_states, ended_at=ended_at, failures=[failure]
        )
        task.n_batch_losses = task.n_attempts if is_batch_loss else 0
        self.failed.add(new_task_index)

    def build_item_table(self, items_by_task: Mapping[int, Sequence[int]], n_items: int) -> TaskTable:
        """The same of n tasks, of which each of these consists of some."""
        table = TaskTable(n_items)
        table.no_worker_reason = self.no_worker_reason
        for task_index, item_indices in items_by_task.items():
            task = self._records[task_index]
            seconds = task.worker_seconds
            seconds_per_item = None if seconds is None else seconds / len(item_indices)
            for item_index in item_indices:
                table._records[item_index] = replace(task, worker_seconds=seconds_per_item)
                if task_index in self.arrived:
                    table.arrived[item_index] = self.arrived[task_index]
                if task_index in self.in_flight:
                    table.in_flight[item_index] = self.in_flight[task_index]
        return table

    def start_attempts(self, task_indices: Collection[int], elapsed_seconds: float) -> list[AttemptId]:
        """The next attempt of each, which is handed out now."""
        attempts = []
        for task_index in task_indices:
            submitted_at = self._records[task_index].submitted_at
            attempts.append((task_index, len(submitted_at)))
            submitted_at.append(elapsed_seconds)
        self._set_attempt_states(attempts, TaskState.QUEUED)
        return attempts

    def record_start(
        self, task_index: int, attempt: int, started_at: float, is_confirmed: bool = True, host: str = ""
    ) -> None:
        """Note when an attempt began to run, as `AttemptStarted` tells; what is told of it later is
        ignored.
        """
        task = self._records.get(task_index)
        if task is None or attempt not in self.in_flight.get(task_index, ()):
            return
        if host:
            self._record_host(task, attempt, host)
        if attempt not in task.dispatched_at:
            task.dispatched_at[attempt] = started_at
            if task.late_tracker is not None and not task.has_result:
                task.late_tracker.on_start((task_index, attempt), started_at)
            if attempt == len(task.submitted_at) - 1:
                self.queued.discard(task_index)
        if is_confirmed and attempt not in task.started_at:
            task.started_at[attempt] = started_at
            self._set_attempt_states([(task_index, attempt)], TaskState.RUNNING)

    def record_outcome(self, outcome: Outcome, elapsed_seconds: float) -> None:
        """Note what became of an attempt."""
        task_index, task = outcome.task, self._records.get(outcome.task)
        if task is None:  # it was forgotten
            return
        if outcome.host:
            self._record_host(task, outcome.attempt, outcome.host)
        task.ended_at = elapsed_seconds
        state = TaskState.SURPLUS if outcome.failure is None else TaskState.FAILED
        if outcome.failure is None and not task.has_result:
            state = TaskState.ARRIVED
            task.has_result, task.result_attempt, task.worker_seconds = True, outcome.attempt, outcome.seconds
            task.arrived_at = self.arrived[task_index] = elapsed_seconds
            if task.failures:
                task.drop_shape_failures()
            dispatched_at = task.dispatched_at.get(outcome.attempt)
            run_seconds = outcome.seconds if dispatched_at is None else elapsed_seconds - dispatched_at
            if task.late_tracker is not None:
                task.late_tracker.record_run_time(
                    run_seconds, is_restart=outcome.attempt > 0 or task_index >= task.late_tracker.n_initial
                )
        elif outcome.failure is not None and not task.has_result:
            task.failures.append(outcome.failure)
            if task.late_tracker is not None:
                task.late_tracker.on_end((task_index, outcome.attempt))
        self._set_attempt_states([(task_index, outcome.attempt)], state)

    def _record_host(self, record: TaskRecord, attempt: int, host: str) -> None:
        """Note on which machine an attempt runs, or ran."""
        self.has_known_hosts = True
        record.host_by_attempt = {**(record.host_by_attempt or {}), attempt: host}

    def reject_result(self, task_index: int, failure: Failure) -> None:
        """A result turned out to be none."""
        task = self._records[task_index]
        task.has_result = False
        task.failures.append(failure)
        self.arrived.pop(task_index, None)
        if task.late_tracker is not None:
            # they are of use again
            for attempt in task.dispatched_at.keys() & self.in_flight.get(task_index, ()):
                task.late_tracker.on_start((task_index, attempt), task.dispatched_at[attempt])
        self._set_attempt_states([(task_index, task.result_attempt)], TaskState.FAILED)

    def restore_result(self, task_index: int) -> None:
        """The result that came stands, though it was rejected for its shape."""
        task = self._records[task_index]
        assert task.arrived_at is not None
        task.has_result, self.arrived[task_index] = True, task.arrived_at
        task.drop_shape_failures()
        self._set_attempt_states([(task_index, task.result_attempt)], TaskState.ARRIVED)

    def finalize_attempt_states(self) -> None:
        """Note that the map is over: attempts that run are abandoned, and those that do not are cancelled."""
        abandoned, cancelled = list[AttemptId](), list[AttemptId]()
        for task_index, attempts in self.in_flight.items():
            attempt_states = self._records[task_index].attempt_states
            for attempt in attempts:
                is_running = attempt_states[attempt] is TaskState.RUNNING
                (abandoned if is_running else cancelled).append((task_index, attempt))
        self._set_attempt_states(abandoned, TaskState.ABANDONED)
        self._set_attempt_states(cancelled, TaskState.CANCELLED)

    def mark_results_unneeded(self, task_indices: Iterable[int]) -> None:
        """Note that the results of these tasks, as far as they have any, were not needed."""
        with_result = [task_index for task_index in task_indices if self._records[task_index].has_result]
        self._set_attempt_states(
            [(task_index, self._records[task_index].result_attempt) for task_index in with_result],
            TaskState.SURPLUS,
        )

    def drop_exception_objects(self) -> None:
        """Keep of failures what is said of them: exceptions hold frames, and so what the caller had there."""
        for task in self:
            if task.failures:
                task.failures = [failure._replace(cause=None) for failure in task.failures]

    @property
    def pending_tasks(self) -> set[int]:
        """Tasks whose results may still come."""
        return self.in_flight.keys() - self.arrived.keys()

    @property
    def worker_seconds(self) -> list[float]:
        """What workers spent on results, whatever became of them."""
        return [task.worker_seconds for task in self if task.worker_seconds is not None]

    @property
    def first_exception(self) -> BaseException | None:
        """The exception of the first task that raised one, with a note that names it."""
        for task_index, task in enumerate(self):
            for failure in task.failures:
                if failure.cause is not None:
                    return annotate_exception(f"task {task_index} of {len(self._records)}", failure.cause)
        return None

    def _set_attempt_states(self, attempts: Iterable[AttemptId], state: TaskState) -> None:
        """Change the state of attempts, and the sets that follow from states: nothing else changes states."""
        for task_index, attempt in attempts:
            task = self._records[task_index]
            if state is TaskState.QUEUED:
                task.attempt_states.append(state)
                self.in_flight.setdefault(task_index, set()).add(attempt)
                self.queued.add(task_index)
                self.failed.discard(task_index)
                self.held_back.discard(task_index)
                continue
            task.attempt_states[attempt] = state
            if state is TaskState.RUNNING:
                continue
            if attempt == len(task.submitted_at) - 1:
                self.queued.discard(task_index)
            if task.late_tracker is not None and task.has_result:
                for tracked_attempt in task.dispatched_at:
                    task.late_tracker.on_end((task_index, tracked_attempt))
            attempts_in_flight = self.in_flight.get(task_index)
            if attempts_in_flight is not None:
                attempts_in_flight.discard(attempt)
            if not attempts_in_flight:
                self.in_flight.pop(task_index, None)
                (self.failed.discard if task.has_result else self.failed.add)(task_index)
