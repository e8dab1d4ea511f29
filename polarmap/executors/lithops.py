"""Lithops as an executor: on this machine, by a configuration, or by a FunctionExecutor of the caller."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from polarmap.clouds import settings
from polarmap.clouds.limits import Worker, worker_of
from polarmap.errors import ExecutorError
from polarmap.executors.base import Payload, check_folder
from polarmap.executors.choices import is_localhost, is_of_lithops, is_path
from polarmap.executors.lithops_internals import (
    another_like,
    complete_config,
    end,
    lift_data_limit,
    load_lithops,
    localhost_functions,
    named_for_lithops,
)
from polarmap.executors.lithops_run import LithopsRun
from polarmap.worker.parts import Place
from polarmap.worker.retry import retry_call

_answered: set[Path] = set()  # configurations whose storage has answered


class LithopsExecutor:
    """What Lithops runs. A FunctionExecutor of our own is opened for each map and ended with it.

    Parameters
    ----------
    choice : "localhost", path or lithops.FunctionExecutor
        With "localhost" there is a process for every task, and all files lie in our temporary folder.
    """

    def __init__(self, choice: Any) -> None:
        self._choice = choice
        self.name = "localhost"
        self.worker: Worker | None = None
        if not is_localhost(choice):
            config = read_configuration(choice) if is_path(choice) else choice.config
            self.name, self.worker = f"lithops/{config['lithops']['backend']}", worker_of(config)

    def open(self, payload: Payload) -> LithopsRun:
        """Its jobs; ExecutorError if Lithops takes none, or for storage that its workers cannot reach."""
        is_private, is_owned = is_localhost(self._choice), not is_of_lithops(self._choice)
        if is_private:
            check_folder(payload.blocks.source)
            check_folder(payload.output and payload.output.source)
        functions = own_functions(self._choice) if is_owned else self._choice
        try:
            check_reachable(payload.blocks.source, "lies in", functions)
            check_reachable(payload.output and payload.output.source, "is to stay in", functions)
            return LithopsRun(self.name, payload, functions, is_owned, is_private)
        except BaseException:
            if is_owned:
                end(functions)
            raise


def own_functions(choice: Any, count: int = 1) -> Any:
    """A FunctionExecutor that is ours to end; `count`: its slots where the choice is "localhost"."""
    if is_localhost(choice):
        return localhost_functions(count)
    return open_functions(choice) if is_path(choice) else another_like(choice)


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


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A configuration with Lithops' defaults, without asking anything of its cloud."""
    file = Path(path)
    config = settings.read(file)
    with _naming(file, config):
        return complete_config(file, _missing_settings(config))


def open_functions(path: str | os.PathLike[str]) -> Any:
    """A FunctionExecutor from a Lithops configuration file."""
    file = Path(path)
    config = settings.read(file)
    lithops, missing = load_lithops(), _missing_settings(config)
    build = partial(lithops.FunctionExecutor, config_file=str(file), log_level=None, **missing)
    with _naming(file, config):
        functions = retry_call(build) if file.absolute() in _answered else build()
    lift_data_limit(functions)
    _answered.add(file.absolute())
    return functions


@contextlib.contextmanager
def _naming(file: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """What Lithops raises becomes an ExecutorError that names the file, and what to install."""
    try:
        yield
    except Exception as error:
        hint = settings.extra_hint(config, error)
        raise ExecutorError(
            f"Lithops cannot use {str(file)!r}: {type(error).__name__}: {error}{hint}"
        ) from error


def _missing_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a localhost configuration should not leave to Lithops: its interpreter is `python`."""
    if settings.backend_of(config) == "localhost" and "runtime" not in (config.get("localhost") or {}):
        return {"runtime": named_for_lithops()}
    return {}
