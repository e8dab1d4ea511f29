"""Lithops as the substrate: the only file that imports it, and the only one that touches its inside.

`LithopsRun` is what runs through Lithops share; `FunctionsExecutor` opens runs on a
FunctionExecutor of the caller, `YamlExecutor` on one of its own for each map, made from the caller's
configuration; `localhost_functions` builds a private one.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import logging
import os
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

import polarmap.worker as worker_package
from polarmap.clouds import settings
from polarmap.clouds.limits import worker_of
from polarmap.errors import ExecutorError
from polarmap.executors.base import (
    Outcome,
    Payload,
    check_folder,
    layout_bytes,
    lost,
    outcome_of,
    pickled,
)
from polarmap.executors.private_folder import interpreter, named_for_lithops, private_folder
from polarmap.storage.retry import retry_call
from polarmap.worker import run_task
from polarmap.worker.partial_results import turns
from polarmap.worker.parts import Part, Place
from polarmap.worker.run_task import Reply, Ticket, parse_message

LISTING_SECONDS = 0.1  # between looks for results of subtasks
POLL_SECONDS = 0.003  # between looks at the futures' flags, which live in this process
MONITORING_SECONDS = 0.02  # between Lithops' own looks at its storage
PREFIX = "polarmap"
_building = threading.Lock()
_registering = threading.Lock()
_pickling = 0  # threads that pickle what travels
SETTLE_SECONDS = 0.1  # that a storage may take to finish a PUT whose sender is gone
PROBE_BYTES = 1024
RETURN_SECONDS = 30.0  # that a storage which has answered before may be away
_opened: set[Path] = set()  # configurations whose storage has answered
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


class LithopsRun:
    """The tasks of one map through Lithops: blocks and results as raw objects, replies through futures."""

    # Pure-Python modules that f needs travel along; polarmap's worker side does so by value.
    _modules: Mapping[str, Any] = {"exclude_modules": ["polarmap", "numpy"]}

    def __init__(self, name: str, payload: Payload) -> None:
        self._name, self._f, self._coded, self._faults = name, payload.f, payload.blocks, payload.faults
        self._keep, self._subtasks = payload.keep, payload.subtasks
        # (task, attempt) -> its copies in different jobs, all but one of which will find it claimed
        self._running: dict[tuple[int, int], list[_Running]] = {}
        self._attempts: dict[int, int] = {}  # the latest of each task
        self._jobs: list[_Job] = []
        self._stored: set[int] = set()
        self._launched_at: dict[int, float] = {}
        self._handed_in: set[str] = set()  # keys of subtasks told so far
        self._next_listing = 0.0
        self._prefix = f"{PREFIX}/{uuid.uuid4().hex}"
        self._storage: Any = None
        self._bucket = ""

    def now(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def wait(self, timeout: float) -> list[Outcome]:
        """Poll the flags that Lithops' monitor thread sets."""
        deadline = time.monotonic() + timeout
        while True:
            outcomes = self._listed() if self._subtasks > 1 else []
            outcomes += [outcome for key in list(self._running) for outcome in self._ended(key)]
            outcomes += self._look_after()
            remaining = deadline - time.monotonic()
            if outcomes or remaining <= 0:
                return outcomes
            time.sleep(min(POLL_SECONDS, remaining))

    def running(self) -> Mapping[int, float]:
        """When the running tasks were handed to Lithops: functions start at once, or so it seems."""
        return {task: self._launched_at[task] for task, _ in self._running}

    def is_exhausted(self) -> bool:
        """Whether no attempt is under way."""
        return not self._running

    def _ended(self, key: tuple[int, int]) -> Iterator[Outcome]:
        """The outcome of this attempt, if a copy of it has ended with one."""
        copies = self._running[key]
        for entry in [entry for entry in copies if _has_ended(entry.future)]:
            copies.remove(entry)
            outcome = self._finish(entry)
            if outcome is not None:
                del self._running[key]
                yield from self._handed_in_before(entry.ticket, outcome)
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
            source=self._coded.source or Place("bucket", self._bucket),
            parts=tuple(self._parts(task)),
            structure=self._coded.structure,
            layout=layout,
            result_key=f"{self._prefix}/result/{task}-{attempt}",
            wanted_key=f"{self._prefix}/wanted",
            fresh=self._coded.source is None,
            keep=self._keep,
            turns=turns(task, self._subtasks),
            fault=None if fault is None else (fault.kind, fault.seconds, fault.attempts),
            **where,
        )

    def _map(self, functions: Any, tickets: Sequence[Ticket], timeout: int | None) -> None:
        """Hand tickets to Lithops as one job."""
        job = _Job(functions)
        self._jobs.append(job)
        fields = [{"fields": ticket.plain()} for ticket in tickets]
        try:
            with pickled_by_value():
                task = run_task.make_task(self._f)
                futures = functions.map(task, fields, chunksize=1, timeout=timeout, **self._modules)
        except Exception as error:
            pickled(self._f, self._name)  # the likely reason, in plain words
            raise ExecutorError(f"{self._name} takes no job: {type(error).__name__}: {error}") from error
        for ticket, future in zip(tickets, futures):
            self._launched_at[ticket.task] = time.monotonic()
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

    def _listed(self) -> list[Outcome]:
        """The results of subtasks that workers have stored since the last look."""
        if time.monotonic() < self._next_listing:
            return []
        try:
            keys = self._storage.list_keys(self._bucket, f"{self._prefix}/subtask/")
        except Exception:  # the ends of the tasks tell what cannot be reached
            keys = []
        found = [self._taken_in(key) for key in sorted(keys) if key not in self._handed_in]
        self._next_listing = time.monotonic() + LISTING_SECONDS
        return [outcome for outcome in found if outcome is not None]

    def _taken_in(self, key: str) -> Outcome | None:
        """The outcome of a subtask; None while its object is still being written."""
        try:
            reply = parse_message(bytes(self._storage.get_object(self._bucket, key)))
        except Exception:
            return None
        if reply is None:
            return None
        self._handed_in.add(key)
        return outcome_of(reply)._replace(over=False)

    def _handed_in_before(self, ticket: Ticket, outcome: Outcome) -> list[Outcome]:
        """The results of a task's subtasks that were not told yet, and its end."""
        keys = [ticket.subtask_key(one) for one in ticket.turns if one not in outcome.subtasks]
        earlier = [self._taken_in(key) for key in keys if key not in self._handed_in]
        found = [one for one in earlier if one is not None]
        if len(found) < len(earlier) and outcome.failure is None:
            message = f"{len(earlier) - len(found)} results of its subtasks could not be read"
            return [*found, lost(ticket.task, ticket.attempt, message)]
        return [*found, outcome]

    def _parts(self, task: int) -> Sequence[Part]:
        """What a worker reads: parts of a stored array, or the pieces that we store ourselves."""
        if self._coded.source is not None:
            return self._coded.parts(task)
        sizes = [layout_bytes([layout]) for layout in self._coded.layout(task)]
        pieces = self._coded.pieces(task)
        if len(pieces) == 1:
            sizes = [sum(sizes)]
        return [
            Part(f"{self._prefix}/block/{piece}", size) for piece, size in zip(pieces, sizes, strict=True)
        ]

    def _unstored(self, tasks: Sequence[int]) -> list[int]:
        """The pieces of these tasks that no one has stored yet, each once, as stored from now on."""
        if self._coded.source is not None:
            return []
        pieces = [piece for task in tasks for piece in self._coded.pieces(task)]
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._stored]
        self._stored.update(new)
        return new

    def _put(self, piece: int) -> None:
        data = b"".join(leaf.tobytes() for leaf in self._coded.piece(piece))
        key = f"{self._prefix}/block/{piece}"
        retry_call(partial(self._storage.put_object, self._bucket, key, data), RETURN_SECONDS)

    def _count_attempts(self, tasks: Sequence[int]) -> None:
        """These are about to be started, for the first time or once more."""
        for task in tasks:
            self._attempts[task] = self._attempts.get(task, -1) + 1


