"""Executors of another library and of a user."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from polarmap.executors.interface import JobSpec, Session
from polarmap.testing import ReplayExecutor


class Pool:
    """A pool of another library."""

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        raise NotImplementedError


class OwnExecutor:
    """An executor class of a user, with only the required attributes."""

    name, worker_spec = "own", None

    def open(self, job_spec: JobSpec) -> Session:
        return ReplayExecutor().open(job_spec)
