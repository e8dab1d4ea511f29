"""The embedded default: Lithops on this machine, private, killed and removed at the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polarmap.clouds.limits import Worker
from polarmap.errors import ExecutorError
from polarmap.executors import slots
from polarmap.executors.attempt_locks import AttemptLocks, Key
from polarmap.executors.base import Outcome, Payload, check_folder
from polarmap.executors.lithops_internals import end, files_of_jobs, localhost_functions, slots_of
from polarmap.executors.lithops_run import LithopsRun
from polarmap.executors.private_folder import private_folder
from polarmap.worker.cores import available_cores
from polarmap.worker.io_lithops import Address

PARITY_NICE = 10  # parity must not take the cores from data tasks that are doing fine
TASK_SECONDS = 3600  # limit of one task; coded_map's timeout is the useful one
BOOT_SECONDS = 10.0  # that the workers of a job may take to start
LOST_SECONDS = 1.0  # that a status may lag behind the end of the process that wrote it


class LocalhostExecutor:
    """The embedded default: worker processes on this machine, in a private temporary folder."""

    name = "localhost"
    worker: Worker | None = None

    def open(self, payload: Payload) -> LocalhostRun:
        """Jobs on this machine; ExecutorError for storage elsewhere."""
        check_folder(payload.blocks.source)
        check_folder(payload.output and payload.output.source)
        return LocalhostRun(self.name, payload)


class LocalhostRun(LithopsRun):
    """The tasks of one map in worker processes of this machine.

    Each job is a Lithops executor of its own (3 ms), because one executor runs its jobs one after
    another. The first has a few slots more than cores; when tasks that compute no longer fill
    the cores, the tasks still queued go into a further job, and whichever copy starts first wins.
    """

    _modules: Mapping[str, Any] = {"include_modules": None}  # workers import what the driver can

    def __init__(self, name: str, payload: Payload) -> None:
        self._cores = available_cores()
        self._first = localhost_functions(slots.first_slots(self._cores))
        super().__init__(name, payload, self._first.storage)
        self._busy = slots.BusyTasks()
        self._next_look_at_slots = 0.0
        self._launched = time.monotonic()
        self._seen_begun, self._last_begun = 0, self._launched  # tasks, and when their number grew
        self._locks = AttemptLocks(
            private_folder() / "locks" / os.path.basename(self._objects.address.prefix)
        )
        self._writers: list[threading.Thread] = []
        self._gives_way: Collection[int] = ()  # parity that was started together with the data
        self._write_error: BaseException | None = None
        self._is_closed = False

    def submit(self, tasks: Sequence[int]) -> None:
        """Start the workers first: they boot, and the first ones run, while blocks are written.

        Later tasks get a job of their own, at once; they are needed, so they do not give way.
        """
        is_first, functions, coded = not self._attempts, self._first, self._payload.blocks
        if is_first:
            self._gives_way = frozenset(tasks).intersection(self._payload.low_priority)
        else:
            functions = localhost_functions(min(len(tasks), slots.first_slots(self._cores)))
        self._launch(functions, self._count_attempts(tasks))
        self._write_beside(tasks, is_first and len(tasks) == coded.n)

    def running(self) -> Mapping[int, float]:
        """When each running task was taken by a worker."""
        return {task: one.when for (task, _), one in self._locks.begun(self._running).items()}

    def close(self) -> None:
        """Kill the workers, remove every file."""
        self._is_closed = True
        self._running.clear()
        jobs, self._jobs = self._jobs, []
        everything = {id(one): one for one in (self._first, *(job.functions for job in jobs))}.values()
        for functions in everything:
            end(functions)
            for path in files_of_jobs(functions):
                path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.join()
        self._objects.remove([f"lithops.jobs/{functions.executor_id}" for functions in everything])
        self._locks.remove()

    def _write_beside(self, tasks: Sequence[int], are_all: bool) -> None:
        """Write the blocks of these tasks on a thread."""
        pieces = self._objects.unstored(tasks)
        if pieces or are_all:
            writer = threading.Thread(
                target=self._write, args=(pieces, are_all), name="polarmap-writer", daemon=True
            )
            self._writers.append(writer)
            writer.start()

    def _write(self, pieces: Sequence[int], are_all: bool) -> None:
        """Data blocks, then parity blocks, until the run is closed."""
        try:
            for piece in pieces:
                if self._is_closed:
                    return
                self._objects.put_piece(piece)
            if are_all:
                self._payload.blocks.release()
        except BaseException as error:
            self._write_error = error

    def _launch(self, functions: Any, keys: Sequence[Key]) -> None:
        self._launched, self._begun_before = time.monotonic(), len(self._locks)
        self._map(functions, keys, TASK_SECONDS)

    def _address(self, task: int, attempt: int) -> Address:
        return self._objects.address._replace(
            driver=os.getpid(),
            scratch=str(private_folder()),
            locks=str(self._locks.folder),
            nice=PARITY_NICE if task in self._gives_way and not attempt else 0,
        )

    def _maintain(self) -> list[Outcome]:
        """Open more slots where the cores have nothing to do; tell of tasks whose job has ended."""
        if self._write_error is not None:
            error = self._write_error
            raise ExecutorError(f"the blocks could not be written: {error}") from error
        now = time.monotonic()
        if now < self._next_look_at_slots:
            return []
        self._next_look_at_slots = now + slots.LOOK_SECONDS
        begun = self._locks.begun(self._running)
        queued = [key for key in self._running if key not in begun]
        used = slots.processor_seconds_of({one.process for one in begun.values()})
        busy = self._busy.look(now, used)
        coming = max(0, self._slots_of(queued) - len(begun))  # fork and import for the tasks they take next
        extra = slots.extra_slots(self._cores, busy + coming, len(used) - busy, len(queued))
        if extra and self._is_under_way(now):
            self._launch(localhost_functions(extra), queued)
        return self._lost_workers(now)

    def _slots_of(self, keys: Sequence[Key]) -> int:
        """Of the jobs that will come to these attempts; none when no task has begun for long."""
        if len(self._locks) > self._seen_begun:
            self._seen_begun, self._last_begun = len(self._locks), time.monotonic()
        if time.monotonic() > max(self._last_begun, self._launched) + BOOT_SECONDS:
            return 0
        jobs = {copy.job for key in keys for copy in self._running[key]}
        return sum(slots_of(job.functions) for job in jobs)

    def _is_under_way(self, now: float) -> bool:
        """Whether the latest job has begun to take tasks: until then, patience."""
        return len(self._locks) > self._begun_before or now > self._launched + BOOT_SECONDS

    def _lost_workers(self, now: float) -> list[Outcome]:
        """Tasks whose runner has ended without a word from them."""
        ended = {job for job in self._jobs if job.has_ended(now, LOST_SECONDS)}
        for copies in self._running.values() if ended else ():
            copies[:] = [copy for copy in copies if copy.job not in ended]
        return [self._lose(key) for key, copies in list(self._running.items()) if not copies]
