"""FunctionExecutors and storages of Lithops: how they are opened, and functions run on the former."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from polarmap.clouds import lithops_config
from polarmap.errors import ExecutorError, StorageError
from polarmap.executors.interface import Reach
from polarmap.executors.lithops_internals import (
    InvocationLostError,
    abandon_jobs,
    add_status_callback,
    build_function_executor,
    build_localhost_executor,
    clone_function_executor,
    close_function_executor,
    fetch_result,
    find_exited_without_status,
    find_interpreter_error,
    get_interpreter_for_lithops,
    import_lithops,
    is_future_finished,
    is_localhost_function_executor,
    list_job_key_prefixes,
    load_storage_settings,
    open_storage_without_retries,
    restart_dead_monitor,
)
from polarmap.executors.pickling import pickle_worker_code_by_value
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.worker.retries import retry_request

SUBMIT_RETRY_SECONDS = 1.0  # in which Lithops is given a job again that it could not store
LISTING_INTERVAL = 0.1  # between two looks that may ask a storage
WRITE_SETTLE_SECONDS = 0.1  # that a storage may take to finish a PUT whose sender is gone
STORAGE_TIMEOUT = 10  # Seconds to connect to a storage, and to wait for the next byte. Callers retry.

PAYLOAD_TOO_LARGE_ADVICE = (
    ": tasks are told of many parts; say data_limit: 0 in the lithops section of the configuration, or use "
    "fewer and larger parts (memory= of encode)"
)
_answered_configs: set[Path] = set()  # configurations whose storage has answered


class InterpreterError(InvocationLostError):
    """A function ended without a result, as its interpreter can run none."""


class LithopsInvocations:
    """Functions that Lithops was given to run, by key, on as many FunctionExecutors as that takes.

    Parameters
    ----------
    source : LithopsSource
        Where the FunctionExecutors come from.
    shares_executor : bool
        Whether to use a FunctionExecutor of the caller itself, and leave it open; else one is opened like it.

    Attributes
    ----------
    function_executor : lithops.FunctionExecutor
        The first. On this machine, where one runs its jobs one after another, each further job has its own.
    running_futures : dict
        From key to future, of what has not ended as far as is known.
    uses_private_folder : bool
        Whether all files of Lithops are in the temporary folder of this process.
    is_local : bool
        Whether functions are processes of this machine, in no container.
    reach : Reach
        The storage that these functions can use.
    """

    def __init__(self, source: LithopsSource, shares_executor: bool = False) -> None:
        self.uses_private_folder = source.uses_private_folder
        self._shared_executor = source.shared_executor if shares_executor else None
        self._job_keys_by_executor: dict[Any, set[str]] = {}  # by FunctionExecutor: Lithops' keys of its jobs
        self.function_executor = self._shared_executor or source.open_function_executor()
        self._job_keys_by_executor[self.function_executor] = set()
        self.is_local = is_localhost_function_executor(self.function_executor)
        storage = "" if self.uses_private_folder else self.function_executor.storage.backend
        self.reach = Reach("" if self.is_local else self.function_executor.backend, storage)
        self.name = "localhost" if self.uses_private_folder else f"lithops/{self.function_executor.backend}"
        self.running_futures: dict[Any, Any] = {}
        self._not_started: set[Any] = set()
        self._next_poll_at = 0.0
        self._status_changed = threading.Event()

    def get_executor_for_next_job(self, n_slots: int | None = None) -> Any:
        """What the next job is to be started on; ExecutorError if Lithops makes none now.

        n_slots : that the job needs on this machine, as its functions do not return; None: those configured.
        """
        if self.function_executor.backend != "localhost" or not (
            self._job_keys_by_executor[self.function_executor] or n_slots
        ):
            return self.function_executor
        try:
            if self.uses_private_folder:
                new_executor = build_localhost_executor()
            else:
                new_executor = clone_function_executor(self.function_executor, n_slots)
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no job: {_format_error(error)}") from error
        self._job_keys_by_executor[new_executor] = set()
        return new_executor

    def invoke(
        self,
        function_executor: Any,
        task_function: Any,
        arguments_by_key: Mapping[Any, dict[str, Any]],
        **map_options: Any,
    ) -> None:
        """Hand functions to Lithops as one job: a task with an item each; ExecutorError if it takes none."""
        if self.uses_private_folder:
            # One that sleeps keeps none from starting.
            function_executor.config["localhost"]["worker_processes"] = len(arguments_by_key)
            map_options["include_modules"] = None
        else:  # Pure-Python modules that f needs travel along; polarmap's worker side does so by value.
            map_options["exclude_modules"] = ["polarmap", "numpy"]
        try:
            with pickle_worker_code_by_value():
                arguments = list(arguments_by_key.values())
                submit = partial(function_executor.map, task_function, arguments, chunksize=1, **map_options)
                # Here another map may just have removed the folder of jobs, when it was empty.
                futures = retry_request(submit, SUBMIT_RETRY_SECONDS if self.is_local else 0.0)
        except Exception as error:
            reason = find_interpreter_error(function_executor) or _format_error(error)
            advice = PAYLOAD_TOO_LARGE_ADVICE if "maximum size" in str(error) else ""
            raise ExecutorError(f"{self.name} takes no job: {reason}{advice}") from error
        add_status_callback(futures, self._status_changed.set)
        self._status_changed.set()  # what it has seen by now
        self.running_futures |= zip(arguments_by_key, futures, strict=True)
        self._not_started.update(arguments_by_key)
        self._job_keys_by_executor[function_executor] |= {future.job_key for future in futures}

    def wait(self, timeout: float) -> None:
        """Until Lithops has seen a task begin or end, `wake` was called, or it is time to look."""
        self._status_changed.wait(min(timeout, LISTING_INTERVAL))
        self._status_changed.clear()

    def wake(self) -> None:
        """Let a wait end, this or the next one."""
        self._status_changed.set()

    def collect_started_keys(self, include_unseen: bool = False) -> list[Any]:
        """The tasks that came to run since the last look; on a cloud that is at once, as far as is known.

        include_unseen : whether to count tasks that Lithops has not seen begin.
        """
        include_all = include_unseen or not self.is_local
        started_keys = [key for key in self._not_started if include_all or self.running_futures[key].running]
        self._not_started.difference_update(started_keys)
        return started_keys

    def collect_finished_results(self, may_query: bool = True) -> dict[Any, Any]:
        """What each has returned that ended since the last look: an InvocationLostError if nothing.

        may_query : their interpreter, why processes have ended without a word.
        """
        finished_keys = [key for key, future in self.running_futures.items() if is_future_finished(future)]
        results = {key: self._fetch_result(self.running_futures.pop(key)) for key in finished_keys}
        if time.monotonic() >= self._next_poll_at:
            for function_executor in self._job_keys_by_executor:
                results |= self._remove_silently_exited(function_executor, may_query)
            self._next_poll_at = time.monotonic() + LISTING_INTERVAL
        self._not_started -= results.keys()
        return results

    def close(self) -> list[str]:
        """Drop or kill what runs; what the keys of objects begin with that are left, once all are there."""
        has_late_writes = bool(self.running_futures) and not self.uses_private_folder
        leftover_prefixes = self._close_executors(list(self._job_keys_by_executor))
        if has_late_writes:  # what was on its way when its writer was killed
            time.sleep(WRITE_SETTLE_SECONDS)
        return leftover_prefixes

    def close_idle_executors(self) -> list[str]:
        """Let go of those FunctionExecutors but the first that run nothing any more; what is left of them."""
        others = [item for item in self._job_keys_by_executor if item is not self.function_executor]
        return self._close_executors([item for item in others if not self._get_futures_running_on(item)])

    def _get_futures_running_on(self, function_executor: Any) -> dict[Any, Any]:
        """From key to future, of what runs on one of them."""
        job_keys = self._job_keys_by_executor[function_executor]
        return {key: future for key, future in self.running_futures.items() if future.job_key in job_keys}

    def _close_executors(self, function_executors: Sequence[Any]) -> list[str]:
        leftover_prefixes = []
        for function_executor in function_executors:
            running = self._get_futures_running_on(function_executor)
            for key in running:
                del self.running_futures[key]
            job_names: Collection[str] = self._job_keys_by_executor.pop(function_executor)
            if function_executor is self._shared_executor:
                abandon_jobs(function_executor, list(running.values()), job_names)
            else:
                close_function_executor(function_executor)
                job_names = [function_executor.executor_id]
            leftover_prefixes += list_job_key_prefixes(job_names)
        return leftover_prefixes

    def _fetch_result(self, future: Any) -> Any:
        try:
            return fetch_result(future, self.function_executor)
        except InvocationLostError as error:
            return error
        except Exception as error:
            return InvocationLostError(_format_error(error))

    def _remove_silently_exited(
        self, function_executor: Any, may_query: bool
    ) -> dict[Any, InvocationLostError]:
        """Those whose processes have ended and left nothing: killed, or their storage was away."""
        running = self._get_futures_running_on(function_executor)
        key_by_future = {future: key for key, future in running.items()}
        restart_dead_monitor(function_executor, list(key_by_future))
        silent_futures = find_exited_without_status(function_executor, list(key_by_future))
        reason = find_interpreter_error(function_executor) if silent_futures and may_query else ""
        error = InvocationLostError("its worker process ended without reporting")
        if reason:
            error = InterpreterError(reason)
        for future in silent_futures:
            del self.running_futures[key_by_future[future]]
        return {key_by_future[future]: error for future in silent_futures}


def _format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class LithopsSource(NamedTuple):
    """Where FunctionExecutors come from.

    open_function_executor : called with no arguments, opens a FunctionExecutor, or raises ExecutorError.
    read_config : called with no arguments, returns the complete configuration; None: there is none.
    get_storage : called with no arguments, returns the storage that workers reach, as `encode` takes it.
    is_config : whether it is a configuration, from which each map opens a FunctionExecutor of its own.
    uses_private_folder : whether there is a process of this machine for each function, and all files are in
        the temporary folder of this process.
    shared_executor : the FunctionExecutor of the caller that maps may use; None if there is none.
    """

    open_function_executor: Callable[[], Any]
    read_config: Callable[[], Mapping[str, Any]] | None
    get_storage: Callable[[], Any]
    is_config: bool = False
    uses_private_folder: bool = False
    shared_executor: Any = None

    @classmethod
    def for_localhost(cls) -> LithopsSource:
        """Return the source of FunctionExecutors of this machine, without a configuration."""
        return cls(
            build_localhost_executor,
            None,
            lambda: get_process_temp_folder() / "arrays",
            uses_private_folder=True,
        )

    @classmethod
    def from_config(cls, path: str | os.PathLike[str]) -> LithopsSource:
        """Return the source that a configuration file is."""
        return cls(
            partial(open_function_executor, path),
            partial(read_complete_config, path),
            lambda: path,
            is_config=True,
        )

    @classmethod
    def from_executor(cls, function_executor: Any) -> LithopsSource:
        """Return the source of a FunctionExecutor of the caller, and of others like it."""
        return cls(
            partial(clone_function_executor, function_executor),
            lambda: function_executor.config,
            lambda: function_executor,
            shared_executor=function_executor,
        )


# --- configurations ----------------------------------------------------------------------------


def read_complete_config(config_path: str | os.PathLike[str]) -> dict[str, Any]:
    """A configuration with Lithops' defaults, without asking anything of its cloud."""
    with _open_config_file(config_path) as (file, defaults):
        default_config = import_lithops().config.default_config
        config: dict[str, Any] = default_config(str(file), None, {"backend": defaults})
        return config


