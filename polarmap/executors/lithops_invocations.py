"""Opens Lithops FunctionExecutors and storages, and invokes functions.

`LithopsSource` knows how to open a FunctionExecutor: on this machine, from a configuration file, or as a
clone of the FunctionExecutor that the user has passed. `LithopsInvocations` starts functions and collects
their results.
"""

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
    find_futures_without_status,
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

SUBMIT_RETRY_SECONDS = 1.0  # seconds to keep retrying a local job whose files cannot be stored
LISTING_INTERVAL = 0.1  # seconds between polls, each of which may send a listing request to the storage
WRITE_SETTLE_SECONDS = 0.1  # seconds for a PUT request to complete after its sender was killed
STORAGE_TIMEOUT = 10  # time limit in seconds for connecting to a storage and for each read

PAYLOAD_TOO_LARGE_ADVICE = (
    ". The tasks refer to many stored objects: set data_limit: 0 in the lithops section of the "
    "configuration, or use fewer and larger objects (memory= of encode)"
)
# Configuration files that Lithops has accepted before. If a later request fails, it is therefore repeated.
_answered_configs: set[Path] = set()


class InterpreterError(InvocationLostError):
    """Raised if a function has no result because its Python interpreter cannot run Lithops functions."""


class LithopsInvocations:
    """Starts Lithops functions for a map or a pool, and tracks which of them have started or ended.

    Each function is identified by a key that the caller chooses, such as the index of a task. The functions
    run on one or more FunctionExecutors.

    Parameters
    ----------
    source : LithopsSource
        The object that opens the FunctionExecutors.
    shares_executor : bool
        True: use the user's FunctionExecutor, if any, and leave it open. False: always open a new one.

    Attributes
    ----------
    function_executor : lithops.FunctionExecutor
        The first executor. A local executor runs its jobs one after another, so each further job gets its
        own.
    running_futures : dict
        The futures of unfinished functions, by the key that the caller of `invoke` has chosen.
    uses_private_folder : bool
        True if all Lithops files are in this process's temporary folder.
    is_local : bool
        True if functions run as processes on this machine, outside containers.
    reach : Reach
        The storage that the functions can access.
    """

    def __init__(self, source: LithopsSource, shares_executor: bool = False) -> None:
        self.uses_private_folder = source.uses_private_folder
        self._shared_executor = source.shared_executor if shares_executor else None
        self._job_keys_by_executor: dict[Any, set[str]] = {}  # FunctionExecutor -> keys of its jobs
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
        """Return the FunctionExecutor to use for the next job. Raises ExecutorError if none can be opened.

        On this machine, a FunctionExecutor runs its jobs one after another. Each further job therefore gets a
        new FunctionExecutor, so that jobs run at the same time.

        Parameters
        ----------
        n_slots : int or None
            The number of functions of the job that must be able to run concurrently on this machine. None
            keeps the configured value.
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
            raise ExecutorError(f"{self.name} cannot start a job: {_format_error(error)}") from error
        self._job_keys_by_executor[new_executor] = set()
        return new_executor

    def invoke(
        self,
        function_executor: Any,
        task_function: Any,
        arguments_by_key: Mapping[Any, dict[str, Any]],
        **map_options: Any,
    ) -> None:
        """Start a Lithops job that calls `task_function` once for each key.

        Parameters
        ----------
        function_executor : lithops.FunctionExecutor
            The result of `get_executor_for_next_job`.
        task_function : callable
            The function to call.
        arguments_by_key : mapping
            The keyword arguments of each call, by key.
        **map_options
            Additional options for `FunctionExecutor.map`.

        Raises
        ------
        ExecutorError
            If Lithops does not accept the job.
        """
        if self.uses_private_folder:
            # Let all functions of the job run at once, so that sleeping functions do not block others.
            function_executor.config["localhost"]["worker_processes"] = len(arguments_by_key)
            map_options["include_modules"] = None
        else:
            # Do not let Lithops send these packages with f: the pickle contains polarmap's worker code, and
            # workers have NumPy installed.
            map_options["exclude_modules"] = ["polarmap", "numpy"]
        try:
            with pickle_worker_code_by_value():
                arguments = list(arguments_by_key.values())
                submit = partial(function_executor.map, task_function, arguments, chunksize=1, **map_options)
                # Retry local jobs, because writing their files fails if another map has just removed the
                # empty job folder.
                futures = retry_request(submit, SUBMIT_RETRY_SECONDS if self.is_local else 0.0)
        except Exception as error:
            reason = find_interpreter_error(function_executor) or _format_error(error)
            advice = PAYLOAD_TOO_LARGE_ADVICE if "maximum size" in str(error) else ""
            raise ExecutorError(f"{self.name} cannot start a job: {reason}{advice}") from error
        add_status_callback(futures, self._status_changed.set)
        self._status_changed.set()  # A function may have started before the callback was registered.
        self.running_futures |= zip(arguments_by_key, futures, strict=True)
        self._not_started.update(arguments_by_key)
        self._job_keys_by_executor[function_executor] |= {future.job_key for future in futures}

    def wait(self, timeout: float) -> None:
        """Block until a function starts or ends, `wake` is called, or the next poll is due.

        The wait takes at most `timeout` seconds or LISTING_INTERVAL, whichever is shorter.
        """
        self._status_changed.wait(min(timeout, LISTING_INTERVAL))
        self._status_changed.clear()

    def wake(self) -> None:
        """Make the current or the next call of `wait` return soon."""
        self._status_changed.set()

    def collect_started_keys(self, include_unseen: bool = False) -> list[Any]:
        """Return the keys of the functions that have started since the last call.

        Only the start of functions on this machine can be observed. On a cloud, functions count as started
        once they are submitted. With `include_unseen`, this also applies to functions on this machine.
        """
        include_all = include_unseen or not self.is_local
        started_keys = [key for key in self._not_started if include_all or self.running_futures[key].running]
        self._not_started.difference_update(started_keys)
        return started_keys

    def collect_finished_results(self, may_query: bool = True) -> dict[Any, Any]:
        """Return the results of the functions that have ended since the last call, by key.

        For a function without a result, the value is an InvocationLostError. If processes on this machine
        have exited early and `may_query` is true, also test their Python interpreter, which may take seconds.
        If it does not work, the value is an InterpreterError.
        """
        finished_keys = [key for key, future in self.running_futures.items() if is_future_finished(future)]
        results = {key: self._fetch_result(self.running_futures.pop(key)) for key in finished_keys}
        if time.monotonic() >= self._next_poll_at:
            for function_executor in self._job_keys_by_executor:
                results |= self._remove_invocations_without_status(function_executor, may_query)
            self._next_poll_at = time.monotonic() + LISTING_INTERVAL
        self._not_started -= results.keys()
        return results

    def close(self) -> list[str]:
        """Abandon running functions and close the FunctionExecutors.

        Return the key prefixes of the objects that are left in the storage.
        """
        has_late_writes = bool(self.running_futures) and not self.uses_private_folder
        leftover_prefixes = self._close_executors(list(self._job_keys_by_executor))
        if has_late_writes:  # Write requests that killed processes have sent may still create objects.
            time.sleep(WRITE_SETTLE_SECONDS)
        return leftover_prefixes

    def close_idle_executors(self) -> list[str]:
        """Close all FunctionExecutors whose functions have ended, except the first FunctionExecutor.

        Return the key prefixes of the objects that are left in the storage.
        """
        others = [item for item in self._job_keys_by_executor if item is not self.function_executor]
        return self._close_executors([item for item in others if not self._get_futures_running_on(item)])

    def _get_futures_running_on(self, function_executor: Any) -> dict[Any, Any]:
        """Return the Lithops futures of the functions that still run on a FunctionExecutor, by key."""
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

    def _remove_invocations_without_status(
        self, function_executor: Any, may_query: bool
    ) -> dict[Any, InvocationLostError]:
        """Stop tracking local functions that ended without storing a status, and return their errors by key.

        The process of such a function was killed, or could not reach its storage.
        """
        running = self._get_futures_running_on(function_executor)
        key_by_future = {future: key for key, future in running.items()}
        restart_dead_monitor(function_executor, list(key_by_future))
        silent_futures = find_futures_without_status(function_executor, list(key_by_future))
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
    """Opens Lithops FunctionExecutors of the kind that the user's argument `executor=` selects.

    A source opens executors that run functions on this machine, executors from a configuration file, or
    clones of a FunctionExecutor that the user has passed.

    Attributes
    ----------
    open_function_executor : callable
        Opens a FunctionExecutor. Called with no arguments; raises ExecutorError if that fails.
    read_config : callable or None
        Returns the complete configuration; called with no arguments. None if there is no configuration.
    get_storage : callable
        Returns the storage that workers can access, as a value for `storage=` of `encode`. Called with no
        arguments.
    is_config : bool
        True if the source is a configuration, from which each map opens its own FunctionExecutor.
    uses_private_folder : bool
        True if functions run as processes on this machine, with all files in this process's temporary folder.
    shared_executor : lithops.FunctionExecutor or None
        The user's FunctionExecutor, which maps may use.
    """

    open_function_executor: Callable[[], Any]
    read_config: Callable[[], Mapping[str, Any]] | None
    get_storage: Callable[[], Any]
    is_config: bool = False
    uses_private_folder: bool = False
    shared_executor: Any = None

    @classmethod
    def for_localhost(cls) -> LithopsSource:
        """Return a source of local FunctionExecutors, which need no configuration file."""
        return cls(
            build_localhost_executor,
            None,
            lambda: get_process_temp_folder() / "arrays",
            uses_private_folder=True,
        )

    @classmethod
    def from_config(cls, path: str | os.PathLike[str]) -> LithopsSource:
        """Return a source of FunctionExecutors that are opened from a configuration file."""
        return cls(
            partial(open_function_executor, path),
            partial(read_complete_config, path),
            lambda: path,
            is_config=True,
        )

    @classmethod
    def from_executor(cls, function_executor: Any) -> LithopsSource:
        """Return a source that shares a user's FunctionExecutor or opens clones of it."""
        return cls(
            partial(clone_function_executor, function_executor),
            lambda: function_executor.config,
            lambda: function_executor,
            shared_executor=function_executor,
        )


