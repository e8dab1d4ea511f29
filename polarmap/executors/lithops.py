"""Lithops as the substrate: the only file that imports it, and the only one that touches its inside.

Two executors share one base. `LocalhostExecutor` is the embedded default: private, killed and
removed at the end. `ForeignExecutor` runs on a FunctionExecutor or configuration of the caller.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

from polarmap import tree, worker
from polarmap.errors import ExecutorError
from polarmap.executors import slots
from polarmap.executors.base import Coded, Function, Outcome, layout_bytes, lost, outcome_of
from polarmap.worker import Fault, Reply, Ticket

POLL_SECONDS = 0.003  # between looks at the futures' flags, which live in this process
MONITORING_SECONDS = 0.02  # between Lithops' own looks at its storage
BOOT_SECONDS = 10.0  # that the workers of a job may take to start
LOST_SECONDS = 1.0  # that a status may lag behind the end of the process that wrote it
TASK_SECONDS = 3600  # limit of one task on localhost; coded_map's timeout is the useful one
PREFIX = "polarmap"
_building = threading.Lock()
TRANSFERS = 16  # objects moved at once to or from a remote storage


class _Running(NamedTuple):
    """One copy of an attempt of a task that has not ended."""

    ticket: Ticket
    future: Any
    job: _Job


class _Job:
    """One Lithops job: on localhost on an executor of its own, so that jobs do not queue."""

    def __init__(self, functions: Any) -> None:
        self.functions = functions
        self.futures: list[Any] = []
        self.ended_at: float | None = None

    @property
    def process(self) -> Any:
        """The runner that forks this job's workers (localhost, version 1); None before it starts."""
        jobs = self.functions.compute_handler.env.jobs
        return next(iter(jobs.values()), None)


