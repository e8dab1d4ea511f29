"""The hub, which records the maps, fits, workers and submitted calls of a program for live views.

    driver (JobStarted, JobFinished)  --start_map, finish_map-->  LiveHub  <--take_snapshot--  viewers
    fits                              --start_iteration-------->
    pools                             --worker sources--------->
    polarmap.Executor                 --executor sources------->

A map calls the hub only when it starts and when it finishes. Everything else happens on the viewers' threads,
which ask running maps for their reports. If nobody watches, no snapshot is taken. `polarmap.live.activation`
creates the hub of a process when a program becomes visible.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from polarmap.live.pace import compute_pause_seconds
from polarmap.live.snapshots import (
    RATE_WINDOW_SECONDS,
    ExecutorSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
    make_map_snapshot,
)
from polarmap.worker.processes import read_process_status

MAX_FINISHED = 8  # A snapshot contains at most this many finished maps, and this many finished fits.
MIN_SNAPSHOT_INTERVAL = 0.2  # the minimum pause between two snapshots, in seconds
# While one thread takes a snapshot, other threads get the previous one. If it takes longer than this many
# seconds, another thread also tries to take a snapshot.
MAX_SNAPSHOT_SECONDS = 5.0


@dataclass(slots=True)
class LiveMap:
    """A map that is visible to live views, such as `polarmap top` or the dashboard.

    Attributes
    ----------
    map_id : int
        The number of the map in this program.
    name : str
        The name of the map's function.
    get_report : callable or None
        Called without arguments on any thread to get the map's report so far, or its final report. None if
        no report is available.
    finished_at : float or None
        When the map finished, on the monotonic clock. None while it runs.
    error : str
        The error message if the map has failed.
    """

    map_id: int
    name: str
    get_report: Callable[[], Any] | None
    finished_at: float | None = None
    error: str = ""
    _snapshot: MapSnapshot | None = None

    def take_snapshot(self) -> MapSnapshot | None:
        """Return the state of the map, or None if no report on the map is available."""
        is_running, get_report = self.finished_at is None, self.get_report
        if self._snapshot is not None or get_report is None:
            return self._snapshot
        report = get_report()
        if report is None:
            return None
        snapshot = make_map_snapshot(self.map_id, self.name, report, is_running, self.error)
        if not is_running:
            self._snapshot, self.get_report = snapshot, None
        return snapshot


class LiveIteration:
    """A fit, or another iterative computation, that is visible to live views.

    Parameters
    ----------
    name : str
        The name of the estimator.
    get_n_products : callable
        Called without arguments to get the number of products with coded matrices so far.
    """

    def __init__(self, name: str, get_n_products: Callable[[], int]) -> None:
        self._name, self._get_n_products = name, get_n_products
        self._started_at, self._last_step_at = time.monotonic(), time.monotonic()
        self._finished_at: float | None = None
        self._n_steps, self._objective, self._gradient_norm = 0, None, None  # type: tuple[int, Any, Any]

    def record_step(self, objective: float | None, gradient_norm: float | None) -> None:
        """Record that a step has finished, with the objective and a measure of optimality after the step.

        An argument is None if the solver does not compute this value.
        """
        self._n_steps, self._last_step_at = self._n_steps + 1, time.monotonic()
        self._objective = None if objective is None else float(objective)
        self._gradient_norm = None if gradient_norm is None else float(gradient_norm)

    def finish(self) -> None:
        """Record the end of the iteration."""
        self._finished_at = time.monotonic()
        n_products = self._get_n_products()
        # Replace the original function, which refers to the matrices, so that their memory can be freed.
        self._get_n_products = lambda: n_products

    def take_snapshot(self) -> IterationSnapshot:
        """Return the state of the iteration."""
        ended_at = time.monotonic() if self._finished_at is None else self._finished_at
        seconds_per_step = None
        if self._n_steps:
            seconds_per_step = round((self._last_step_at - self._started_at) / self._n_steps, 6)
        return IterationSnapshot(
            name=self._name,
            n_steps=self._n_steps,
            objective=self._objective,
            gradient_norm=self._gradient_norm,
            seconds_per_step=seconds_per_step,
            n_products=self._get_n_products(),
            elapsed_seconds=round(ended_at - self._started_at, 3),
            is_running=self._finished_at is None,
        )


class LiveHub:
    """The registry of a program's maps and fits, from which live views take snapshots of the program.

    All methods may be called from any thread.

    Parameters
    ----------
    worker_sources : sequence of callable
        Functions that return the states of persistent workers. Each function is called without arguments
        whenever a snapshot is taken.
    executor_sources : sequence of callable
        Functions that return the states of the calls of each `polarmap.Executor`, called in the same way.
    """

    def __init__(
        self,
        worker_sources: Sequence[Callable[[], list[WorkerSnapshot]]] = (),
        executor_sources: Sequence[Callable[[], list[ExecutorSnapshot]]] = (),
    ) -> None:
        self._worker_sources, self._executor_sources = worker_sources, executor_sources
        self._lock = threading.Lock()
        self._running_maps: dict[int, LiveMap] = {}
        self._finished_maps = deque[LiveMap](maxlen=MAX_FINISHED)
        self._running_iterations: list[LiveIteration] = []
        self._finished_iterations = deque[LiveIteration](maxlen=MAX_FINISHED)
        # The end time of each finished map and its number of results, to compute the throughput.
        self._finished_counts = deque[tuple[float, int]](maxlen=4096)
        self._n_finished_maps = 0
        self._snapshot: ProgramSnapshot | None = None
        self._json_snapshot: tuple[ProgramSnapshot, str] | None = None
        self._next_snapshot_at = 0.0

    def start_map(self, map_id: int, name: str, get_report: Callable[[], Any]) -> LiveMap:
        """Add a map that has just started. For the parameters, see `LiveMap`."""
        live_map = LiveMap(map_id, name, get_report)
        with self._lock:
            self._running_maps[live_map.map_id] = live_map
        return live_map

    def finish_map(
        self, live_map: LiveMap, get_report: Callable[[], Any] | None, n_results: int, error: str = ""
    ) -> None:
        """Record the end of a map.

        Parameters
        ----------
        live_map : LiveMap
            The map, from `start_map`.
        get_report : callable or None
            Called without arguments to get the map's final report, but only if a live view needs it.
        n_results : int
            The number of results that have arrived.
        error : str
            The error message if the map has failed.
        """
        # The previous `get_report` referred to the running map, whose memory can now be freed.
        live_map.error, live_map.get_report = error, get_report
        live_map.finished_at = time.monotonic()
        with self._lock:
            self._running_maps.pop(live_map.map_id, None)
            self._finished_maps.append(live_map)
            self._n_finished_maps += 1
            self._finished_counts.append((live_map.finished_at, n_results))

    def start_iteration(self, name: str, get_n_products: Callable[[], int]) -> LiveIteration:
        """Add a fit that has just started. For the parameters, see `LiveIteration`."""
        iteration = LiveIteration(name, get_n_products)
        with self._lock:
            self._running_iterations.append(iteration)
        return iteration

    def finish_iteration(self, iteration: LiveIteration) -> None:
        """Record the end of a fit."""
        iteration.finish()
        with self._lock:
            if iteration in self._running_iterations:
                self._running_iterations.remove(iteration)
                self._finished_iterations.append(iteration)

    def seconds_until_next_snapshot(self) -> float:
        """Return the seconds until `take_snapshot` would return a new snapshot instead of the latest one."""
        return max(0.0, self._next_snapshot_at - time.monotonic())

    def take_json_snapshot(self) -> str:
        """Return the result of `take_snapshot` as JSON text. Each snapshot is encoded only once."""
        snapshot, started_at = self.take_snapshot(), time.monotonic()
        with self._lock:
            if self._json_snapshot is not None and self._json_snapshot[0] is snapshot:
                return self._json_snapshot[1]
        text = snapshot.to_json()
        with self._lock:
            self._json_snapshot = snapshot, text
            self._next_snapshot_at += compute_pause_seconds(time.monotonic() - started_at, 0.0)
        return text

    def take_snapshot(self, is_final: bool = False) -> ProgramSnapshot:
        """Return the current state of the program, or the latest snapshot if it is recent enough.

        All live views share one snapshot until a new one is taken. The more time it takes to take a snapshot,
        the longer it is shared, so that snapshots use little of the program's time. If `is_final` is true, a
        new snapshot is always taken.
        """
        now = time.monotonic()
        with self._lock:
            if self._snapshot is not None and now < self._next_snapshot_at and not is_final:
                return self._snapshot
            # While this thread takes a snapshot, other threads get the previous one.
            self._next_snapshot_at = now + MAX_SNAPSHOT_SECONDS
        snapshot = self._build_snapshot(now)
        seconds = time.monotonic() - now
        with self._lock:
            self._snapshot = snapshot
            self._next_snapshot_at = time.monotonic() + compute_pause_seconds(seconds, MIN_SNAPSHOT_INTERVAL)
        return snapshot

    def _build_snapshot(self, now: float) -> ProgramSnapshot:
        with self._lock:
            maps = [*self._finished_maps, *self._running_maps.values()]
            iterations = [*self._finished_iterations, *self._running_iterations]
            n_finished_maps = self._n_finished_maps
            window_start = now - RATE_WINDOW_SECONDS
            recent_counts = [count for when, count in self._finished_counts if when > window_start]
        snapshots = [snapshot for live_map in maps if (snapshot := live_map.take_snapshot()) is not None]
        running_rate = sum(snapshot.results_per_second for snapshot in snapshots if snapshot.is_running)
        return make_program_snapshot(
            sorted(snapshots, key=lambda snapshot: snapshot.map_id),
            [worker for source in self._worker_sources for worker in source()],
            [iteration.take_snapshot() for iteration in iterations],
            n_finished_maps,
            running_rate + sum(recent_counts) / RATE_WINDOW_SECONDS,
            [executor for source in self._executor_sources for executor in source()],
        )


def make_program_snapshot(
    maps: Sequence[MapSnapshot],
    workers: Sequence[WorkerSnapshot] = (),
    iterations: Sequence[IterationSnapshot] = (),
    n_finished_maps: int = 0,
    results_per_second: float = 0.0,
    executors: Sequence[ExecutorSnapshot] = (),
) -> ProgramSnapshot:
    """Return a snapshot of this program. For the arguments, see the attributes of `ProgramSnapshot`.

    The process id, name and machine of the program are added. So are the memory and the processor time of
    workers on this machine.
    """
    return ProgramSnapshot(
        pid=os.getpid(),
        name=get_program_name(),
        host=socket.gethostname(),
        time=round(time.time(), 3),
        n_finished_maps=n_finished_maps,
        results_per_second=round(results_per_second, 1),
        maps=tuple(maps),
        workers=tuple(map(_add_process_usage, workers)),
        iterations=tuple(iterations),
        executors=tuple(executors),
    )


def get_program_name() -> str:
    """Return the name of this program, such as "fit.py"."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c") else "python"


def _add_process_usage(worker: WorkerSnapshot) -> WorkerSnapshot:
    """Add a worker's memory and processor time to its snapshot, if the worker runs on this machine."""
    if worker.host or worker.pid is None or not hasattr(os, "sysconf"):
        return worker
    try:
        status = read_process_status(worker.pid)
    except OSError:  # The process has exited, or this is not Linux.
        return worker
    # These are fields of /proc/<pid>/stat, counted after the process name. Fields 11 and 12 are the user and
    # system time in clock ticks. Field 21 is the resident memory in pages.
    cpu_seconds = (int(status[11]) + int(status[12])) / os.sysconf("SC_CLK_TCK")
    memory_bytes = int(status[21]) * os.sysconf("SC_PAGE_SIZE")
    return replace(worker, memory_bytes=memory_bytes, cpu_seconds=round(cpu_seconds, 2))