def open_function_executor(config_path: str | os.PathLike[str]) -> Any:
    """Open a FunctionExecutor as a configuration file says. Raises ExecutorError if Lithops cannot use it."""
    with _open_config_file(config_path) as (file, defaults):
        build = partial(build_function_executor, config_file=str(file), **defaults)
        function_executor = retry_request(build) if file.absolute() in _answered_configs else build()
    # Jobs may be told of any number of parts, unless the owner says how much: Lithops allows 4 MiB.
    function_executor.config["lithops"].setdefault("data_limit", 0)
    _answered_configs.add(file.absolute())
    return function_executor


def open_lithops_storage(executor_spec: Any) -> Any:
    """A `lithops.Storage` of our own, for a YAML path or a FunctionExecutor.

    Raises
    ------
    StorageError
        If Lithops cannot make one of it.
    """
    file = Path(executor_spec) if isinstance(executor_spec, (str, os.PathLike)) else None
    config_label = f"lithops/{executor_spec.backend}" if file is None else repr(str(file))
    if file is not None and not file.is_file():
        raise StorageError(f"there is no Lithops configuration {config_label}")
    try:
        storage_settings = (
            executor_spec.storage.get_storage_config() if file is None else load_storage_settings(file)
        )
        storage = open_storage_without_retries(copy.deepcopy(storage_settings), STORAGE_TIMEOUT)
    except Exception as error:
        raise StorageError(
            f"Lithops has no storage for {config_label}: {type(error).__name__}: {error}"
        ) from error
    if file is None:
        storage.bucket = executor_spec.storage.bucket  # which may be one that it made itself
    return storage


@contextlib.contextmanager
def _open_config_file(config_path: str | os.PathLike[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A configuration file, and what it should not leave to Lithops, whose interpreter is `python`.

    What Lithops raises becomes an ExecutorError that names the file, and what to install.
    """
    file = Path(config_path)
    config = lithops_config.read_config(file)
    is_localhost_backend = lithops_config.get_backend_name(config) == "localhost"
    names_runtime = "runtime" in (config.get("localhost") or {})
    try:
        needs_runtime = is_localhost_backend and not names_runtime
        yield file, {"runtime": get_interpreter_for_lithops()} if needs_runtime else {}
    except Exception as error:
        hint = lithops_config.make_missing_client_hint(config, error)
        raise ExecutorError(f"Lithops cannot use {str(file)!r}: {_format_error(error)}{hint}") from error