# --- configurations ----------------------------------------------------------------------------


def read_complete_config(config_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a configuration file and add Lithops' defaults, without sending requests to the cloud."""
    with _open_config_file(config_path) as (file, defaults):
        default_config = import_lithops().config.default_config
        config: dict[str, Any] = default_config(str(file), None, {"backend": defaults})
        return config


def open_function_executor(config_path: str | os.PathLike[str]) -> Any:
    """Open a FunctionExecutor from a configuration file. Raises ExecutorError if Lithops cannot use it."""
    with _open_config_file(config_path) as (file, defaults):
        build = partial(build_function_executor, config_file=str(file), **defaults)
        function_executor = retry_request(build) if file.absolute() in _answered_configs else build()
    # Allow jobs of any size unless the configuration sets a limit. Lithops' default is 4 MiB.
    function_executor.config["lithops"].setdefault("data_limit", 0)
    _answered_configs.add(file.absolute())
    return function_executor


def open_lithops_storage(executor_spec: Any) -> Any:
    """Open a new `lithops.Storage`, from the path of a configuration file or from a FunctionExecutor.

    Raises
    ------
    StorageError
        If the configuration does not exist or Lithops cannot open its storage.
    """
    file = Path(executor_spec) if isinstance(executor_spec, (str, os.PathLike)) else None
    config_label = f"lithops/{executor_spec.backend}" if file is None else repr(str(file))
    if file is not None and not file.is_file():
        raise StorageError(f"the Lithops configuration {config_label} does not exist")
    try:
        storage_settings = (
            executor_spec.storage.get_storage_config() if file is None else load_storage_settings(file)
        )
        storage = open_storage_without_retries(copy.deepcopy(storage_settings), STORAGE_TIMEOUT)
    except Exception as error:
        raise StorageError(
            f"Lithops cannot open the storage of {config_label}: {type(error).__name__}: {error}"
        ) from error
    if file is None:
        # The executor may have created a bucket that is not named in the configuration.
        storage.bucket = executor_spec.storage.bucket
    return storage


@contextlib.contextmanager
def _open_config_file(config_path: str | os.PathLike[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the path of a configuration file, and defaults for settings that it omits.

    If the file names no Python interpreter (`runtime`) for functions on this machine, Lithops would run the
    command `python`. The default that is yielded is this process's interpreter. Lithops errors inside the
    context are converted to an ExecutorError that names the file and any package to install.
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
