"""Executors of other libraries and of a user's own."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from polarmap.executors.interface import JobSpec, Session
from polarmap.testing import ReplayExecutor


class Pool:
    """Of some other library."""

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        raise NotImplementedError


class OwnExecutor:
    """Of a user's own class, which says no more than it has to."""

    name, worker_spec = "own", None

    def open(self, job_spec: JobSpec) -> Session:
        return ReplayExecutor().open(job_spec)
