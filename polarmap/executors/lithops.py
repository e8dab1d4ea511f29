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
from polarmap.executors.choices import is_path
from polarmap.executors.lithops_internals import (
    complete_config,
    end,
    lift_data_limit,
    load_lithops,
    localhost_functions,
    named_for_lithops,
)
from polarmap.executors.lithops_run import LithopsRun
from polarmap.executors.lithops_storage import ask_again
from polarmap.worker.parts import Place

_answered: set[Path] = set()  # configurations whose storage has answered


class LocalhostExecutor:
    """Lithops on this machine, with a process for every task and all its files in our temporary folder."""

    name = "localhost"
    worker: Worker | None = None

    def open(self, payload: Payload) -> LithopsRun:
        """Jobs on a FunctionExecutor of its own; ExecutorError for storage elsewhere."""
        check_folder(payload.blocks.source)
        check_folder(payload.output and payload.output.source)
        return _opened(self.name, payload, localhost_functions(1), is_owned=True, is_private=True)


class LithopsExecutor:
    """A FunctionExecutor of the caller, or a configuration: that is opened for each map and ended with it."""

    def __init__(self, choice: Any) -> None:
        self._choice, self._is_owned = choice, is_path(choice)
        config = read_configuration(choice) if self._is_owned else choice.config
        self.name = f"lithops/{config['lithops']['backend']}"
        self.worker = worker_of(config)

    def open(self, payload: Payload) -> LithopsRun:
        """Jobs on it; ExecutorError if there can be none, or for storage that its workers cannot reach."""
        functions = open_functions(self._choice) if self._is_owned else self._choice
        return _opened(self.name, payload, functions, self._is_owned)


def _opened(
    name: str, payload: Payload, functions: Any, is_owned: bool, is_private: bool = False
) -> LithopsRun:
    """A run on a FunctionExecutor, which ends now if it is ours and there is none."""
    try:
        check_reachable(payload.blocks.source, "lies in", functions)
        check_reachable(payload.output and payload.output.source, "is to stay in", functions)
        return LithopsRun(name, payload, functions, is_owned, is_private)
    except BaseException:
        if is_owned:
            end(functions)
        raise


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
        functions = ask_again(build) if file.absolute() in _answered else build()
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
