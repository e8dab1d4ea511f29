"""Executors, which run the tasks of a map: in worker processes, on Dask or Ray, or on a cloud.

`resolve_executor` converts every argument `executor=` to a `ResolvedExecutor`, which the rest of the package
uses.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from polarmap.executors.pool import Pool, default_executor
from polarmap.executors.resolved import ResolvedExecutor


def resolve_executor(executor_spec: Any) -> ResolvedExecutor:
    """Convert the `executor=` argument of a public function to a `ResolvedExecutor`.

    A `ResolvedExecutor` has the methods with which the package runs tasks. If one is passed, it is returned
    unchanged. No workers are started. Raises ExecutorError, with advice on what to pass instead, if the
    argument is not an executor.
    """
    if executor_spec is None:
        return default_executor
    # Import these modules lazily: most programs use only the default executor.
    from polarmap.executors.faults import FaultInjectingExecutor, FaultyExecutor
    from polarmap.executors.recognition import recognize_executor

    if isinstance(executor_spec, FaultyExecutor):
        return FaultInjectingExecutor(resolve_executor(executor_spec.executor), executor_spec.faults)
    return recognize_executor(executor_spec)


class MissingExecutor:
    """A placeholder that is pickled in place of an executor that cannot be pickled, such as a thread pool.

    It only stores the executor's name, which is shown if the placeholder is used as an executor.

    >>> MissingExecutor("ThreadPoolExecutor")
    <ThreadPoolExecutor, left behind>
    """

    def __init__(self, executor_name: str) -> None:
        self.executor_name = executor_name

    def __repr__(self) -> str:
        return f"<{self.executor_name}, left behind>"


def to_picklable_spec(executor_spec: Any) -> Any:
    """Replace an `executor=` argument by a picklable value that selects the same executor.

    Some executors, such as thread pools, cannot be described by a picklable value. For these, return a
    `MissingExecutor`.

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