class FunctionsExecutor:
    """A FunctionExecutor that belongs to the caller."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self.name = f"lithops/{functions.backend}"
        self.worker = worker_of(functions.config)

    def open(self, payload: Payload) -> FunctionsRun:
        """Further jobs on it; ExecutorError for storage that its workers cannot reach."""
        return FunctionsRun(self.name, payload, self._functions, owned=False)


class YamlExecutor:
    """A Lithops configuration of the caller, which is opened for each map and ended with it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        config = _complete(path)
        self.name = f"lithops/{config['lithops']['backend']}"
        self.worker = worker_of(config)

    def open(self, payload: Payload) -> FunctionsRun:
        """Jobs on a FunctionExecutor of its own; ExecutorError if Lithops cannot make one."""
        functions = open_functions(self._path)
        try:
            return FunctionsRun(self.name, payload, functions, owned=True)
        except BaseException:
            end(functions)
            raise


class FunctionsRun(LithopsRun):
    """The tasks of one map on a FunctionExecutor; one that is `owned` ends with it."""

    def __init__(self, name: str, payload: Payload, functions: Any, owned: bool) -> None:
        super().__init__(name, payload)
        self._functions, self._owned = functions, owned
        self._siblings: list[Any] = []
        self._storage, self._bucket = functions.storage, functions.storage.bucket
        self._check_source(self._coded.source, "lies in")
        self._check_source(self._keep and self._keep.source, "is to stay in")

    def submit(self, tasks: Sequence[int]) -> None:
        """Store the blocks, then start one job: functions rented by the second must not wait."""
        is_first = not self._attempts
        if is_first and self._coded.source is None:
            self._coded.leaves(max(tasks))  # encode before anything is stored: its errors are the caller's
        self._store({f"{self._prefix}/wanted": b"wanted"} if is_first else {}, tasks)
        if is_first and len(tasks) == self._coded.n:
            self._coded.release()
        self._count_attempts(tasks)
        self._launch(tasks, self._functions if is_first else self._sibling())

    def _store(self, objects: Mapping[str, bytes], tasks: Sequence[int]) -> None:
        """Put these objects and the blocks of these tasks."""
        try:
            for key, data in objects.items():
                retry_call(partial(self._storage.put_object, self._bucket, key, data), RETURN_SECONDS)
            with ThreadPoolExecutor(TRANSFERS) as pool:
                for done in [pool.submit(self._put, piece) for piece in self._unstored(tasks)]:
                    done.result()
        except Exception as error:
            raise ExecutorError(
                f"the blocks could not be stored in bucket {self._bucket!r}: {type(error).__name__}: {error}"
            ) from error

    def close(self) -> None:
        """Take the wanted key away, drop or kill what is pending, remove the objects."""
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
        self._jobs = []
        siblings, self._siblings = self._siblings, []
        for functions in siblings:
            end(functions)
        jobs = {future.job_key for future in ours} | {functions.executor_id for functions in siblings}
        if self._owned:
            jobs.add(self._functions.executor_id)
        prefixes = [f"{self._prefix}/", *(f"lithops.jobs/{job}" for job in jobs)]
        remove_objects(self._storage, prefixes)
        if pending:  # what was on its way when its writer was killed
            time.sleep(SETTLE_SECONDS)
            remove_objects(self._storage, prefixes)
        if self._owned:
            end(self._functions)

    def _check_source(self, source: Place | None, use: str) -> None:
        """Refuse storage that workers of this backend cannot reach."""
        if source is None:
            return
        if source.kind == "driver":
            check_folder(source)
        if source.kind == "folder" and self._functions.backend != "localhost":
            raise ExecutorError(
                f"the array {use} folder {source.place!r} of this machine, which workers on "
                f"{self._functions.backend} cannot reach: use storage= of that backend"
            )
        if source.kind == "bucket" and source.backend != self._storage.backend:
            raise ExecutorError(
                f"the array {use} {source.backend} bucket {source.place!r}, but this executor stores in "
                f"{self._storage.backend}: use the Lithops configuration of that bucket for both"
            )

    def _launch(self, tasks: Sequence[int], functions: Any) -> None:
        where: dict[str, Any] = {"claim": None, "driver": None, "scratch": None, "nice": 0}
        tickets = [self._ticket(task, **where) for task in tasks]
        self._map(functions, tickets, None)

    def _sibling(self) -> Any:
        """What runs a further job at once: on this machine an executor runs its jobs one by one."""
        if self._functions.backend != "localhost":
            return self._functions
        with contextlib.suppress(Exception):
            config = copy.deepcopy(self._functions.config)
            self._siblings.append(load_lithops().FunctionExecutor(config=config, log_level=None))
            return self._siblings[-1]
        return self._functions

    def _look_after(self) -> list[Outcome]:
        for functions in (self._functions, *self._siblings):
            running = [
                entry.future
                for copies in self._running.values()
                for entry in copies
                if entry.job.functions is functions
            ]
            if running and not functions.job_monitor.is_alive():
                functions.job_monitor.start(fs=running)
        return []


