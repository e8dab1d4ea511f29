"""Lithops as an executor: on this machine, by a configuration, or by a FunctionExecutor of the caller."""

from __future__ import annotations

import os
from typing import Any

from polarmap.clouds.limits import Worker, worker_of
from polarmap.errors import ExecutorError
from polarmap.executors.base import Payload, check_folder
from polarmap.executors.lithops_configuration import open_functions, read_configuration
from polarmap.executors.lithops_internals import end, localhost_functions
from polarmap.executors.lithops_run import LithopsRun
from polarmap.worker.parts import Place


class LocalhostExecutor:
    """Lithops on this machine, with a process for every task and all its files in our temporary folder."""

    name = "localhost"
    worker: Worker | None = None

    def open(self, payload: Payload) -> LithopsRun:
        """Jobs on a FunctionExecutor of its own; ExecutorError for storage elsewhere."""
        check_folder(payload.blocks.source)
        check_folder(payload.output and payload.output.source)
        return _owned(self.name, payload, localhost_functions(1), is_private=True)


class LithopsExecutor:
    """A FunctionExecutor that belongs to the caller."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        self.name = f"lithops/{functions.backend}"
        self.worker = worker_of(functions.config)

    def open(self, payload: Payload) -> LithopsRun:
        """Further jobs on it; ExecutorError for storage that its workers cannot reach."""
        _check(payload, self._functions)
        return LithopsRun(self.name, payload, self._functions)


class YamlExecutor:
    """A Lithops configuration of the caller, which is opened for each map and ended with it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        config = read_configuration(path)
        self.name = f"lithops/{config['lithops']['backend']}"
        self.worker = worker_of(config)

    def open(self, payload: Payload) -> LithopsRun:
        """Jobs on a FunctionExecutor of its own; ExecutorError if Lithops cannot make one."""
        return _owned(self.name, payload, open_functions(self._path))


def _owned(name: str, payload: Payload, functions: Any, is_private: bool = False) -> LithopsRun:
    """A run on a FunctionExecutor that ends with it, or now if there is none."""
    try:
        _check(payload, functions)
        return LithopsRun(name, payload, functions, is_owned=True, is_private=is_private)
    except BaseException:
        end(functions)
        raise


def _check(payload: Payload, functions: Any) -> None:
    """ExecutorError for arrays of a map that the workers of a FunctionExecutor cannot reach."""
    check_reachable(payload.blocks.source, "lies in", functions)
    check_reachable(payload.output and payload.output.source, "is to stay in", functions)


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
