"""Resolve the argument `executor=` of a call: the only code that asks what it is.

The rest of the package asks the `ResolvedExecutor` that it gets.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from polarmap.executors.pool import Pool, default_executor
from polarmap.executors.resolved import ResolvedExecutor


def resolve_executor(executor_spec: Any) -> ResolvedExecutor:
    """Return the executor that `executor=executor_spec` means. Nothing is opened yet.

    Called once where a call of the user enters the package. A resolved executor is returned as it is, so that
    a job may pass on its own one. Raises ExecutorError, with what to pass instead, for anything else than an
    executor.
    """
    if executor_spec is None:
        return default_executor
    # Most programs use the default executor alone, and import none of these.
    from polarmap.executors.faults import FaultInjectingExecutor, FaultyExecutor
    from polarmap.executors.recognition import recognize_executor

    if isinstance(executor_spec, FaultyExecutor):
        return FaultInjectingExecutor(resolve_executor(executor_spec.executor), executor_spec.faults)
    return recognize_executor(executor_spec)


class MissingExecutor:
    """In the place of an executor that could not be pickled.

    >>> MissingExecutor("ThreadPoolExecutor")
    <ThreadPoolExecutor, left behind>
    """

    def __init__(self, executor_name: str) -> None:
        self.executor_name = executor_name

    def __repr__(self) -> str:
        return f"<{self.executor_name}, left behind>"


def to_picklable_spec(executor_spec: Any) -> Any:
    """Return what a pickle holds in the place of an executor: what it was made of, or a MissingExecutor.

    >>> to_picklable_spec(Pool("localhost")), to_picklable_spec(Pool())
    ('localhost', None)
    """
    from polarmap.executors.faults import FaultyExecutor

    if executor_spec is None or isinstance(executor_spec, (str, os.PathLike, MissingExecutor)):
        return executor_spec
    if isinstance(executor_spec, Pool):
        return to_picklable_spec(executor_spec.executor)
    if not isinstance(executor_spec, FaultyExecutor):
        return MissingExecutor(type(executor_spec).__name__)
    picklable_spec = to_picklable_spec(executor_spec.executor)
    is_missing = isinstance(picklable_spec, MissingExecutor)
    return picklable_spec if is_missing else replace(executor_spec, executor=picklable_spec)
