"""The tasks of a map through Lithops: on this machine, by a configuration, or on a FunctionExecutor."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

from polarmap.clouds.limits import Worker, worker_of
from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload, lost
from polarmap.executors.block_store import StoredPieces
from polarmap.executors.choices import check_path, is_localhost, is_path
from polarmap.executors.encryption_keys import check_stays_here
from polarmap.executors.lithops_internals import LostError, objects_of, runs_here
from polarmap.executors.lithops_jobs import (
    InterpreterError,
    Jobs,
    close_all,
    read_configuration,
)
from polarmap.executors.lithops_storage import PREFIX, InBucket, remove_objects
from polarmap.executors.owned_folder import private_folder
from polarmap.executors.pickling import pickled
from polarmap.worker.encryption import ENCRYPTED
from polarmap.worker.io_lithops import Address, make_task

LOOK_SECONDS = 0.003  # between two looks at the futures' flags, which live in this process
TASK_LOOK_SECONDS = 5e-6  # more for each task that runs: a look takes a tenth of that or two
PARITY_NICE = 10  # parity must not take the cores of this machine from data tasks that are doing fine


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

    def open(self, payload: Payload) -> LithopsRun:
        """Its jobs; ExecutorError if Lithops takes none, or for storage that its workers cannot reach."""
        check_stays_here(payload.encryption, self.name)
        jobs = Jobs(self._choice, shares=True)
        try:
            jobs.check_source(payload.blocks.source, "lies in")
            jobs.check_source(payload.output and payload.output.source, "is to stay in")
            return LithopsRun(jobs, payload)
        except BaseException:
            jobs.close()
            raise


class LithopsRun:
    """The tasks of one map through Lithops; blocks are raw objects.

    Parameters
    ----------
    jobs : Jobs
        What runs the first job; on this machine each further one has a FunctionExecutor of its own.
    """

    now = staticmethod(time.monotonic)

    def __init__(self, jobs: Jobs, payload: Payload) -> None:
        self._jobs, self._payload = [jobs], payload
        self._storage = jobs.functions.storage
        self._address = Address(self._storage.bucket, f"{PREFIX}/{uuid.uuid4().hex}")
        self._storing = InBucket(self._storage, self._address.prefix)
        self._stored = StoredPieces(payload.blocks, payload.encryption, self._storing)
        self._is_first = True
        self._began: list[Event] = []  # that are told next
        self._next_look = 0.0
        self._is_woken = False
        self._has_heard = False  # that a task has begun or ended

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Store the blocks, then start one job: functions rented by the second must not wait."""
        is_first, coded = self._is_first, self._payload.blocks
        self._is_first = False
        self._stored.prepare(coded, [task for task, _ in attempts])
        if is_first:
            self._storing.put(self._address.liveness_key, [b"alive"])
        elif self._jobs[0].is_here:
            self._jobs.append(self._jobs[0].another())
        jobs = self._jobs[-1]
        address = self._address_of(jobs)
        gives_way = self._payload.low_priority if is_first and address.driver is not None else ()
        items = {}
        for task, attempt in attempts:
            block = self._stored.block(coded, task)._replace(structure=coded.structure)
            order = self._payload.order(task, attempt, block)
            nice = PARITY_NICE if task in gives_way else 0
            items[task, attempt] = {"fields": (order, tuple(address._replace(nice=nice)))}
        try:
            encrypted = None if self._payload.encryption is None else ENCRYPTED
            jobs.start(make_task(self._payload.f, encrypted), items)
        except ExecutorError:
            pickled(self._payload.f, jobs.name)  # the likely reason, in plain words
            raise

    def wait(self, timeout: float) -> list[Event]:
        """Look at the flags that Lithops' monitor thread sets, again and again."""
        deadline = time.monotonic() + timeout
        while True:
            outcomes = self._look()
            now = time.monotonic()
            if outcomes or now >= deadline or self._is_woken:
                self._is_woken = False
                began, self._began = self._began, []
                return [*began, *outcomes]
            time.sleep(max(0.0, min(self._next_look, deadline) - now))

    def wake(self) -> None:
        """Be seen to have been called at the next look."""
        self._is_woken = True

    def close(self) -> Stay | None:
        """Take the liveness key away, drop or kill what is pending, remove the objects."""
        with contextlib.suppress(Exception):
            self._storage.delete_object(self._address.bucket, self._address.liveness_key)
        jobs, self._jobs = self._jobs, []
        remove_objects(self._storage, [f"{self._address.prefix}/", *close_all(jobs)])
        return None

    def _address_of(self, jobs: Jobs) -> Address:
        """What the workers of a job are told of their driver."""
        if not runs_here(jobs.functions):
            return self._address
        left = tuple(objects_of([jobs.functions.executor_id]))
        scratch = str(private_folder()) if jobs.is_private else None
        return self._address._replace(driver=os.getpid(), scratch=scratch, jobs=left)

    def _look(self) -> list[Outcome]:
        """All that has ended since the last look, which costs a little for each task that runs."""
        now = time.monotonic()
        if now < self._next_look:
            return []
        outcomes = list[Outcome]()
        for jobs in self._jobs:
            for attempt, sent in jobs.ended(may_ask=not self._has_heard).items():
                if isinstance(sent, InterpreterError):
                    raise ExecutorError(f"{jobs.name} runs no task: {sent}")
                outcomes.append(self._outcome(attempt, sent))
            began = [Began(task, attempt, now) for task, attempt in jobs.begun()]
            self._began += began
            self._has_heard |= bool(began or outcomes)
        running = sum(len(jobs.running) for jobs in self._jobs)
        self._next_look = time.monotonic() + LOOK_SECONDS + TASK_LOOK_SECONDS * running
        return outcomes

    def _outcome(self, attempt: Attempt, sent: Any) -> Outcome:
        """What became of an attempt whose function returned this, or a LostError in its place."""
        if sent is None:
            return lost(*attempt, "it was told that nobody waits for it")
        if isinstance(sent, LostError):
            return lost(*attempt, str(sent))
        outcome = self._payload.outcome(*attempt, *sent)
        self._stored.store_if_damaged(self._payload.blocks, outcome)
        return outcome
