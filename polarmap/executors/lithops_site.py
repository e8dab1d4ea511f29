"""Lithops as a place for workers that stay: functions that do not return before their time is over."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

from polarmap.clouds.limits import Worker, worker_of
from polarmap.errors import ExecutorError
from polarmap.executors.lithops_internals import LostError, look_seldom, module_sources
from polarmap.executors.lithops_jobs import Jobs, close_all
from polarmap.executors.lithops_storage import PREFIX, delete_below, open_storage, remove_objects
from polarmap.executors.objects import Join, ObjectLinks
from polarmap.executors.remote_workers import Site
from polarmap.worker.kept_worker import DriverAddress, make_kept_task
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
    """

    def __init__(self, choice: Any) -> None:
        self._jobs = [Jobs(choice)]
        self._functions, self.shares_files = self._jobs[0].functions, self._jobs[0].is_here
        self.look_seconds = look_seldom(self._functions, LOOK_SECONDS)
        self._left: list[str] = []  # prefixes of objects that nobody needs any longer
        self._is_used = False  # whether the storage has taken anything
        self.name = self._jobs[0].name
        self.limits = worker_of(self._functions.config)
        self.workers = self.limits.workers if self.limits is not None and not self.shares_files else None
        self.seconds = HERE_SECONDS if self.shares_files else seconds_of(self.limits)
        self.storage, self.bucket = open_storage(self._functions)
        self.prefix = f"{PREFIX}/pool-{uuid.uuid4().hex}"

    def object_links(self, join: Join) -> ObjectLinks:
        """In the storage of the configuration."""
        links = ObjectLinks(self.storage, self.prefix, join)
        self._is_used = True
        return links

    def launch(self, address: DriverAddress, workers: Mapping[int, float]) -> None:
        """Start one job; on this machine on a FunctionExecutor of its own."""
        if self.shares_files:
            self._jobs.append(self._jobs[0].another(len(workers)))
            look_seldom(self._jobs[-1].functions, LOOK_SECONDS)
        items = {number: {"worker": (number, seconds)} for number, seconds in workers.items()}
        self._jobs[-1].start(make_kept_task(address), items, timeout=int(self.seconds))

    def ended(self, may_ask: bool = True) -> dict[int, str]:
        """Those of which Lithops knows that they have ended, and why.

        may_ask : the interpreter of those that have ended without a word.
        """
        ended = [one for jobs in self._jobs for one in jobs.ended(may_ask).items()]
        if ended:
            self._end_jobs_without_workers()
        return {number: str(sent) if isinstance(sent, LostError) else "" for number, sent in ended}

    def close(self) -> None:
        """Kill what Lithops can kill, remove all objects."""
        left = close_all(self._jobs)
        if self._is_used:
            remove_objects(self.storage, [f"{self.prefix}/", *left, *self._left])

    def check_source(self, source: Place | None, use: str) -> None:
        """ExecutorError for storage that workers of this site cannot reach."""
        self._jobs[0].check_source(source, use)

    def modules(self, pickled: bytes) -> Mapping[str, tuple[str, bool]]:
        """Sources of the modules that a pickled function names and workers may not have."""
        try:
            return module_sources(pickled, self._functions)
        except Exception as error:  # the runtime is asked what it has
            raise ExecutorError(f"{self.name} takes no job: {type(error).__name__}: {error}") from error

    def _end_jobs_without_workers(self) -> None:
        """On this machine the FunctionExecutor of a job is over when its workers are."""
        for jobs in [one for one in self._jobs[1:] if not one.running]:
            self._jobs.remove(jobs)
            self._left += jobs.close()
        with contextlib.suppress(Exception):  # a storage that is away now: next time, or at the end
            self._left = [prefix for prefix in self._left if delete_below(self.storage, prefix)]


def seconds_of(limits: Worker | None) -> float:
    """That a worker may take where it is given so much."""
    if limits is None or limits.seconds is None:
        return HERE_SECONDS
    return max(1.0, limits.seconds - SPARE_SECONDS)
