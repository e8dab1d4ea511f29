"""Lithops: the tasks of a map as functions, or workers that stay; here, by a configuration or an executor."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from polarmap.clouds.limits import Worker, worker_of
from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError, StorageError, warn
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload, check_reachable, lost
from polarmap.executors.block_store import BlockStore
from polarmap.executors.choices import check_path, is_localhost, is_path
from polarmap.executors.keys import check_may_leave
from polarmap.executors.lithops_internals import LostError, look_seldom, module_sources, objects_of
from polarmap.executors.lithops_jobs import InterpreterError, Jobs, open_storage, read_configuration
from polarmap.executors.objects import Join, ObjectLinks
from polarmap.executors.owned_folder import private_folder
from polarmap.executors.pickling import SentState, pickled
from polarmap.executors.remote_workers import NO_MACHINES, Site
from polarmap.worker.lithops_tasks import LIVENESS_KEY, delete_prefix, make_lithops_task
from polarmap.worker.persistent_worker import DriverAddress, make_worker_task
from polarmap.worker.retries import retry_request
from polarmap.worker.segments import Location
from polarmap.worker.task_records import to_plain_tuple

PREFIX = "polarmap"  # of all keys of maps
REMOVE_PAUSES = (0.0, 0.1, 0.5, 2.0, 0.0)  # seconds before looking again whether objects are gone
PARITY_NICE = 10  # parity must not take the cores of this machine from data tasks that are doing fine
HERE_SECONDS = 20 * 86_400.0  # that a worker on this machine may take: in milliseconds this fits 32 bits
SPARE_SECONDS = 15.0  # of what a cloud allows, for starting and reporting


class LithopsExecutor:
    """What Lithops runs. A FunctionExecutor of our own is opened for each map and ended with it.

    Parameters
    ----------
    choice : "localhost", path or lithops.FunctionExecutor
        With "localhost" there is a process for every task, and all files lie in our temporary folder.
    """

    def __init__(self, choice: Any) -> None:
        self._choice = choice
        self.name = "localhost"
        self.worker: Worker | None = None
        if is_path(choice):
            check_path(choice)
        if not is_localhost(choice):
            config = read_configuration(choice) if is_path(choice) else choice.config
            self.name, self.worker = f"lithops/{config['lithops']['backend']}", worker_of(config)
        self.is_here = self.name in ("localhost", "lithops/localhost")

    def open(self, payload: Payload) -> LithopsRun:
        """Its jobs; ExecutorError if Lithops takes none, or for storage that its workers cannot reach."""
        check_may_leave(payload, self.name)
        jobs = Jobs(self._choice, shares=True)
        try:
            check_reachable(payload.blocks.source, "lies in", *jobs.reach)
            check_reachable(payload.output and payload.output.location, "is to stay in", *jobs.reach)
            return LithopsRun(jobs, payload)
        except BaseException:
            jobs.close()
            raise


class LithopsRun:
    """The tasks of one map through Lithops; blocks are raw objects."""

    now = staticmethod(time.monotonic)

    def __init__(self, jobs: Jobs, payload: Payload) -> None:
        self._jobs, self._payload = jobs, payload
        self._state = SentState(payload.f)
        self._storage = jobs.functions.storage
        self._prefix = f"{PREFIX}/{uuid.uuid4().hex}"
        self._storing = InBucket(self._storage, self._prefix)
        self._stored = self._storing.of(payload)
        self._is_first = True
        self._is_woken = False
        self._has_heard = False  # that a task has begun or ended

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Store the blocks, then start one job: functions rented by the second must not wait."""
        is_first, coded = self._is_first, self._payload.blocks
        self._is_first = False
        self._stored.prepare(coded, [task for task, _ in attempts])
        if is_first:
            self._storing.put(f"{self._prefix}/{LIVENESS_KEY}", [b"alive"])
        functions = self._jobs.functions_for_next()
        address: dict[str, Any] = {"bucket": self._storage.bucket, "prefix": self._prefix}
        if self._jobs.is_here:
            address |= {"driver": os.getpid(), "jobs": objects_of([functions.executor_id])}
            address["scratch"] = str(private_folder()) if self._jobs.is_private else None
        gives_way = self._payload.low_priority if is_first and self._jobs.is_here else ()
        items = {}
        for task, attempt in attempts:
            fields = to_plain_tuple(self._payload.ticket(task, attempt, self._stored.block(coded, task)))
            nice = PARITY_NICE if task in gives_way else 0
            items[task, attempt] = {"fields": (fields, {**address, "nice": nice})}
        try:
            self._jobs.start(
                functions, make_lithops_task(self._payload.f, coded.structure, self._state), items
            )
        except ExecutorError:
            pickled(self._payload.f, self._jobs.name)  # the likely reason, in plain words
            raise

    def wait(self, timeout: float) -> list[Event]:
        """What Lithops' monitor thread has seen."""
        deadline, began = time.monotonic() + timeout, list[Event]()
        while True:
            outcomes = self._look(began)
            left = deadline - time.monotonic()
            if outcomes or left <= 0 or self._is_woken:
                self._is_woken = False
                return [*began, *outcomes]
            self._jobs.wait(left)

    def withdraw(self, attempts: Sequence[Attempt]) -> None:
        """Nothing: functions run to their end, or that of the map."""

    def wake(self) -> None:
        """Let the wait end without an outcome."""
        self._is_woken = True
        self._jobs.wake()

    def stop(self) -> list[Began]:
        """Return the attempts that Lithops has seen begin by now.

        With "localhost" also those that it has not: each has had a process of its own since it was submitted.
        """
        now = time.monotonic()
        begun = self._jobs.begun(counts_unseen=self._jobs.is_private)
        return [Began(task, attempt, now) for task, attempt in begun]

    def close(self) -> Stay | None:
        """Take the liveness key away, drop or kill what is pending, remove the objects."""
        self._storing.close()
        with contextlib.suppress(Exception):
            self._storage.delete_object(self._storage.bucket, f"{self._prefix}/{LIVENESS_KEY}")
        remove_objects(self._storage, [f"{self._prefix}/", *self._jobs.close()])
        return None

    def _look(self, began: list[Event]) -> list[Outcome]:
        """All that has ended since the last look; what has begun is added to `began`."""
        outcomes = list[Outcome]()
        for attempt, sent in self._jobs.ended(may_ask=not self._has_heard).items():
            if isinstance(sent, InterpreterError):
                raise ExecutorError(f"{self._jobs.name} runs no task: {sent}")
            outcomes.append(self._outcome(attempt, sent))
        now = time.monotonic()
        began += [Began(task, attempt, now) for task, attempt in self._jobs.begun()]
        self._has_heard |= bool(began or outcomes)
        return outcomes

    def _outcome(self, attempt: Attempt, sent: Any) -> Outcome:
        """What became of an attempt whose function returned this, or a LostError in its place."""
        if sent is None:
            return lost(*attempt, "it was told that nobody waits for it")
        if isinstance(sent, LostError):
            return lost(*attempt, str(sent))
        outcome = self._payload.outcome(*attempt, *sent)
        if outcome.failure is not None:
            self._stored.store_if_damaged(self._payload.blocks, outcome.task, outcome.failure)
        return outcome


