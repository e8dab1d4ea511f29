"""The run of tasks through Lithops: what is handed to it, and how their ends are seen."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload, lost
from polarmap.executors.block_store import BlockStore, InBucket
from polarmap.executors.encryption_keys import check_stays_here
from polarmap.executors.lithops_internals import (
    LostError,
    abandon,
    another_like,
    end,
    ended_silently,
    forget,
    has_begun,
    has_ended,
    interpreter_error,
    keep_monitoring,
    localhost_functions,
    objects_of,
    result_of,
    runs_here,
    set_slots,
)
from polarmap.executors.lithops_objects import MapObjects
from polarmap.executors.lithops_storage import SETTLE_SECONDS
from polarmap.executors.owned_folder import private_folder
from polarmap.executors.pickling import pickled, pickled_by_value
from polarmap.worker.encryption import ENCRYPTED
from polarmap.worker.io_lithops import Address, make_task

LOOK_SECONDS = 0.003  # between two looks at the futures' flags, which live in this process
TASK_LOOK_SECONDS = 5e-6  # more for each task that runs: a look takes a tenth of that or two
ENDS_SECONDS = 0.25  # between two looks whether jobs have ended
PARITY_NICE = 10  # parity must not take the cores of this machine from data tasks that are doing fine

TOO_MUCH_ADVICE = (
    ": tasks are told of many parts; say data_limit: 0 in the lithops section of the configuration, or use "
    "fewer and larger parts (memory= of encode)"
)


class _Job(NamedTuple):
    """An attempt that has not ended, as far as is known."""

    future: Any
    functions: Any  # whose it is


class LithopsRun:
    """The tasks of one map through Lithops; blocks are raw objects.

    On this machine each job has a FunctionExecutor of its own, since one runs its jobs one after another.

    Parameters
    ----------
    functions : lithops.FunctionExecutor
        What runs the first job.
    is_owned : bool
        Whether it ends with the map.
    is_private : bool
        Whether it is one of `localhost_functions`, which has a slot for every task.
    """

    def __init__(
        self, name: str, payload: Payload, functions: Any, is_owned: bool = False, is_private: bool = False
    ) -> None:
        check_stays_here(payload.encryption, name)
        self._name, self._payload, self._functions = name, payload, functions
        self._is_owned, self._is_private = is_owned, is_private
        self._objects = MapObjects(functions.storage)
        store = BlockStore(InBucket(functions.storage, self._objects.address.prefix))
        self._stored = store.of(payload.blocks, payload.encryption)
        self._running: dict[Attempt, _Job] = {}
        self._unbegun: set[Attempt] = set()
        self._began: list[Event] = []  # that are told next
        self._is_first = True
        self._futures: list[Any] = []  # of all jobs
        self._further: list[Any] = []  # FunctionExecutors of further jobs on this machine
        self._next_look = self._next_look_at_ends = 0.0
        self._is_woken = False
        self._has_heard = False  # that a task has begun or ended

    def now(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Store the blocks, then start one job: functions rented by the second must not wait."""
        is_first, tasks = self._is_first, [task for task, _ in attempts]
        self._is_first = False
        self._stored.prepare(self._payload.blocks, tasks)
        if is_first:
            self._objects.put_sign()
        functions = self._functions if is_first else self._further_functions()
        if self._is_private:
            set_slots(functions, len(tasks))  # one that sleeps keeps none from starting
        self._map(functions, attempts, self._payload.low_priority if is_first else ())

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
            self._objects.remove_sign()
        pending = [one.future for one in self._running.values()]
        futures, self._futures = self._futures, []
        ending, self._further = self._further, []
        self._running.clear()
        if pending:
            abandon(self._functions, pending)
        if self._is_owned:
            ending.append(self._functions)
        else:
            forget(self._functions, set(futures))
        for functions in ending:
            end(functions)
        names = {functions.executor_id for functions in ending}
        names |= {future.job_key for future in futures if future.executor_id not in names}
        prefixes = objects_of(names)
        self._objects.remove(prefixes)
        if pending and not self._is_private:  # what was on its way when its writer was killed
            time.sleep(SETTLE_SECONDS)
            self._objects.remove(prefixes)
        return None

    def _look(self) -> list[Outcome]:
        """All that has ended since the last look, which costs a little for each task that runs."""
        now = time.monotonic()
        if now < self._next_look:
            return []
        outcomes = []
        if self._payload.subtasks > 1:
            outcomes = list(map(self._payload.part, self._objects.partial_results()))
        for key, one in list(self._running.items()):
            if has_ended(one.future):
                del self._running[key]
                outcomes += self._with_rest(self._finish(key, one))
            elif key in self._unbegun and has_begun(one.future):
                self._unbegun.discard(key)
                self._began.append(Began(*key, now))
                self._has_heard = True
        if now >= self._next_look_at_ends:
            outcomes += self._ended_silently()
            self._next_look_at_ends = time.monotonic() + ENDS_SECONDS
        self._next_look = time.monotonic() + LOOK_SECONDS + TASK_LOOK_SECONDS * len(self._running)
        return outcomes

    def _ended_silently(self) -> list[Outcome]:
        """Attempts whose processes have ended and left nothing: killed, or their storage was away.

        ExecutorError if their interpreter can run none.
        """
        silent = []
        for functions in {id(one.functions): one.functions for one in self._running.values()}.values():
            keys = {one.future: key for key, one in self._running.items() if one.functions is functions}
            keep_monitoring(functions, list(keys))
            silent += [keys[future] for future in ended_silently(functions, list(keys))]
            if silent and not self._has_heard:
                reason = interpreter_error(functions)
                if reason:
                    raise ExecutorError(f"{self._name} runs no task: {reason}")
        for key in silent:
            del self._running[key]
        return [lost(*key, "its worker process ended without reporting") for key in silent]

    def _finish(self, key: Attempt, one: _Job) -> Outcome:
        """The outcome of a future that has ended."""
        self._has_heard = True
        try:
            sent = result_of(one.future, one.functions)
            if sent is None:
                return lost(*key, "it was told that nobody waits for it")
            outcome = self._payload.outcome(*key, *sent)
        except LostError as error:
            return lost(*key, str(error))
        except Exception as error:
            return lost(*key, f"{type(error).__name__}: {error}")
        if outcome.failure is not None and outcome.failure.kind == "damaged":
            self._stored.store_again(self._payload.blocks, key[0])
        return outcome

    def _with_rest(self, outcome: Outcome) -> list[Outcome]:
        """The results of a task's subtasks that were not told yet, and its end."""
        subtasks = set(range(self._payload.subtasks if self._payload.subtasks > 1 else 0))
        others = sorted(subtasks.difference(outcome.subtasks))
        messages, unread = self._objects.rest_of(outcome.task, outcome.attempt, others)
        if unread and outcome.failure is None:
            message = f"{unread} results of its subtasks could not be read"
            outcome = lost(outcome.task, outcome.attempt, message)
        return [*map(self._payload.part, messages), outcome]

    def _further_functions(self) -> Any:
        """What runs a further job at once."""
        if self._functions.backend != "localhost":
            return self._functions
        self._further.append(localhost_functions(1) if self._is_private else another_like(self._functions))
        return self._further[-1]

    def _address(self, functions: Any) -> Address:
        """What the workers of a job are told of their driver."""
        if not runs_here(functions):
            return self._objects.address
        jobs = tuple(objects_of([functions.executor_id]))
        scratch = str(private_folder()) if self._is_private else None
        return self._objects.address._replace(driver=os.getpid(), scratch=scratch, jobs=jobs)

    def _map(self, functions: Any, keys: Sequence[Attempt], gives_way: Collection[int]) -> None:
        """Hand attempts to Lithops as one job: elsewhere than here they begin at once, as far as is known."""
        coded = self._payload.blocks
        blocks = [self._stored.block(coded, task)._replace(structure=coded.structure) for task, _ in keys]
        orders = [self._payload.order(*key, block) for key, block in zip(keys, blocks, strict=True)]
        address = self._address(functions)
        nice = dict.fromkeys(gives_way, PARITY_NICE) if address.driver is not None else {}
        items = [{"fields": (order, tuple(address._replace(nice=nice.get(order[0], 0))))} for order in orders]
        # Pure-Python modules that f needs travel along; polarmap's worker side does so by value.
        modules = (
            {"include_modules": None} if self._is_private else {"exclude_modules": ["polarmap", "numpy"]}
        )
        try:
            with pickled_by_value():
                encrypted = None if self._payload.encryption is None else ENCRYPTED
                task = make_task(self._payload.f, encrypted)
                futures = functions.map(task, items, chunksize=1, **modules)
        except Exception as error:
            pickled(self._payload.f, self._name)  # the likely reason, in plain words
            reason = interpreter_error(functions) or f"{type(error).__name__}: {error}"
            advice = TOO_MUCH_ADVICE if "maximum size" in str(error) else ""
            raise ExecutorError(f"{self._name} takes no job: {reason}{advice}") from error
        for key, future in zip(keys, futures, strict=True):
            self._running[key] = _Job(future, functions)
        if functions.backend == "localhost":
            self._unbegun.update(keys)
        else:
            self._began += [Began(*key, time.monotonic()) for key in keys]
        self._futures += futures
