"""Record the state of every task of a map: its attempts (runs), failures and times.

The scheduler records the start and the outcome of each attempt here. Policies, collectors and the report
read the table. It does not depend on the code, and it does not store results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from polarmap.driver.lateness import LateTracker
from polarmap.errors import annotate_exception
from polarmap.executors.interface import AttemptId, Failure, Outcome
from polarmap.report import TaskState

# The state of a task without a result is that of its attempts. If the attempts are in different states, the
# first of the following states is used.
STATE_PRECEDENCE = TaskState.RUNNING, TaskState.QUEUED, TaskState.ABANDONED, TaskState.CANCELLED


@dataclass(slots=True)
class TaskRecord:
    """The attempts (runs), failures and times of a task. All times are in seconds since the map started.

    Attributes
    ----------
    late_tracker : LateTracker or None
        Decides which attempts are late. None if the scheduling policy does not need it.
    submitted_at : list of float
        When each attempt was submitted to the executor.
    attempt_states : list of TaskState
        The state of each attempt. Only `TaskTable` changes it.
    dispatched_at : dict from int to float
        When the executor sent an attempt to a worker. Whether an attempt is late depends on the time since
        then.
    started_at : dict from int to float
        When a worker started an attempt, for the attempts where this is known.
    has_result : bool
        Whether an attempt returned a result that was not rejected.
    result_attempt : int
        The number of the attempt that returned the latest result, or -1 without a result.
    arrived_at : float or None
        When the latest result arrived.
    ended_at : float
        When the latest attempt ended.
    worker_seconds : float or None
        The seconds that a worker spent on the result.
    failures : list of Failure
        The failures of attempts, and the reasons for which results were rejected.
    n_backups : int
        The number of attempts that were started as backups of late ones.
    n_batch_losses : int
        The number of attempts that were lost together with a batch, when the task was one of several items.
    host_by_attempt : dict from int to str, or None
        The host name of the worker of each attempt, where it is known.
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
        """The machine that returned the result, or else ran the latest attempt. None if it is unknown."""
        if not self.host_by_attempt:
            return None
        return self.host_by_attempt.get(self.result_attempt if self.has_result else max(self.host_by_attempt))

    @property
    def n_attempts(self) -> int:
        """The number of attempts (runs) of the task that have been started."""
        return len(self.submitted_at)

    @property
    def state(self) -> TaskState:
        """The state of the task, which follows from the states of its attempts."""
        states = self.attempt_states
        if self.has_result:
            return states[self.result_attempt]
        if not states:
            return TaskState.HELD_BACK
        return next((state for state in STATE_PRECEDENCE if state in states), TaskState.FAILED)

    @property
    def first_started_at(self) -> float | None:
        """When a worker started the first attempt, in seconds since the map started, or None if unknown.

        Workers measure how long each task took, so a task started at least that long before its result
        arrived. This bound is used if the executor reports no start or a later one.
        """
        reported_start = self.started_at.get(0)
        if self.result_attempt or self.arrived_at is None or not self.worker_seconds:
            return reported_start
        inferred_start = max(self.submitted_at[0], self.arrived_at - self.worker_seconds)
        return inferred_start if reported_start is None else min(reported_start, inferred_start)

    @property
    def n_counted_attempts(self) -> int:
        """The number of attempts that count against `retries`, which excludes attempts lost with a batch."""
        return len(self.submitted_at) - self.n_batch_losses

    @property
    def last_failure(self) -> Failure | None:
        """The latest failure of the task, or None."""
        return self.failures[-1] if self.failures else None

    @property
    def last_raised_failure(self) -> Failure | None:
        """The latest failure in which the mapped function raised an exception, or None if there is none."""
        return next((failure for failure in reversed(self.failures) if failure.kind == "raised"), None)

    def remove_shape_mismatch_failures(self) -> None:
        """Remove failures recorded because of results with the wrong shape."""
        self.failures = [failure for failure in self.failures if failure.kind != "shape"]