class LithopsSite(Site):
    """Workers that stay: functions, on FunctionExecutors of our own, that return when their time is over.

    Parameters
    ----------
    choice : "localhost", path or lithops.FunctionExecutor, whose configuration is used.
    """

    def __init__(self, choice: Any) -> None:
        self._jobs = Jobs(choice)
        self._is_used = False  # whether the storage has taken anything
        self.name, self.shares_files, self.reach = self._jobs.name, self._jobs.is_here, self._jobs.reach
        self.look_seconds = look_seldom(self._jobs.functions)
        self.limits = None if self.shares_files else worker_of(self._jobs.functions.config)
        self.workers = None if self.limits is None else self.limits.workers
        self.seconds = seconds_of(self.limits)
        self.storage = open_storage(self._jobs.functions)
        self.bucket = self.storage.bucket
        self.prefix = f"{PREFIX}/pool-{uuid.uuid4().hex}"
        self._blocks = InBucket(self.storage, self.prefix)

    def object_links(self, join: Join) -> ObjectLinks:
        """In the storage of the configuration."""
        links = ObjectLinks(self.storage, self.prefix, join)
        self._is_used = True
        return links

    def launch(
        self, address: DriverAddress, workers: Mapping[int, float], machines: Mapping[int, str] = NO_MACHINES
    ) -> None:
        """Start one job."""
        items = {number: {"worker": (number, seconds)} for number, seconds in workers.items()}
        functions = self._jobs.functions_for_next(len(workers))
        look_seldom(functions)
        self._jobs.start(functions, make_worker_task(address), items, timeout=int(self.seconds))

    def ended(self, may_ask: bool = True) -> dict[int, str]:
        """Those of which Lithops knows that they have ended, and why.

        may_ask : the interpreter of those that have ended without a word.
        """
        ended = self._jobs.ended(may_ask)
        if ended:
            self._blocks.unneeded += self._jobs.close_idle()
        return {number: str(sent) if isinstance(sent, LostError) else "" for number, sent in ended.items()}

    def remove_left(self) -> None:
        """Remove the objects of Lithops that those that have ended have left."""
        self._blocks.remove_unneeded()

    def close(self) -> None:
        """Kill what Lithops can kill, remove all objects."""
        self._blocks.close()
        left = self._jobs.close()
        if self._is_used:
            remove_objects(self.storage, [f"{self.prefix}/", *left, *self._blocks.unneeded])

    def block_store(self) -> InBucket:
        """In the bucket of the configuration."""
        return self._blocks

    def modules(self, pickled: bytes) -> Mapping[str, tuple[str, bool]]:
        """Sources of the modules that a pickled function names and workers may not have."""
        try:
            return module_sources(pickled, self._jobs.functions)
        except Exception as error:  # the runtime is asked what it has
            raise ExecutorError(f"{self.name} takes no job: {type(error).__name__}: {error}") from error


