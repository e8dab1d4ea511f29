"""Lithops as a place for workers that stay: functions that do not return before their time is over."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polarmap.clouds.limits import Worker, worker_of
from polarmap.errors import ExecutorError
from polarmap.executors.choices import is_localhost
from polarmap.executors.lithops import LithopsExecutor, check_reachable, own_functions
from polarmap.executors.lithops_internals import (
    LostError,
    abandon,
    another_like,
    end,
    ended_silently,
    has_ended,
    interpreter_error,
    look_seldom,
    module_sources,
    objects_of,
    result_of,
)
from polarmap.executors.lithops_storage import (
    PREFIX,
    SETTLE_SECONDS,
    delete_below,
    open_storage,
    remove_objects,
)
from polarmap.executors.object_links import ObjectLinks
from polarmap.executors.pickling import pickled_by_value
from polarmap.executors.remote_workers import Site
from polarmap.executors.worker_listener import Join
from polarmap.worker.kept_task import DriverAddress, make_kept_task
from polarmap.worker.parts import Place

HERE_SECONDS = 20 * 86_400.0  # that a worker on this machine may take: in milliseconds this fits 32 bits
LOOK_SECONDS = 1.0  # between looks which workers have ended, which mostly their channel tells at once
SPARE_SECONDS = 15.0  # of what a cloud allows, for starting and reporting


class LithopsSite(Site):
    """Workers of a Lithops configuration, on FunctionExecutors of our own.

    Parameters
    ----------
    choice : "localhost", path or lithops.FunctionExecutor
        Its configuration.
    folder : Path or None
        Private; used if workers run on this machine.
    """

    def __init__(self, choice: Any, folder: Path) -> None:
        self._is_private = is_localhost(choice)
        self._functions = own_functions(choice)
        self.look_seconds = look_seldom(self._functions, LOOK_SECONDS)
        self._jobs: list[tuple[Any, dict[int, Any]]] = [(self._functions, {})]  # futures by number
        self._left: list[str] = []  # prefixes of objects that nobody needs any longer
        self._is_used = False  # whether the storage has taken anything
        self._is_here = self._functions.backend == "localhost"
        self.name = LithopsExecutor(choice).name
        self.folder = folder if self._is_here else None
        self.limits = worker_of(self._functions.config)
        self.workers = self.limits.workers if self.limits is not None and not self._is_here else None
        self.seconds = self._seconds(self.limits)
        self.storage, self.bucket = open_storage(self._functions)
        self.prefix = f"{PREFIX}/pool-{uuid.uuid4().hex}"

    def object_links(self, join: Join) -> ObjectLinks:
        """In the storage of the configuration."""
        links = ObjectLinks(self.storage, self.prefix, join)
        self._is_used = True
        return links

    def launch(self, address: DriverAddress, workers: Mapping[int, float]) -> None:
        """Start one job; on this machine on an executor of its own, which runs its jobs one by one."""
        items = [{"worker": worker} for worker in workers.items()]
        try:
            if self._is_here:
                self._jobs.append((self._another(len(workers)), {}))
            functions, known = self._jobs[-1]
            with pickled_by_value():
                task = make_kept_task(address)
                futures = functions.map(
                    task, items, chunksize=1, timeout=int(self.seconds), exclude_modules=["polarmap", "numpy"]
                )
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no job: {type(error).__name__}: {error}") from error
        known |= zip(workers, futures, strict=True)

    def ended(self, may_ask: bool = True) -> dict[int, str]:
        """Those of which Lithops knows that they have ended, and why.

        may_ask : the interpreter of those that have ended without a word.
        """
        found = dict[int, str]()
        for functions, futures in self._jobs:
            silent = ended_silently(functions, list(futures.values()))
            reason = interpreter_error(functions) if silent and may_ask else ""
            for number, future in list(futures.items()):
                if future in silent or has_ended(future):
                    del futures[number]
                    found[number] = reason if future in silent else _end_of(future, functions)
        if found:
            self._end_jobs_without_workers()
        return found

    def close(self) -> None:
        """Kill what Lithops can kill, remove all objects."""
        pending = False
        for functions, futures in self._jobs:
            pending |= bool(futures)
            abandon(functions, list(futures.values()))
            end(functions)
            futures.clear()
        if pending:  # what was on its way when its writer was killed
            time.sleep(SETTLE_SECONDS)
        if self._is_used:
            ended = objects_of(functions.executor_id for functions, _ in self._jobs)
            remove_objects(self.storage, [f"{self.prefix}/", *ended, *self._left])

    def check_source(self, source: Place | None, use: str) -> None:
        """ExecutorError for storage that workers of this site cannot reach."""
        check_reachable(source, use, self._functions)

    def modules(self, pickled: bytes) -> Mapping[str, tuple[str, bool]]:
        """Sources of the modules that a pickled function names and workers may not have."""
        try:
            return module_sources(pickled, self._functions)
        except Exception as error:  # the runtime is asked what it has
            raise ExecutorError(f"{self.name} takes no job: {type(error).__name__}: {error}") from error

    def _another(self, count: int) -> Any:
        """A FunctionExecutor with so many slots on this machine."""
        if not self._is_private:
            return another_like(self._functions, processes=count)
        functions = own_functions("localhost", count)
        look_seldom(functions, LOOK_SECONDS)
        return functions

    def _end_jobs_without_workers(self) -> None:
        """On this machine each job has a FunctionExecutor of its own, which is over when its workers are."""
        for job in self._jobs[1:]:
            functions, futures = job
            if not futures:
                self._jobs.remove(job)
                end(functions)
                self._left += objects_of([functions.executor_id])
        with contextlib.suppress(Exception):  # a storage that is away now: next time, or at the end
            self._left = [prefix for prefix in self._left if delete_below(self.storage, prefix)]

    def _seconds(self, worker: Worker | None) -> float:
        if self._is_here or worker is None or worker.seconds is None:
            return HERE_SECONDS
        return max(1.0, worker.seconds - SPARE_SECONDS)


def _end_of(future: Any, functions: Any) -> str:
    """Why a function has ended, as far as that is known."""
    try:
        result_of(future, functions)
    except LostError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
