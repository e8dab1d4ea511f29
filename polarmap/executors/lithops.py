"""Lithops as a caller has it: a FunctionExecutor, or a configuration of which one is made for each map."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

from polarmap.clouds.limits import worker_of
from polarmap.errors import ExecutorError
from polarmap.executors.base import Outcome, Payload, check_folder
from polarmap.executors.lithops_configuration import SETTLE_SECONDS, open_functions, read_configuration
from polarmap.executors.lithops_internals import abandon, another_like, end, forget, keep_monitoring
from polarmap.executors.lithops_run import LithopsRun
from polarmap.worker.parts import Place


class LithopsExecutor:
    """A FunctionExecutor that belongs to the caller."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self.name = f"lithops/{functions.backend}"
        self.worker = worker_of(functions.config)

    def open(self, payload: Payload) -> FunctionExecutorRun:
        """Further jobs on it; ExecutorError for storage that its workers cannot reach."""
        return FunctionExecutorRun(self.name, payload, self._functions, owned=False)


class YamlExecutor:
    """A Lithops configuration of the caller, which is opened for each map and ended with it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        config = read_configuration(path)
        self.name = f"lithops/{config['lithops']['backend']}"
        self.worker = worker_of(config)

    def open(self, payload: Payload) -> FunctionExecutorRun:
        """Jobs on a FunctionExecutor of its own; ExecutorError if Lithops cannot make one."""
        functions = open_functions(self._path)
        try:
            return FunctionExecutorRun(self.name, payload, functions, owned=True)
        except BaseException:
            end(functions)
            raise


class FunctionExecutorRun(LithopsRun):
    """The tasks of one map on a FunctionExecutor; one that is `owned` ends with it."""

    def __init__(self, name: str, payload: Payload, functions: Any, owned: bool) -> None:
        super().__init__(name, payload, functions.storage)
        self._functions, self._owned = functions, owned
        self._siblings: list[Any] = []
        check_reachable(payload.blocks.source, "lies in", functions)
        check_reachable(payload.output and payload.output.source, "is to stay in", functions)

    def submit(self, tasks: Sequence[int]) -> None:
        """Store the blocks, then start one job: functions rented by the second must not wait."""
        is_first, coded = not self._attempts, self._payload.blocks
        if is_first and coded.source is None:
            coded.leaves(max(tasks))  # encode before anything is stored: its errors are the caller's
        self._objects.put_blocks(tasks, is_first)
        if is_first and len(tasks) == coded.n:
            coded.release()
        keys = self._count_attempts(tasks)
        self._map(self._functions if is_first else self._sibling(), keys, None)

    def close(self) -> None:
        """Take the liveness key away, drop or kill what is pending, remove the objects."""
        with contextlib.suppress(Exception):
            self._objects.remove_sign()
        pending = [copy.future for copies in self._running.values() for copy in copies]
        ours = {future for job in self._jobs for future in job.futures}
        self._running.clear()
        if pending:
            abandon(self._functions, pending)
        forget(self._functions, ours)
        self._jobs = []
        siblings, self._siblings = self._siblings, []
        for functions in siblings:
            end(functions)
        jobs = {future.job_key for future in ours} | {functions.executor_id for functions in siblings}
        if self._owned:
            jobs.add(self._functions.executor_id)
        prefixes = [f"lithops.jobs/{job}" for job in jobs]
        self._objects.remove(prefixes)
        if pending:  # what was on its way when its writer was killed
            time.sleep(SETTLE_SECONDS)
            self._objects.remove(prefixes)
        if self._owned:
            end(self._functions)

    def _sibling(self) -> Any:
        """What runs a further job at once: on this machine an executor runs its jobs one by one."""
        if self._functions.backend != "localhost":
            return self._functions
        with contextlib.suppress(Exception):
            self._siblings.append(another_like(self._functions))
            return self._siblings[-1]
        return self._functions

    def _maintain(self) -> list[Outcome]:
        """Start a monitor thread again that has died."""
        for functions in (self._functions, *self._siblings):
            if not functions.job_monitor.is_alive():
                everything = (copy for copies in self._running.values() for copy in copies)
                futures = [copy.future for copy in everything if copy.job.functions is functions]
                keep_monitoring(functions, futures)
        return []


def check_reachable(source: Place | None, use: str, functions: Any) -> None:
    """ExecutorError for storage that the workers of a FunctionExecutor cannot reach; `use`: of the array."""
    if source is None:
        return
    if source.kind == "driver":
        check_folder(source)
    if source.kind == "folder" and functions.backend != "localhost":
        raise ExecutorError(
            f"the array {use} folder {source.place!r} of this machine, which workers on "
            f"{functions.backend} cannot reach: use storage= of that backend"
        )
    backend = functions.storage.backend
    if source.kind == "bucket" and source.backend != backend:
        raise ExecutorError(
            f"the array {use} {source.backend} bucket {source.place!r}, but this executor stores in "
            f"{backend}: use the Lithops configuration of that bucket for both"
        )