def seconds_of(limits: Worker | None) -> float:
    """That a worker may take where it is given so much."""
    if limits is None or limits.seconds is None:
        return HERE_SECONDS
    return max(1.0, limits.seconds - SPARE_SECONDS)


class InBucket(BlockStore):
    """The bytes of blocks in the bucket of a `lithops.Storage`."""

    has_bytes = is_parallel = True

    def __init__(self, storage: Any, prefix: str) -> None:
        super().__init__(prefix)
        self.place, self._storage = Location("bucket", storage.bucket, storage.backend), storage
        self._is_closed = False

    def close(self) -> None:
        """Let nothing stay that is stored from now on: the caller removes what is stored by now."""
        self._is_closed = True

    def put(self, key: str, buffers: Sequence[Any]) -> int:
        """Store an object. Raises ExecutorError if the storage refuses it, or if this store is closed."""
        bucket, data = self._storage.bucket, b"".join(buffers)
        self._check_open()
        try:
            retry_request(partial(self._storage.put_object, bucket, key, data))
        except Exception as error:
            raise ExecutorError(
                f"nothing can be stored in bucket {bucket!r}: {type(error).__name__}: {error}"
            ) from error
        if self._is_closed:  # since the request was made: whoever removes all objects may have been sooner
            delete_prefix(self._storage, bucket, key)
        self._check_open()
        return zlib.crc32(data)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ExecutorError("a block was not stored: its map or its Pool is closed")

    def remove(self, roots: Sequence[str]) -> None:
        """Their objects."""
        for root in roots:
            delete_prefix(self._storage, self._storage.bucket, root)


def remove_objects(storage: Any, prefixes: Sequence[str]) -> None:
    """Remove what lies below them; a storage that is down must not hide why a map ended."""
    try:
        for prefix in prefixes:
            for pause in REMOVE_PAUSES:
                if not delete_prefix(storage, storage.bucket, prefix):
                    break
                time.sleep(pause)
            else:
                raise StorageError(f"the storage does not delete what lies below {prefix!r}")
    except Exception as error:
        warn(f"objects below {', '.join(prefixes)} in bucket {storage.bucket!r} may be left: {error}")
