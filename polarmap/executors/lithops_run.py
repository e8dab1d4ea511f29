"""The run of tasks through Lithops: what is handed to it, and how their ends are seen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError
from polarmap.executors.base import Outcome, Payload, lost
from polarmap.executors.encryption_keys import check_stays_here
from polarmap.executors.lithops_internals import LostError, has_ended, result_of, runner_process
from polarmap.executors.lithops_objects import MapObjects
from polarmap.executors.pickling import pickled, pickled_by_value
from polarmap.worker.encrypted_io import ENCRYPTED
from polarmap.worker.io_lithops import Address, make_task
from polarmap.worker.messages import Ticket, parsed_reply, plain

LOOK_SECONDS = 0.003  # between two looks at the futures' flags, which live in this process
TASK_LOOK_SECONDS = 5e-6  # more for each task that runs: a look takes a tenth of that or two

TOO_MUCH_ADVICE = (
    ": tasks are told of many parts; say data_limit: 0 in the lithops section of the configuration, or use "
    "fewer and larger parts (memory= of encode)"
)


class LithopsJob:
    """One job: on localhost on an executor of its own, so that jobs do not queue."""

    def __init__(self, functions: Any) -> None:
        self.functions = functions
        self.futures: list[Any] = []
        self._ended_at: float | None = None

    def has_ended(self, now: float, since: float) -> bool:
        """Whether the runner of its workers was seen to have ended so long ago (localhost, version 1)."""
        process = runner_process(self.functions)
        if self._ended_at is None and process is not None and process.poll() is not None:
            self._ended_at = now
        return self._ended_at is not None and now - self._ended_at > since


class _Copy(NamedTuple):
    """A copy of an attempt of a task in one job."""

    ticket: Ticket
    future: Any
    job: LithopsJob


class LithopsRun:
    """What the runs of a map through Lithops share; blocks and large results are raw objects."""

    # Pure-Python modules that f needs travel along; polarmap's worker side does so by value.
    _modules: Mapping[str, Any] = {"exclude_modules": ["polarmap", "numpy"]}

    def __init__(self, name: str, payload: Payload, storage: Any) -> None:
        self._name, self._payload = name, payload
        check_stays_here(payload.encryption, name)
        self._objects = MapObjects(storage, payload.blocks, payload.encryption)
        # (task, attempt) -> its copies in different jobs, all but one of which will find it locked
        self._running: dict[tuple[int, int], list[_Copy]] = {}
        self._attempts: dict[int, int] = {}  # the latest of each task
        self._jobs: list[LithopsJob] = []
        self._launched_at: dict[int, float] = {}
        self._next_look = 0.0
        self._is_woken = False

    def now(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def wait(self, timeout: float) -> list[Outcome]:
        """Look at the flags that Lithops' monitor thread sets, again and again."""
        deadline = time.monotonic() + timeout
        while True:
            outcomes = self._look()
            now = time.monotonic()
            if outcomes or now >= deadline or self._is_woken:
                self._is_woken = False
                return outcomes
            time.sleep(max(0.0, min(self._next_look, deadline) - now))

    def wake(self) -> None:
        """Be seen to have been called at the next look."""
        self._is_woken = True

    def running(self) -> Mapping[int, float]:
        """When the running tasks were handed to Lithops: functions start at once, or so it seems."""
        return {task: self._launched_at[task] for task, _ in self._running}

    def paid(self) -> Stay | None:
        """None: each attempt is paid by itself."""
        return None

    def is_exhausted(self) -> bool:
        """Whether no attempt is under way."""
        return not self._running

    def _look(self) -> list[Outcome]:
        """All that has ended since the last look, which costs a little for each task that runs."""
        if time.monotonic() < self._next_look:
            return []
        outcomes = []
        if self._payload.subtasks > 1:
            outcomes = list(map(self._payload.partial_outcome, self._objects.partial_results()))
        outcomes += [outcome for key in list(self._running) for outcome in self._ended(key)]
        outcomes += self._maintain()
        self._next_look = time.monotonic() + LOOK_SECONDS + TASK_LOOK_SECONDS * len(self._running)
        return outcomes

    def _ended(self, key: tuple[int, int]) -> Iterator[Outcome]:
        """The outcome of this attempt, if a copy of it has ended with one."""
        copies = self._running[key]
        for copy in [copy for copy in copies if has_ended(copy.future)]:
            copies.remove(copy)
            outcome = self._finish(copy)
            if outcome is not None:
                del self._running[key]
                yield from self._with_rest(copy.ticket, outcome)
                return
        if not copies:
            yield self._lose(key)

    def _lose(self, key: tuple[int, int]) -> Outcome:
        """The outcome of an attempt of which nothing will be heard."""
        del self._running[key]
        return lost(*key, "its worker process ended without reporting")

    def _maintain(self) -> list[Outcome]:
        """Keep the jobs going; outcomes of tasks that will never report."""
        return []

    def _finish(self, copy: _Copy) -> Outcome | None:
        """The outcome of a future that has ended; None for a copy that found its task locked."""
        key = copy.ticket.task, copy.ticket.attempt
        try:
            sent = result_of(copy.future, copy.job.functions)
        except LostError as error:
            return lost(*key, str(error))
        except Exception as error:
            return lost(*key, f"{type(error).__name__}: {error}")
        if sent is None:
            return None
        reply = parsed_reply(sent)
        try:
            data = self._objects.result(reply)
        except Exception as error:
            return lost(*key, f"its result could not be read: {type(error).__name__}: {error}")
        return self._payload.outcome(reply, data)

    def _with_rest(self, ticket: Ticket, outcome: Outcome) -> list[Outcome]:
        """The results of a task's subtasks that were not told yet, and its end."""
        replies, unread = self._objects.rest_of(ticket, outcome.subtasks)
        if unread and outcome.failure is None:
            message = f"{unread} results of its subtasks could not be read"
            outcome = lost(ticket.task, ticket.attempt, message)
        return [*map(self._payload.partial_outcome, replies), outcome]

    def _count_attempts(self, tasks: Sequence[int]) -> list[tuple[int, int]]:
        """The attempts of these that are about to be started, the first or one more."""
        for task in tasks:
            self._attempts[task] = self._attempts.get(task, -1) + 1
        return [(task, self._attempts[task]) for task in tasks]

    def _address(self, task: int, attempt: int) -> Address:
        """What the worker of an attempt is told of its driver."""
        return self._objects.address

    def _map(self, functions: Any, keys: Sequence[tuple[int, int]], timeout: int | None) -> None:
        """Hand attempts to Lithops as one job."""
        job = LithopsJob(functions)
        self._jobs.append(job)
        tickets = [self._payload.ticket(*key, self._objects.block(key[0])) for key in keys]
        fields = [
            {"fields": (plain(ticket), tuple(self._address(*key)))} for key, ticket in zip(keys, tickets)
        ]
        try:
            with pickled_by_value():
                encrypted = None if self._payload.encryption is None else ENCRYPTED
                task = make_task(self._payload.f, encrypted)
                futures = functions.map(task, fields, chunksize=1, timeout=timeout, **self._modules)
        except Exception as error:
            pickled(self._payload.f, self._name)  # the likely reason, in plain words
            advice = TOO_MUCH_ADVICE if "maximum size" in str(error) else ""
            raise ExecutorError(
                f"{self._name} takes no job: {type(error).__name__}: {error}{advice}"
            ) from error
        for key, ticket, future in zip(keys, tickets, futures):
            self._launched_at[ticket.task] = time.monotonic()
            self._running.setdefault(key, []).append(_Copy(ticket, future, job))
            job.futures.append(future)