class TaskTable:
    """A table of the tasks of a map, by task number. Each update takes O(log n).

    Attributes
    ----------
    in_flight : dict from task to set of int
        The attempts of a task that are running or queued. Tasks without such an attempt have no entry.
    arrived : dict from task to float
        When the valid result of a task arrived, in seconds after the start of the map.
    failed : set of int
        Tasks that were started, have no pending attempt, and have no valid result.
    held_back : set of int
        Tasks that have not been started.
    queued : set of int
        Tasks whose latest attempt has not ended, and has not been reported as started.
    tasks_with_failures : set of int
        Tasks of which an attempt has failed or a result was rejected, even if they have a valid result now.
    attempts_to_cancel : list of (task, attempt)
        Attempts of discarded tasks. The scheduler passes them to the session, which cancels them.
    no_worker_reason : str
        The reason from the latest `NoWorkers` event, or "" if workers are available or it is not known.
    has_known_hosts : bool
        Whether the host name of any worker is known.
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
        self.tasks_with_failures: set[int] = set()
        self.attempts_to_cancel: list[AttemptId] = []

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, task_index: int) -> TaskRecord:
        return self._records[task_index]

    def __iter__(self) -> Iterator[TaskRecord]:
        return iter(self._records.values())

    def add_task(self, task_index: int, late_tracker: LateTracker[AttemptId] | None = None) -> None:
        """Add a task that has not been started, with a tracker that decides when its attempts are late."""
        self._records[task_index] = TaskRecord(late_tracker)
        self.held_back.add(task_index)

    def task_indices(self) -> list[int]:
        """Return the indices of all tasks."""
        return list(self._records)

    def discard_task(self, task_index: int) -> None:
        """Discard all state of a task and cancel its pending attempts. Later events for it are ignored."""
        task = self._records.pop(task_index, None)
        if task is not None and task.late_tracker is not None:
            for attempt in task.dispatched_at:
                task.late_tracker.on_end((task_index, attempt))
        self.arrived.pop(task_index, None)
        self.attempts_to_cancel += [(task_index, attempt) for attempt in self.in_flight.pop(task_index, ())]
        for task_set in (self.failed, self.held_back, self.queued, self.tasks_with_failures):
            task_set.discard(task_index)

    def split_off_task(
        self,
        task_index: int,
        new_task_index: int,
        failure: Failure,
        late_tracker: LateTracker[AttemptId],
        is_batch_loss: bool = False,
    ) -> None:
        """Move an item of a failed batch into a new task that inherits the batch's failed attempts.

        Parameters
        ----------
        task_index : int
            The task that ran the batch.
        new_task_index : int
            The number of the new task.
        failure : Failure
            Why the item failed.
        late_tracker : LateTracker
            Decides when attempts of the new task are late.
        is_batch_loss : bool
            Whether the whole batch was lost, possibly because of another item. If so, the attempts so far do
            not count against `retries`.
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
        self.tasks_with_failures.add(new_task_index)

    def build_item_table(self, items_by_task: Mapping[int, Sequence[int]], n_items: int) -> TaskTable:
        """Return a table in which each item is a task, for reports on maps that batch items into tasks.

        Parameters
        ----------
        items_by_task : mapping from int to sequence of int
            The indices of the items in each task. The run time of a task is divided equally among its items.
        n_items : int
            The total number of items.
        """
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
        """Record a new queued attempt for each task, and return these attempts."""
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
        """Record that an attempt was sent to a worker, or that the worker has started it.

        Only the first call of each kind sets the times of the attempt.

        Parameters
        ----------
        task_index, attempt : int
            The task and attempt number. Attempts that are not pending are ignored.
        started_at : float
            The time in seconds after the start of the map.
        is_confirmed : bool
            Whether the worker has started the attempt. If not, it was only sent to the worker.
        host : str
            The host name of the worker, or "" if unknown.
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
        """Record the outcome of an attempt that ended `elapsed_seconds` after the start of the map."""
        task_index, task = outcome.task, self._records.get(outcome.task)
        if task is None:  # The task has been discarded.
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
                task.remove_shape_mismatch_failures()
            dispatched_at = task.dispatched_at.get(outcome.attempt)
            run_seconds = outcome.seconds if dispatched_at is None else elapsed_seconds - dispatched_at
            if task.late_tracker is not None:
                task.late_tracker.record_run_time(
                    run_seconds, is_restart=outcome.attempt > 0 or task_index >= task.late_tracker.n_initial
                )
        elif outcome.failure is not None and not task.has_result:
            task.failures.append(outcome.failure)
            self.tasks_with_failures.add(task_index)
            if task.late_tracker is not None:
                task.late_tracker.on_end((task_index, outcome.attempt))
        self._set_attempt_states([(task_index, outcome.attempt)], state)

    def _record_host(self, record: TaskRecord, attempt: int, host: str) -> None:
        """Record the host name of the machine on which an attempt runs or ran."""
        self.has_known_hosts = True
        record.host_by_attempt = {**(record.host_by_attempt or {}), attempt: host}

    def reject_result(self, task_index: int, failure: Failure) -> None:
        """Mark a task's result as invalid because of `failure`. The task then counts as failed again."""
        task = self._records[task_index]
        task.has_result = False
        task.failures.append(failure)
        self.tasks_with_failures.add(task_index)
        self.arrived.pop(task_index, None)
        if task.late_tracker is not None:
            # The pending attempts of this task are needed again, so they may become late again.
            for attempt in task.dispatched_at.keys() & self.in_flight.get(task_index, ()):
                task.late_tracker.on_start((task_index, attempt), task.dispatched_at[attempt])
        self._set_attempt_states([(task_index, task.result_attempt)], TaskState.FAILED)

    def restore_result(self, task_index: int) -> None:
        """Mark a task's result as valid again after it was rejected, for example for its shape."""
        task = self._records[task_index]
        assert task.arrived_at is not None
        task.has_result, self.arrived[task_index] = True, task.arrived_at
        task.remove_shape_mismatch_failures()
        self._set_attempt_states([(task_index, task.result_attempt)], TaskState.ARRIVED)

    def finalize_attempt_states(self) -> None:
        """Mark running attempts as abandoned and queued attempts as cancelled.

        Called when the map is over.
        """
        abandoned, cancelled = list[AttemptId](), list[AttemptId]()
        for task_index, attempts in self.in_flight.items():
            attempt_states = self._records[task_index].attempt_states
            for attempt in attempts:
                is_running = attempt_states[attempt] is TaskState.RUNNING
                (abandoned if is_running else cancelled).append((task_index, attempt))
        self._set_attempt_states(abandoned, TaskState.ABANDONED)
        self._set_attempt_states(cancelled, TaskState.CANCELLED)

    def mark_results_unneeded(self, task_indices: Iterable[int]) -> None:
        """Mark the results of these tasks as unneeded. Tasks without a result are ignored."""
        with_result = [task_index for task_index in task_indices if self._records[task_index].has_result]
        self._set_attempt_states(
            [(task_index, self._records[task_index].result_attempt) for task_index in with_result],
            TaskState.SURPLUS,
        )

    def drop_exception_objects(self) -> None:
        """Reduce failures to their messages, because exceptions keep the data in their tracebacks alive."""
        for task in self:
            if task.failures:
                task.failures = [failure._replace(cause=None) for failure in task.failures]

    @property
    def pending_tasks(self) -> set[int]:
        """The tasks without a result that have a running or queued attempt."""
        return self.in_flight.keys() - self.arrived.keys()

    @property
    def worker_seconds(self) -> list[float]:
        """The seconds that workers spent on each result, including results that were rejected later."""
        return [task.worker_seconds for task in self if task.worker_seconds is not None]

    @property
    def first_exception(self) -> BaseException | None:
        """The exception of the first task that raised one, with a note that names the task, or None."""
        for task_index, task in enumerate(self):
            for failure in task.failures:
                if failure.cause is not None:
                    return annotate_exception(f"task {task_index} of {len(self._records)}", failure.cause)
        return None

    def _set_attempt_states(self, attempts: Iterable[AttemptId], state: TaskState) -> None:
        """Set the state of attempts and update the task sets. No other method changes states."""
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
