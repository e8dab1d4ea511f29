"""The running half: starts tasks and tells as each ends. Knows no codes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from polarmap.errors import ExecutorError
from polarmap.executors.base import Executor, FaultyExecutor
from polarmap.executors.private import private_folder
from polarmap.remote.worker import Fault


def open_executor(choice: Any) -> tuple[Executor, Mapping[int, Fault]]:
    """The executor that `coded_map(executor=choice)` means, and the faults to inject."""
    if isinstance(choice, FaultyExecutor):
        return open_executor(choice.executor)[0], choice.faults
    return _open(choice), {}


def keep_open(choice: Any) -> tuple[Any, Callable[[], None]]:
    """The same for many maps, and what ends it: a Lithops configuration is opened once."""
    if isinstance(choice, FaultyExecutor):
        inner, close = keep_open(choice.executor)
        return replace(choice, executor=inner), close
    if isinstance(choice, (str, os.PathLike)) and choice != "localhost":
        from polarmap.executors.lithops import from_yaml

        runner = from_yaml(choice)
        return runner.functions, runner.close
    return choice, lambda: None


def storage_beside(choice: Any) -> Any:
    """Where the workers of an executor read what stays for many maps: a folder here or the storage of
    a `lithops.FunctionExecutor`; None if blocks travel with each task."""
    if isinstance(choice, FaultyExecutor):
        return storage_beside(choice.executor)
    if choice is None or choice == "localhost":
        return private_folder() / "arrays"
    return choice if hasattr(choice, "compute_handler") else None


def _open(choice: Any) -> Executor:
    if choice is None or choice == "localhost":
        from polarmap.executors.localhost import LocalhostExecutor

        return LocalhostExecutor()
    if isinstance(choice, (str, os.PathLike)):
        from polarmap.executors.lithops import from_yaml

        return from_yaml(choice)
    if all(hasattr(choice, verb) for verb in ("start", "wait", "retry", "stop")):
        executor: Executor = choice
        return executor
    if hasattr(choice, "compute_handler") and hasattr(choice, "internal_storage"):
        from polarmap.executors.lithops import ForeignExecutor

        return ForeignExecutor(choice, owned=False)
    if hasattr(choice, "submit"):
        from polarmap.executors.futures import FuturesExecutor

        return FuturesExecutor(choice)
    raise ExecutorError(
        f"executor={choice!r} is not an executor: pass None or 'localhost', the path of a Lithops "
        "YAML file, a lithops.FunctionExecutor, or a concurrent.futures executor"
    )
