"""The embedded default: Lithops on this machine, private, killed and removed at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from polarmap.clouds.limits import Worker
from polarmap.errors import ExecutorError
from polarmap.executors import slots
from polarmap.executors.base import Outcome, Payload, check_folder, lost
from polarmap.executors.lithops import LithopsRun, end, localhost_functions, remove_objects
from polarmap.executors.private_folder import private_folder
from polarmap.worker.cores import available_cores
from polarmap.worker.run_task import Ticket

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
        check_folder(payload.keep and payload.keep.source)
        return LocalhostRun(self.name, payload)


class LocalhostRun(LithopsRun):
    """The tasks of one map in worker processes of this machine.

    Each job is a Lithops executor of its own (3 ms), because one executor runs its jobs one after
    another. The first has a few slots more than cores; when tasks that compute no longer fill
    the cores, the tasks still queued go into a further job, and whichever copy starts first wins.
    """

    _modules: Mapping[str, Any] = {"include_modules": None}  # workers import what the driver can

    def __init__(self, name: str, payload: Payload) -> None:
        super().__init__(name, payload)
        self._cores = available_cores()
        self._busy = slots.BusyTasks()
        self._next_look = 0.0
        self._claims = private_folder() / "claims" / self._prefix.rpartition("/")[2]
        self._claims.mkdir(parents=True)
        self._writers: list[threading.Thread] = []
        self._gives_way: Sequence[int] = ()  # parity that was started together with the data
        self._write_error: BaseException | None = None
        self._is_closed = False

    def submit(self, tasks: Sequence[int]) -> None:
        """Start the workers first: they boot, and the first ones run, while blocks are written.

        Later tasks get a job of their own, at once; they are needed, so they do not give way.
        """
        is_first, count = not self._attempts, slots.first_slots(self._cores)
        functions = localhost_functions(count if is_first else min(len(tasks), count))
        if is_first:
            self._storage, self._bucket = functions.storage, functions.storage.bucket
            self._gives_way = [task for task in tasks if task >= self._coded.k]
        self._count_attempts(tasks)
        self._launch(functions, tasks)
        self._write_beside(tasks, is_first and len(tasks) == self._coded.n)

    def running(self) -> Mapping[int, float]:
        """When each running task was claimed by a worker."""
        found, lag = {}, time.time() - time.monotonic()
        for task, attempt in self._running:
            with contextlib.suppress(FileNotFoundError):
                found[task] = os.stat(self._claims / f"{task}-{attempt}").st_mtime - lag
        return found

    def _write_beside(self, tasks: Sequence[int], are_all: bool) -> None:
        """Write the blocks of these tasks on a thread."""
        pieces = self._unstored(tasks)
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
                self._put(piece)
            if are_all:
                self._coded.release()
        except BaseException as error:
            self._write_error = error

    def close(self) -> None:
        """Kill the workers, remove every file."""
        self._is_closed = True
        self._running.clear()
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            end(job.functions)
        prefixes = [f"lithops.jobs/{job.functions.executor_id}" for job in jobs]
        for job in jobs:
            for path in private_folder().glob(f"lithops-*/jobs/{job.functions.executor_id}*"):
                path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.join()
        if self._storage is not None:
            remove_objects(self._storage, [*prefixes, f"{self._prefix}/"])
        shutil.rmtree(self._claims, ignore_errors=True)

    def _launch(self, functions: Any, tasks: Sequence[int]) -> None:
        self._launched, self._claimed = time.monotonic(), len(os.listdir(self._claims))
        self._map(functions, [self._local_ticket(task) for task in tasks], TASK_SECONDS)

    def _local_ticket(self, task: int) -> Ticket:
        claim = self._claims / f"{task}-{self._attempts[task]}"
        return self._ticket(
            task,
            claim=str(claim),
            driver=os.getpid(),
            scratch=str(private_folder()),
            nice=PARITY_NICE if task in self._gives_way and not self._attempts[task] else 0,
        )

    def _look_after(self) -> list[Outcome]:
        if self._write_error is not None:
            error = self._write_error
            raise ExecutorError(f"the blocks could not be written: {error}") from error
        now = time.monotonic()
        if now < self._next_look:
            return []
        self._next_look = now + slots.LOOK_SECONDS
        started, queued = self._started()
        busy = self._busy.look(now, started)
        extra = slots.extra_slots(self._cores, busy, len(started) - busy, len(queued))
        if extra and self._is_under_way(now):
            self._launch(localhost_functions(extra), queued)
        return self._unheard(now)

    def _is_under_way(self, now: float) -> bool:
        """Whether the latest job has begun to take tasks: until then, patience."""
        return len(os.listdir(self._claims)) > self._claimed or now > self._launched + BOOT_SECONDS

    def _started(self) -> tuple[dict[int, float], list[int]]:
        """Processor seconds of the tasks that run, by process, and the tasks not claimed yet."""
        used: dict[int, float] = {}
        queued = []
        for task, attempt in self._running:
            claim = self._claims / f"{task}-{attempt}"
            try:
                process = int(claim.read_text() or 0)
            except FileNotFoundError:
                queued.append(task)
                continue
            seconds = slots.processor_seconds(process)
            if seconds is not None:
                used[process] = seconds
        return used, queued

    def _unheard(self, now: float) -> list[Outcome]:
        """Tasks whose runner has ended without a word from them."""
        for job in self._jobs:
            process = job.process
            if job.ended_at is None and process is not None and process.poll() is not None:
                job.ended_at = now
        ended = {job for job in self._jobs if job.ended_at and now - job.ended_at > LOST_SECONDS}
        outcomes = []
        for key, copies in list(self._running.items()):
            copies[:] = [entry for entry in copies if entry.job not in ended]
            if not copies:
                del self._running[key]
                outcomes.append(lost(*key, "its worker process ended without reporting"))
        return outcomes
