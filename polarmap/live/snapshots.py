"""Snapshots of a running program: its maps, workers, fits and calls, as plain values that JSON can represent.

The hub takes a snapshot several times a second while somebody watches, and every view shows the same one. A
snapshot contains names, sizes, times and error messages, but no data of the user.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

# The letter that represents each task state in `MapSnapshot.states`. For a late task, it is in upper case.
STATE_LETTERS = {
    "held back": "h",
    "queued": "q",
    "running": "r",
    "arrived": "a",
    "surplus": "s",
    "failed": "f",
    "cancelled": "c",
    "abandoned": "x",
}
STATE_BY_LETTER = {letter: state for state, letter in STATE_LETTERS.items()}

# A task is late if it has been running for longer than this multiple of the median run time of the tasks that
# have returned.
LATE_MEDIAN_FACTOR = 2.0
RATE_WINDOW_SECONDS = 5.0  # The throughput of a running map is the mean over its last 5 seconds.
MAX_FAILURES = 5  # A snapshot contains at most this many failures of each map.
MAX_TEXT_LENGTH = 500  # Longer error messages are cut off.


@dataclass(frozen=True, slots=True)
class FailureSnapshot:
    """The latest failure of a task.

    `task` is the task number, `message` is the error message, and `host` is the machine on which the task
    failed, or "" if it is unknown.
    """

    task: int
    message: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class MapSnapshot:
    """The state of a map at one moment. All points in time are in seconds since the start of the map.

    Attributes
    ----------
    map_id : int
        The number of the map in its program, starting at 1.
    name : str
        The name of the map's function f, or "" if it is unknown.
    code, executor : str
        The names of the code and of the executor, as in a report.
    n, k, needed : int
        The number of tasks, the number of data blocks, and the number of results that suffice.
    n_arrived : int
        The number of results that have arrived.
    elapsed_seconds : float
        The time since the start of the map, or its duration if it has finished.
    is_running : bool
        Whether the map is still running.
    states : str
        A letter for each task: see `STATE_LETTERS`. The letter of a late task is in upper case.
    decoded_blocks : tuple of int
        The data blocks whose results were decoded from other results.
    submitted, started, ended : tuple of float or None
        When each task was submitted, was started by a worker, and returned its result or failed for the last
        time. None if this has not happened, or if the time is unknown. A task is queued until a worker starts
        it, and then it runs.
    hosts : tuple of str
        The machine of each task, or "" if it is unknown or this machine. Empty if no machine is known.
    sufficed_at : float or None
        When enough results had arrived to compute all others. None before that.
    next_result_seconds : float or None
        The estimated time until the next result arrives, in seconds. None if there is no estimate.
    results_per_second : float
        The mean throughput over the latest seconds, or over the whole map if it has finished.
    cost_dollars : float or None
        The estimated cost so far at list prices. None if the prices are unknown.
    failures : tuple of FailureSnapshot
        The latest failures, newest last.
    n_failed_tasks : int
        The number of tasks that have failed at least once.
    error : str
        The error message if the map has failed, else "".
    """

    map_id: int
    name: str
    code: str
    executor: str
    n: int
    k: int
    needed: int
    n_arrived: int
    elapsed_seconds: float
    is_running: bool
    states: str
    decoded_blocks: tuple[int, ...] = ()
    submitted: tuple[float | None, ...] = ()
    started: tuple[float | None, ...] = ()
    ended: tuple[float | None, ...] = ()
    hosts: tuple[str, ...] = ()
    sufficed_at: float | None = None
    next_result_seconds: float | None = None
    results_per_second: float = 0.0
    cost_dollars: float | None = None
    failures: tuple[FailureSnapshot, ...] = ()
    n_failed_tasks: int = 0
    error: str = ""

    @property
    def status_text(self) -> str:
        """The progress of the map in one line: "24 needed, 19 arrived, next expected in about 0.3 s"."""
        text = f"{self.needed} needed, {self.n_arrived} arrived"
        if self.error:
            return f"{text}, failed after {self.elapsed_seconds:.2f} s"
        if not self.is_running:
            return f"{text}, done in {self.elapsed_seconds:.2f} s"
        if self.sufficed_at is not None:
            return f"{text}, sufficient after {self.sufficed_at:.2f} s"
        if self.next_result_seconds is not None:
            return f"{text}, next expected in about {self.next_result_seconds:.1f} s"
        return text


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """The state of a persistent worker at one moment.

    Attributes
    ----------
    pool : str
        The name of the worker's pool.
    worker_id : int
        The number of the worker in its pool.
    pid : int or None
        The process id of the worker on its machine. None before the worker has connected.
    host : str
        The name of its machine, or "" if this is the driver's machine.
    state : str
        "idle", "working", or "abandoned" if the map of its task has already ended.
    task : int or None
        The task that the worker runs, or None if it is idle.
    state_seconds : float
        For how long the worker has been running this task or has been idle, in seconds.
    memory_bytes : int or None
        The memory of the process. None if this process cannot read it.
    cpu_seconds : float or None
        The processor time that the process has used. None if this process cannot read it.
    job : str
        The name of the map or the `polarmap.Executor` of the task, such as "map 3". "" if the worker is idle.
    """

    pool: str
    worker_id: int
    pid: int | None
    host: str
    state: str
    task: int | None
    state_seconds: float
    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    job: str = ""


@dataclass(frozen=True, slots=True)
class ExecutorSnapshot:
    """The numbers of submitted, running and finished calls of a `polarmap.Executor` at one moment.

    Calls that were submitted together as a chunk count as one call.

    Attributes
    ----------
    name : str
        The name of the executor in its program, such as "Executor 1".
    executor : str
        The name of the executor on which the calls run, as in a report.
    n_calls : int
        The number of calls that were submitted and not cancelled.
    n_done : int
        The number of calls that have returned or failed.
    n_running : int
        The number of calls that workers are running.
    n_failed : int
        The number of calls that have raised an exception or were lost.
    """

    name: str
    executor: str
    n_calls: int
    n_done: int
    n_running: int
    n_failed: int

    @property
    def is_running(self) -> bool:
        """Whether any call is not done yet."""
        return self.n_done < self.n_calls


@dataclass(frozen=True, slots=True)
class IterationSnapshot:
    """The state of a fit, or of another iterative computation, at one moment.

    Attributes
    ----------
    name : str
        The name of the estimator, such as "LogisticRegression".
    n_steps : int
        The number of completed steps.
    objective : float or None
        The objective after the latest step, or None if the solver does not compute it.
    gradient_norm : float or None
        The solver's measure of optimality, or None before the first step.
    seconds_per_step : float or None
        The mean duration of a step, or None before the first step.
    n_products : int
        The number of products with coded matrices so far.
    elapsed_seconds : float
        The time since the start of the iteration.
    is_running : bool
        Whether the iteration is still running.
    """

    name: str
    n_steps: int
    objective: float | None
    gradient_norm: float | None
    seconds_per_step: float | None
    n_products: int
    elapsed_seconds: float
    is_running: bool


@dataclass(frozen=True, slots=True)
class ProgramSnapshot:
    """The state of a program at one moment: its maps, workers, fits and calls.

    Attributes
    ----------
    pid : int
        The process id of the program.
    name : str
        The name of the program, such as "fit.py".
    host : str
        The name of its machine.
    time : float
        When the snapshot was taken, in seconds since the epoch.
    n_finished_maps : int
        How many maps have finished while the program was visible.
    results_per_second : float
        The throughput of all maps over the latest seconds.
    maps : tuple of MapSnapshot
        The running maps, and the latest of those that have finished, oldest first.
    workers : tuple of WorkerSnapshot
        The persistent workers of all pools.
    iterations : tuple of IterationSnapshot
        The running fits, and the latest of those that have finished.
    executors : tuple of ExecutorSnapshot
        Each `polarmap.Executor` to which calls have been submitted, oldest first.
    """

    pid: int
    name: str
    host: str
    time: float
    n_finished_maps: int = 0
    results_per_second: float = 0.0
    maps: tuple[MapSnapshot, ...] = ()
    workers: tuple[WorkerSnapshot, ...] = ()
    iterations: tuple[IterationSnapshot, ...] = field(default=())
    executors: tuple[ExecutorSnapshot, ...] = ()

    def to_json(self) -> str:
        """Convert the snapshot to JSON in one line. `from_json` restores it.

        >>> snapshot = ProgramSnapshot(7, "fit.py", "node1", 0.0)
        >>> ProgramSnapshot.from_json(snapshot.to_json()) == snapshot
        True
        """
        return encode_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> ProgramSnapshot:
        """Restore a snapshot from the text that `to_json` returns. Raises ValueError for any other text."""
        try:
            values = json.loads(text)
            maps = tuple(_restore_map(item) for item in values.pop("maps"))
            workers = tuple(WorkerSnapshot(**item) for item in values.pop("workers"))
            iterations = tuple(IterationSnapshot(**item) for item in values.pop("iterations"))
            executors = tuple(ExecutorSnapshot(**item) for item in values.pop("executors"))
            return cls(**values, maps=maps, workers=workers, iterations=iterations, executors=executors)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a snapshot of a program: {error}") from error


def encode_json(value: Any) -> str:
    """Encode a snapshot, or a list or dict that contains snapshots, as JSON in one line.

    Infinite numbers and NaN are encoded as null, because JavaScript does not accept them in JSON.
    """
    try:
        return json.dumps(value, default=get_field_values, separators=(",", ":"), allow_nan=False)
    except ValueError:  # A number is infinite or NaN.
        text = json.dumps(value, default=get_field_values)
        finite_values = json.loads(text, parse_constant=lambda name: None)
        return json.dumps(finite_values, separators=(",", ":"))


def get_field_values(snapshot: Any) -> dict[str, Any]:
    """Return the fields of a snapshot as a dict. Unlike `dataclasses.asdict`, do not copy their values."""
    return {item.name: getattr(snapshot, item.name) for item in fields(snapshot)}


def _restore_map(json_object: dict[str, Any]) -> MapSnapshot:
    failures = tuple(FailureSnapshot(**item) for item in json_object.pop("failures"))
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json_object.items()
    }
    return MapSnapshot(**values, failures=failures)


# --- from a report -----------------------------------------------------------------------------


def make_map_snapshot(
    map_id: int, name: str, report: Any, is_running: bool = False, error: str = ""
) -> MapSnapshot:
    """Convert the report of a map to a snapshot.

    Parameters
    ----------
    map_id : int
        The number of the map in its program.
    name : str
        The name of the map's function.
    report : Report
        The final report, or the report of a running map.
    is_running : bool
        Whether the map is still running.
    error : str
        The error message if the map has failed.
    """
    tasks = report.tasks
    arrivals = sorted(task.arrived for task in tasks if task.arrived is not None)
    late_tasks = _find_late_tasks(tasks, report.seconds)
    if not is_running:
        late_tasks |= {index for index in report.late_tasks if tasks[index].state != "abandoned"}
    letters = [STATE_LETTERS[task.state] for task in tasks]
    for task_index in late_tasks:
        letters[task_index] = letters[task_index].upper()
    failed_tasks = [task for task in tasks if task.failures]
    cost = report.cost
    return MapSnapshot(
        map_id=map_id,
        name=name,
        code=report.code,
        executor=report.executor,
        n=report.n,
        k=report.k,
        needed=report.needed,
        n_arrived=len(arrivals),
        elapsed_seconds=_round_time(report.seconds) or 0.0,
        is_running=is_running,
        states="".join(letters),
        decoded_blocks=tuple(report.recovered),
        submitted=tuple(_round_time(task.launched) for task in tasks),
        started=tuple(_round_time(task.started) for task in tasks),
        ended=tuple(_round_time(task.ended) for task in tasks),
        hosts=tuple(task.host or "" for task in tasks) if any(task.host for task in tasks) else (),
        sufficed_at=_round_time(arrivals[report.needed - 1]) if 0 < report.needed <= len(arrivals) else None,
        next_result_seconds=_estimate_next_result(tasks, report.seconds) if is_running else None,
        results_per_second=_compute_throughput(arrivals, report.seconds, is_running),
        cost_dollars=None if cost is None else cost.total,
        failures=tuple(
            FailureSnapshot(task.index, task.failures[-1][:MAX_TEXT_LENGTH], task.host or "")
            for task in failed_tasks[-MAX_FAILURES:]
        ),
        n_failed_tasks=len(failed_tasks),
        error=error[:MAX_TEXT_LENGTH],
    )


def _round_time(seconds: float | None) -> float | None:
    """Round a time in seconds to 0.1 ms, so that the JSON text of a snapshot is short."""
    return None if seconds is None else round(seconds, 4)


def _compute_run_times(tasks: Sequence[Any]) -> list[float]:
    """Return the run times of the tasks that have returned, in seconds and in ascending order."""
    run_times = [
        task.arrived - task.started
        for task in tasks
        if task.arrived is not None and task.started is not None and task.arrived >= task.started
    ]
    return sorted(run_times)


def _find_late_tasks(tasks: Sequence[Any], elapsed_seconds: float) -> set[int]:
    """Return the indices of running tasks that are late, or that were running and late when the map ended.

    A task is late if it has been running for longer than twice the median run time of the returned tasks, or
    if it was submitted a second time as a backup.
    """
    run_times = _compute_run_times(tasks)
    max_age = LATE_MEDIAN_FACTOR * run_times[len(run_times) // 2] if run_times else float("inf")
    return {
        task.index
        for task in tasks
        if task.state in ("running", "abandoned")
        and (
            (task.attempts > 1 and not task.failures)
            or (task.started is not None and elapsed_seconds - task.started > max_age)
        )
    }


def _estimate_next_result(tasks: Sequence[Any], elapsed_seconds: float) -> float | None:
    """Return the estimated seconds until the next result, or None if no run times are known.

    The run time of a running task is predicted from the returned tasks that took longer than the task has
    been running so far. The prediction is the median of their run times.
    """
    run_times = _compute_run_times(tasks)
    remaining = []
    for task in tasks:
        if task.state == "running" and task.started is not None:
            age = elapsed_seconds - task.started
            n_shorter = bisect_left(run_times, age)
            if n_shorter < len(run_times):
                remaining.append(run_times[(n_shorter + len(run_times)) // 2] - age)
    return round(max(0.0, min(remaining)), 3) if remaining else None


def _compute_throughput(arrivals: Sequence[float], elapsed_seconds: float, is_running: bool) -> float:
    """Return the results per second over the latest seconds, or over the whole map if it has finished."""
    window = min(RATE_WINDOW_SECONDS, elapsed_seconds) if is_running else elapsed_seconds
    if window <= 0:
        return 0.0
    n_recent = len(arrivals) - bisect_left(arrivals, elapsed_seconds - window)
    return round(n_recent / window, 3)
