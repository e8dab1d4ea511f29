"""Lithops as an executor: on this machine, by a configuration, or by a FunctionExecutor of the caller."""

from __future__ import annotations

from typing import Any

from polarmap.clouds.limits import Worker, worker_of
from polarmap.errors import ExecutorError
from polarmap.executors.base import Payload, check_folder
from polarmap.executors.choices import is_localhost, is_of_lithops, is_path
from polarmap.executors.lithops_configuration import open_functions, read_configuration
from polarmap.executors.lithops_internals import another_like, end, localhost_functions
from polarmap.executors.lithops_run import LithopsRun
from polarmap.worker.parts import Place


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
        is_private = is_localhost(self._choice)
        if is_private:
            check_folder(payload.blocks.source)
            check_folder(payload.output and payload.output.source)
        if is_of_lithops(self._choice):
            _check(payload, self._choice)
            return LithopsRun(self.name, payload, self._choice)
        functions = own_functions(self._choice)
        try:
            _check(payload, functions)
            return LithopsRun(self.name, payload, functions, is_owned=True, is_private=is_private)
        except BaseException:
            end(functions)
            raise


def own_functions(choice: Any, count: int = 1) -> Any:
    """A FunctionExecutor that is ours to end; `count`: its slots where the choice is "localhost"."""
    if is_localhost(choice):
        return localhost_functions(count)
    return open_functions(choice) if is_path(choice) else another_like(choice)


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