def open_functions(path: str | os.PathLike[str]) -> Any:
    """A FunctionExecutor from a Lithops configuration file."""
    file = Path(path)
    config = settings.read(file)
    lithops, missing = load_lithops(), _missing_settings(config)
    with _naming(file, config):
        functions = retry_call(
            lambda: lithops.FunctionExecutor(config_file=str(file), log_level=None, **missing),
            RETURN_SECONDS if file.absolute() in _opened else 0.0,
        )
    _opened.add(file.absolute())
    return functions


def close_functions(functions: Any) -> None:
    """End a FunctionExecutor of ours that ran maps of others, and remove what it stored."""
    end(functions)
    time.sleep(SETTLE_SECONDS)  # what was on its way when its writer was killed
    remove_objects(functions.storage, [f"lithops.jobs/{functions.executor_id}"])


def _complete(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """A configuration with Lithops' defaults, without asking anything of its cloud."""
    file = Path(path)
    config = settings.read(file)
    lithops, missing = load_lithops(), _missing_settings(config)
    with _naming(file, config):
        whole: dict[str, Any] = lithops.config.default_config(str(file), None, {"backend": missing})
    return whole


@contextlib.contextmanager
def _naming(file: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """What Lithops raises becomes an ExecutorError that names the file, and what to install."""
    try:
        yield
    except Exception as error:
        hint = settings.extra_hint(config, error)
        raise ExecutorError(
            f"Lithops cannot use {str(file)!r}: {type(error).__name__}: {error}{hint}"
        ) from error


def remove_objects(storage: Any, prefixes: Collection[str]) -> None:
    """Remove what lies below them; a storage that is down must not hide why a map ended."""
    try:
        for prefix in prefixes:
            keys = storage.list_keys(storage.bucket, prefix)
            if keys:
                storage.delete_objects(storage.bucket, keys)
    except Exception as error:
        warnings.warn(
            f"objects below {', '.join(prefixes)} in bucket {storage.bucket!r} may be left: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def probe_storage(functions: Any) -> float:
    """Seconds to put, get and delete a small object; ExecutorError says which of them failed."""
    storage, data = functions.storage, os.urandom(PROBE_BYTES)
    key = f"{PREFIX}/{uuid.uuid4().hex}/probe"
    began, step = time.monotonic(), "written"
    try:
        storage.put_object(storage.bucket, key, data)
        step = "read back"
        same = bytes(storage.get_object(storage.bucket, key)) == data
        step = "deleted"
        storage.delete_object(storage.bucket, key)
    except Exception as error:
        raise ExecutorError(
            f"an object in bucket {storage.bucket!r} could not be {step}: {type(error).__name__}: {error}"
        ) from error
    if not same:
        raise ExecutorError(f"an object in bucket {storage.bucket!r} was read back with other bytes")
    return time.monotonic() - began


def _missing_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a localhost configuration should not leave to Lithops: its interpreter is `python`."""
    if settings.backend_of(config) == "localhost" and "runtime" not in (config.get("localhost") or {}):
        return {"runtime": named_for_lithops()}
    return {}


def localhost_functions(count: int) -> Any:
    """A FunctionExecutor on this machine with `count` slots and all its files in our folder."""
    with _no_copy_of_lithops():
        functions = load_lithops().FunctionExecutor(config=_localhost_config(count), log_level=None)
    functions.compute_handler.env._ensure_runner = lambda: None
    _use_private_storage(functions)
    metadata = _runtime_metadata()
    # Spares one interpreter start per process, and a file in the user's Lithops cache.
    functions.internal_storage.get_runtime_meta = lambda key: metadata
    return functions


def end(functions: Any) -> None:
    """Kill what a FunctionExecutor of ours runs, and let go of it.

    By the keys of its jobs: without them Lithops kills what runs, but not a job that its thread
    is just about to start.
    """
    keys = {future.job_key for future in functions.futures}
    if keys:
        with contextlib.suppress(Exception):
            functions.compute_handler.clear(keys, exception=RuntimeError("stopped"))
    with contextlib.suppress(Exception):
        functions.__exit__(None, None, None)
    atexit.unregister(functions._clean_at_exit)
    with contextlib.suppress(Exception):  # singularity and k8s keep a connection to RabbitMQ
        functions.compute_handler.backend.connection.close()
    manager = getattr(functions.compute_handler, "job_manager", None)
    if manager is not None:
        manager.join(timeout=5)


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
            "runtime": str(interpreter()),
            "worker_processes": count,
        },
    }


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


def _has_ended(future: Any) -> bool:
    return bool(future.ready or future.success or future.done)


def _reason(future: Any) -> str:
    """Why Lithops says a task gave no result."""
    error = future._exception[1] if isinstance(future._exception, tuple) else future._exception
    text = str(error) or "it never reported"
    return text if isinstance(error, RuntimeError | MemoryError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def pickled_by_value() -> Iterator[None]:
    """Let what runs on the worker travel whole: a worker needs numpy, not polarmap.

    cloudpickle's register is one for all threads: the last to leave takes the entry out.
    """
    global _pickling
    with _registering:
        _pickling += 1
        cloudpickle.register_pickle_by_value(worker_package)
    try:
        yield
    finally:
        with _registering:
            _pickling -= 1
            if not _pickling:
                cloudpickle.unregister_pickle_by_value(worker_package)