class _LithopsExecutor:
    """What both have in common: blocks and results as raw objects, replies through futures."""

    name = "lithops"
    # Pure-Python modules that f needs travel along; polarmap's worker side does so by value.
    _modules: Mapping[str, Any] = {"exclude_modules": ["polarmap", "numpy"]}

    def __init__(self) -> None:
        # (task, attempt) -> its copies in different jobs, all but one of which will find it claimed
        self._running: dict[tuple[int, int], list[_Running]] = {}
        self._jobs: list[_Job] = []
        self._prefix = f"{PREFIX}/{uuid.uuid4().hex}"
        self._storage: Any = None
        self._bucket = ""
        self._stopped = False

    def now(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def wait(self, timeout: float) -> list[Outcome]:
        """Poll the flags that Lithops' monitor thread sets."""
        deadline = time.monotonic() + timeout
        while True:
            outcomes = [outcome for key in list(self._running) for outcome in self._ended(key)]
            outcomes += self._look_after()
            remaining = deadline - time.monotonic()
            if outcomes or remaining <= 0:
                return outcomes
            time.sleep(min(POLL_SECONDS, remaining))

    def _ended(self, key: tuple[int, int]) -> Iterator[Outcome]:
        """The outcome of this attempt, if a copy of it has ended with one."""
        copies = self._running[key]
        for entry in [entry for entry in copies if _has_ended(entry.future)]:
            copies.remove(entry)
            outcome = self._finish(entry)
            if outcome is not None:
                del self._running[key]
                yield outcome
                return
        if not copies:
            del self._running[key]
            yield lost(*key, "its worker process ended without reporting")

    def _look_after(self) -> list[Outcome]:
        """Outcomes of tasks that will never report."""
        return []

    def _ticket(self, task: int, **where: Any) -> Ticket:
        layout = self._coded.layout(task)
        attempt = self._attempts[task]
        fault = self._faults.get(task)
        return Ticket(
            task=task,
            attempt=attempt,
            bucket=self._bucket,
            block_key=f"{self._prefix}/block/{task}",
            block_bytes=layout_bytes(layout),
            structure=self._coded.structure,
            layout=layout,
            result_key=f"{self._prefix}/result/{task}-{attempt}",
            wanted_key=f"{self._prefix}/wanted",
            fault=None if fault is None else (fault.kind, fault.seconds, fault.attempts),
            **where,
        )

    def _map(self, functions: Any, tickets: Sequence[Ticket], timeout: int | None) -> None:
        """Hand tickets to Lithops as one job."""
        job = _Job(functions)
        self._jobs.append(job)
        with _pickled_by_value():
            futures = functions.map(
                worker.make_task(self._f),
                [{"fields": tuple(ticket)} for ticket in tickets],
                chunksize=1,
                timeout=timeout,
                **self._modules,
            )
        for ticket, future in zip(tickets, futures):
            copies = self._running.setdefault((ticket.task, ticket.attempt), [])
            copies.append(_Running(ticket, future, job))
            job.futures.append(future)

    def _finish(self, entry: _Running) -> Outcome | None:
        """The outcome of a future that has ended; None for a copy that found its task claimed."""
        ticket, future, job = entry
        internal = job.functions.internal_storage
        if future.done:  # without our having asked: Lithops gave it up
            return lost(ticket.task, ticket.attempt, _reason(future))
        try:
            future._write_activation_logs = lambda: None  # else it keeps logs of every task
            future.status(throw_except=False, internal_storage=internal)
            if future.error:
                return lost(ticket.task, ticket.attempt, _reason(future))
            plain = future.result(throw_except=False, internal_storage=internal)
        except Exception as error:
            return lost(ticket.task, ticket.attempt, f"{type(error).__name__}: {error}")
        if plain is None:
            return None
        reply = Reply.parse(plain)
        if reply.result is None or len(reply.result.data) or not layout_bytes(reply.result.layout):
            return outcome_of(reply)
        try:
            data = self._storage.get_object(self._bucket, ticket.result_key)
        except Exception as error:
            message = f"its result could not be read: {type(error).__name__}: {error}"
            return lost(ticket.task, ticket.attempt, message)
        return outcome_of(reply, data)

    def _put(self, task: int) -> None:
        leaves = self._coded.leaves(task)
        data = b"".join(leaf.tobytes() for leaf in leaves)
        self._storage.put_object(self._bucket, f"{self._prefix}/block/{task}", data)

    def _remove_objects(self, prefix: str) -> None:
        keys = self._storage.list_keys(self._bucket, prefix)
        if keys:
            self._storage.delete_objects(self._bucket, keys)

    def _begin(self, f: Function, coded: Coded, faults: Mapping[int, Fault], storage: Any) -> None:
        self._f, self._coded, self._faults = f, coded, faults
        self._attempts = [0] * coded.n
        self._storage, self._bucket = storage, storage.bucket


class LocalhostExecutor(_LithopsExecutor):
    """The embedded default: worker processes on this machine, in a private temporary folder.

    Each job is a Lithops executor of its own (3 ms), because one executor runs its jobs one after
    another. The first has a few slots more than cores; when tasks that compute no longer fill
    the cores, the tasks still queued go into a further job, and whichever copy starts first wins.
    """

    name = "localhost"
    _modules: Mapping[str, Any] = {"include_modules": None}  # workers import what the driver can

    def __init__(self) -> None:
        super().__init__()
        self._cores = slots_of_this_machine()
        self._busy = slots.BusyTasks()
        self._next_look = 0.0
        self._claims: Path | None = None
        self._writer: threading.Thread | None = None
        self._write_error: BaseException | None = None

    def start(self, f: Function, coded: Coded, faults: Mapping[int, Fault]) -> None:
        """Start the workers first: they boot, and the first ones run, while blocks are written."""
        home = private_folder()
        self._claims = home / "claims" / self._prefix.rpartition("/")[2]
        self._claims.mkdir(parents=True)
        functions = self._functions(slots.first_slots(self._cores))
        self._begin(f, coded, faults, functions.storage)
        self._launch(functions, range(coded.n))
        self._writer = threading.Thread(target=self._write, name="polarmap-writer", daemon=True)
        self._writer.start()

    def _write(self) -> None:
        """Data blocks, then parity blocks, until the executor stops."""
        try:
            for task in range(self._coded.n):
                if self._stopped:
                    return
                self._put(task)
        except BaseException as error:
            self._write_error = error

    def retry(self, tasks: Sequence[int]) -> None:
        """Start them in a job of their own."""
        for task in tasks:
            self._attempts[task] += 1
        self._launch(self._functions(min(len(tasks), slots.first_slots(self._cores))), tasks)

    def stop(self) -> None:
        """Kill the workers, remove every file."""
        self._stopped = True
        self._running.clear()
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            functions = job.functions
            with contextlib.suppress(Exception):
                functions.__exit__(None, None, None)
            atexit.unregister(functions._clean_at_exit)
            manager = functions.compute_handler.job_manager
            if manager is not None:
                manager.join(timeout=5)
        for job in jobs:
            self._remove_objects(f"lithops.jobs/{job.functions.executor_id}")
            for path in private_folder().glob(f"lithops-*/jobs/{job.functions.executor_id}*"):
                path.unlink(missing_ok=True)
        if self._writer is not None:
            self._writer.join()
        if self._storage is not None:
            self._remove_objects(self._prefix + "/")
        if self._claims is not None:
            shutil.rmtree(self._claims, ignore_errors=True)

    def _functions(self, count: int) -> Any:
        lithops = load_lithops()
        with _no_copy_of_lithops():
            functions = lithops.FunctionExecutor(config=_localhost_config(count), log_level=None)
        functions.compute_handler.env._ensure_runner = lambda: None
        _use_private_storage(functions)
        metadata = _runtime_metadata()
        # Spares one interpreter start per process, and a file in the user's Lithops cache.
        functions.internal_storage.get_runtime_meta = lambda key: metadata
        return functions

    def _launch(self, functions: Any, tasks: Sequence[int]) -> None:
        self._launched, self._claimed = time.monotonic(), len(os.listdir(self._claims or "."))
        self._map(functions, [self._local_ticket(task) for task in tasks], TASK_SECONDS)

    def _local_ticket(self, task: int) -> Ticket:
        assert self._claims is not None
        claim = self._claims / f"{task}-{self._attempts[task]}"
        home = str(private_folder())
        return self._ticket(task, claim=str(claim), driver=os.getpid(), scratch=home)

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
            self._launch(self._functions(extra), queued)
        return self._abandoned(now)

    def _is_under_way(self, now: float) -> bool:
        """Whether the latest job has begun to take tasks: until then, patience."""
        return len(os.listdir(self._claims or ".")) > self._claimed or now > self._launched + BOOT_SECONDS

    def _started(self) -> tuple[dict[int, float], list[int]]:
        """Processor seconds of the tasks that run, by process, and the tasks not claimed yet."""
        assert self._claims is not None
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

    def _abandoned(self, now: float) -> list[Outcome]:
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


class ForeignExecutor(_LithopsExecutor):
    """A FunctionExecutor that belongs to the caller, or one made from the caller's configuration."""

    def __init__(self, functions: Any, owned: bool) -> None:
        super().__init__()
        self._functions, self._owned = functions, owned
        self.name = f"lithops/{functions.backend}"

    def start(self, f: Function, coded: Coded, faults: Mapping[int, Fault]) -> None:
        """Store the blocks, then start one job: functions rented by the second must not wait."""
        self._begin(f, coded, faults, self._functions.storage)
        self._storage.put_object(self._bucket, f"{self._prefix}/wanted", b"wanted")
        with ThreadPoolExecutor(TRANSFERS) as pool:
            for done in [pool.submit(self._put, task) for task in range(coded.n)]:
                done.result()
        self._launch(range(coded.n))

    def retry(self, tasks: Sequence[int]) -> None:
        """A further job on the same executor."""
        for task in tasks:
            self._attempts[task] += 1
        self._launch(tasks)

    def stop(self) -> None:
        """Take the wanted key away, drop or kill what is pending, remove the objects."""
        if self._storage is not None:
            with contextlib.suppress(Exception):
                self._storage.delete_object(self._bucket, f"{self._prefix}/wanted")
        pending = [entry.future for copies in self._running.values() for entry in copies]
        ours = {future for job in self._jobs for future in job.futures}
        self._running.clear()
        if pending:
            keys = {future.job_key for future in pending}
            with contextlib.suppress(Exception):
                self._functions.job_monitor.remove(pending)
                self._functions.compute_handler.clear(keys, exception=TimeoutError("abandoned"))
        self._functions.futures[:] = [one for one in self._functions.futures if one not in ours]
        if self._storage is not None:
            self._remove_objects(self._prefix + "/")
            if self._owned:
                self._remove_objects(f"lithops.jobs/{self._functions.executor_id}")
            for key in {future.job_key for future in ours}:
                self._remove_objects(f"lithops.jobs/{key}")
        self._jobs = []
        if self._owned:
            with contextlib.suppress(Exception):
                self._functions.__exit__(None, None, None)
            atexit.unregister(self._functions._clean_at_exit)

    def _launch(self, tasks: Sequence[int]) -> None:
        where = {"claim": None, "driver": None, "scratch": None}
        self._map(self._functions, [self._ticket(task, **where) for task in tasks], None)

    def _look_after(self) -> list[Outcome]:
        monitor = self._functions.job_monitor
        if self._running and not monitor.is_alive():
            monitor.start(fs=[entry.future for copies in self._running.values() for entry in copies])
        return []


def from_yaml(path: str | os.PathLike[str]) -> ForeignExecutor:
    """An executor from a Lithops configuration file."""
    file = Path(path)
    if not file.is_file():
        raise ExecutorError(f"there is no Lithops configuration {str(file)!r}")
    try:
        functions = load_lithops().FunctionExecutor(
            config_file=str(file), log_level=None, **_missing_settings(file)
        )
    except Exception as error:
        raise ExecutorError(f"Lithops cannot use {str(file)!r}: {type(error).__name__}: {error}") from error
    return ForeignExecutor(functions, owned=True)


def _missing_settings(file: Path) -> dict[str, Any]:
    """What a localhost configuration should not leave to Lithops: its interpreter is `python`."""
    from lithops.config import load_yaml_config

    config = load_yaml_config(str(file)) or {}
    backend = config.get("lithops", {}).get("backend")
    if backend == "localhost" and "runtime" not in (config.get("localhost") or {}):
        return {"runtime": sys.executable}
    return {}


def slots_of_this_machine() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def private_folder() -> Path:
    """A temporary folder of this process, removed at its exit; stale ones of others go now."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"polarmap-{os.getpid()}-")).resolve()
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@cache
def load_lithops() -> Any:
    """Lithops, quiet unless the caller has set up logging."""
    first = "lithops" not in sys.modules
    import lithops

    logging.getLogger("lithops").addHandler(logging.NullHandler())
    if first:
        atexit.register(_remove_empty_folders)
    return lithops


def _remove_empty_folders() -> None:
    """Importing Lithops makes folders in the temporary folder; leave none that stayed empty."""
    from lithops import constants

    for folder in (constants.JOBS_DIR, constants.LOGS_DIR, constants.CLEANER_DIR, constants.LITHOPS_TEMP_DIR):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


@cache
def _runtime_metadata() -> dict[str, Any]:
    load_lithops()
    from lithops.worker.utils import get_runtime_metadata

    metadata: dict[str, Any] = get_runtime_metadata()
    return metadata


def _localhost_config(count: int) -> dict[str, Any]:
    return {
        "lithops": {
            "backend": "localhost",
            "storage": "localhost",
            "monitoring": "storage",
            "monitoring_interval": MONITORING_SECONDS,
            "data_cleaner": False,
        },
        "localhost": {
            "version": 1,
            "runtime": str(_interpreter()),
            "worker_processes": count,
        },
    }


def _interpreter() -> Path:
    """What runs Lithops' runner: this interpreter, this installation of Lithops, our folder.

    Lithops would run a copy of itself in its shared folder, which any other process replaces.
    Workers import what the driver can: they get its module search path.
    """
    folder = private_folder()
    (folder / "paths").write_text(json.dumps([os.path.abspath(path) for path in sys.path]))
    script = folder / "python"
    if not script.exists():
        run = (
            f"import json, sys; sys.path[:] = json.load(open('{folder}/paths')); "
            "from lithops.localhost.v1.runner import main; main()"
        )
        script.write_text(f'#!/bin/sh\nshift\nTMPDIR="{folder}" exec "{sys.executable}" -c "{run}" "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@contextlib.contextmanager
def _no_copy_of_lithops() -> Iterator[None]:
    """Keep an executor from copying Lithops to the shared folder while it is built."""
    from lithops.localhost.v1 import localhost

    with _building:
        copy = localhost.copy_lithops_package
        localhost.copy_lithops_package = lambda *paths: None
        try:
            yield
        finally:
            localhost.copy_lithops_package = copy


def _use_private_storage(functions: Any) -> None:
    """An absolute bucket takes storage and job files out of Lithops' shared folder."""
    bucket = str(private_folder() / "storage")
    functions.config["localhost"]["storage_bucket"] = bucket
    functions.internal_storage.bucket = functions.storage.bucket = bucket


def _sweep() -> None:
    """Remove the folders of processes that were killed before they could."""
    for path in glob.glob(os.path.join(tempfile.gettempdir(), "polarmap-*-*")):
        owner = path.rpartition("polarmap-")[2].partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}") and os.path.exists("/proc/self"):
            shutil.rmtree(path, ignore_errors=True)


def _has_ended(future: Any) -> bool:
    return bool(future.ready or future.success or future.done)


def _reason(future: Any) -> str:
    """Why Lithops says a task gave no result."""
    error = future._exception[1] if isinstance(future._exception, tuple) else future._exception
    text = str(error) or "it never reported"
    return text if isinstance(error, RuntimeError | MemoryError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _pickled_by_value() -> Iterator[None]:
    """Let what runs on the worker travel whole: a worker needs numpy, not polarmap."""
    modules = [worker, tree]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
