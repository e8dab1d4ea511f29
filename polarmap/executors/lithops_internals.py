"""All code that depends on Lithops internals, which may change in any new version.

Raise the pinned Lithops version only if this module's tests pass. All other modules use the public methods of
`lithops.FunctionExecutor` or functions of this module.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import copy
import importlib.util
import json
import logging
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from zlib import crc32

from polarmap.errors import ExecutorError
from polarmap.executors.fork_server_client import INTERPRETER_START_SECONDS
from polarmap.executors.pickling import find_referenced_modules
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.worker.environment import get_absolute_sys_path
from polarmap.worker.future_tasks import CANCEL_POLL_INTERVAL
from polarmap.worker.segments import write_file
from polarmap.worker.storage_channel import MAX_POLL_INTERVAL

_patch_lock = threading.RLock()


@cache
def import_lithops() -> Any:
    """Import and return Lithops. Its log messages are discarded unless the user has configured logging."""
    is_first_import = "lithops" not in sys.modules
    try:
        import lithops
    except FileNotFoundError as error:  # Importing Lithops requires a temporary folder.
        raise ExecutorError(
            f"Lithops needs a temporary folder. Set TMPDIR to an existing folder: {error}"
        ) from error
    logging.getLogger("lithops").addHandler(logging.NullHandler())
    if is_first_import:
        atexit.register(_remove_empty_lithops_folders)
    return lithops


def _remove_empty_lithops_folders() -> None:
    """Remove the empty folders that importing Lithops has created in the temporary folder."""
    from lithops import constants

    for folder in (constants.JOBS_DIR, constants.LOGS_DIR, constants.CLEANER_DIR, constants.LITHOPS_TEMP_DIR):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


# --- interpreters ------------------------------------------------------------------------------


def write_runner_script(interpreter: str, localhost_version: int, in_private_folder: bool) -> str:
    """Write a shell script that starts the Lithops worker program, and return the path of the script.

    Without the script, Lithops would run a copy of itself from a shared folder, where any other process may
    replace it. Workers with the driver's interpreter also get its module search path.

    Parameters
    ----------
    interpreter : str
        The path of the Python interpreter of the workers.
    localhost_version : int
        The version of Lithops' localhost backend, 1 or 2.
    in_private_folder : bool
        True if Lithops should also write its files to this process's temporary folder.
    """
    folder, is_this_interpreter = get_process_temp_folder(), interpreter == get_interpreter_for_lithops()
    checksum = crc32(f"{localhost_version} {in_private_folder} {interpreter}".encode())
    script_path = folder / f"runner-{checksum}"
    module_paths = get_absolute_sys_path() if is_this_interpreter else [_make_lithops_only_folder()]
    write_file(str(folder), f"{script_path.name}.paths", json.dumps(module_paths).encode())
    python_code = (
        f"import json, sys; paths = json.load(open('{script_path}.paths')); "
        f"sys.path[:] = [*paths, *filter(None, sys.path)]; "
        f"from lithops.localhost.v{localhost_version}.runner import main; main()"
    )
    if not script_path.exists():
        tmpdir_assignment = f'TMPDIR="{folder}" ' if in_private_folder else ""
        program = sys.executable if is_this_interpreter else interpreter
        script_path.write_text(
            f'#!/bin/sh\nshift\n{tmpdir_assignment}exec "{program}" -c "{python_code}" "$@"\n'
        )
        script_path.chmod(script_path.stat().st_mode | stat.S_IXUSR)
    return str(script_path)


def _make_lithops_only_folder() -> str:
    """Return a folder that contains only a link to the driver's Lithops package.

    Another Python interpreter can use it as a module search path without importing the driver's other
    packages.
    """
    folder = get_process_temp_folder() / "packages"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "lithops").symlink_to(Path(import_lithops().__file__).parent)
    return str(folder)


def get_interpreter_for_lithops() -> str:
    """Return the path of this interpreter, or an alias if the path has characters that Lithops rejects."""
    return sys.executable if re.fullmatch(r"[A-Za-z0-9_/.:-]+", sys.executable) else "python-here"


# --- configurations and storage ----------------------------------------------------------------


def load_storage_settings(config_file: Path) -> dict[str, Any]:
    """Return the storage settings in a Lithops configuration file.

    If the file configures no storage, the localhost backend uses the file system.
    """
    lithops = import_lithops()
    config: dict[str, Any] = lithops.config.load_yaml_config(str(config_file)) or {}
    section = config.setdefault("lithops", {})
    if "storage" not in section and section.get("backend", "localhost") == "localhost":
        section["storage"] = "localhost"
    complete_config = lithops.config.default_storage_config(config_data=config)
    settings: dict[str, Any] = lithops.config.extract_storage_config(complete_config)
    return settings


def open_storage_without_retries(storage_settings: dict[str, Any], timeout: int) -> Any:
    """Open a `lithops.Storage` whose requests time out after `timeout` seconds and are not retried.

    By default, Lithops tries each request six times. Its S3 clients read this number from a module global, so
    this function patches a copy of the module to leave other executors unaffected. The Redis client reads the
    number from its settings.
    """
    backend_name = storage_settings["backend"]
    if backend_name == "redis":
        retry: Any = importlib.import_module("redis.retry")
        no_retries = retry.Retry(importlib.import_module("redis.backoff").NoBackoff(), 0)
        redis_options = {"socket_connect_timeout": timeout, "socket_timeout": timeout, "retry": no_retries}
        storage_settings = {**storage_settings, backend_name: redis_options | storage_settings[backend_name]}
    build_storage = partial(import_lithops().Storage, storage_config=storage_settings)
    backend = importlib.import_module(f"lithops.storage.backends.{backend_name}")
    original_class = backend.StorageBackend
    if not hasattr(sys.modules[original_class.__module__], "OBJ_REQ_RETRIES"):
        return build_storage()
    spec: Any = importlib.util.find_spec(original_class.__module__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(CONN_READ_TIMEOUT=timeout, OBJ_REQ_RETRIES=0)
    with _patch_attribute(backend, "StorageBackend", vars(module)[original_class.__name__]):
        return build_storage()


@contextlib.contextmanager
def _patch_attribute(owner: Any, attribute_name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a Lithops module inside this context. Only one thread at a time can enter."""
    with _patch_lock:
        original = getattr(owner, attribute_name)
        setattr(owner, attribute_name, value)
        try:
            yield
        finally:
            setattr(owner, attribute_name, original)


# --- FunctionExecutors -------------------------------------------------------------------------


def build_function_executor(in_private_folder: bool = False, **options: Any) -> Any:
    """Create a Lithops FunctionExecutor with the given `options`.

    Functions that run as processes on this machine use the same Lithops package as the driver. Functions in
    containers use the one in their image. With `in_private_folder`, files are written to this process's
    temporary folder instead of Lithops' shared folder.
    """
    with contextlib.ExitStack() as stack:
        for version in (1, 2):
            module = importlib.import_module(f"lithops.localhost.v{version}.localhost")
            # Skip `setup`, which would copy Lithops to the shared folder. The copy would not be used.
            stack.enter_context(_patch_attribute(module.DefaultEnvironment, "setup", lambda env: None))
        function_executor = import_lithops().FunctionExecutor(log_level=None, **options)
    if is_localhost_function_executor(function_executor):
        env, settings = function_executor.compute_handler.env, function_executor.config["localhost"]
        env._ensure_runner = lambda: None
        env.runtime_name = write_runner_script(
            settings["runtime"], settings.get("version", 2), in_private_folder
        )
        if settings["runtime"] == get_interpreter_for_lithops():
            metadata = _load_runtime_metadata()
            # Pass the runtime's metadata directly. Otherwise, Lithops would start an interpreter to find it,
            # and write a file to the user's Lithops cache.
            function_executor.internal_storage.get_runtime_meta = lambda key: metadata
    return function_executor


def build_localhost_executor() -> Any:
    """Create a FunctionExecutor that runs functions as processes on this machine.

    All of its files are in this process's temporary folder. To change how many functions of a job run at the
    same time, change `worker_processes` in its configuration before the job is started.
    """
    lithops_section = {
        "backend": "localhost",
        "storage": "localhost",
        "monitoring": "storage",
        "monitoring_interval": CANCEL_POLL_INTERVAL,
        "data_cleaner": False,
        "data_limit": 0,
    }
    localhost_section = {"version": 1, "runtime": get_interpreter_for_lithops(), "worker_processes": 1}
    function_executor = build_function_executor(
        True, config={"lithops": lithops_section, "localhost": localhost_section}
    )
    # The name of the bucket is an absolute path, so that no files are stored in Lithops' shared folder.
    bucket = str(get_process_temp_folder() / "storage")
    function_executor.config["localhost"]["storage_bucket"] = bucket
    function_executor.internal_storage.bucket = function_executor.storage.bucket = bucket
    return function_executor


@cache
def _load_runtime_metadata() -> dict[str, Any]:
    import_lithops()
    from lithops.worker.utils import get_runtime_metadata

    metadata: dict[str, Any] = get_runtime_metadata()
    return metadata


def list_job_key_prefixes(job_names: Iterable[str]) -> list[str]:
    """Return the key prefixes that identify all objects of the given jobs or FunctionExecutors.

    >>> list_job_key_prefixes(["2f-1"])
    ['lithops.jobs/2f-1-', 'lithops.jobs/2f-1/']
    """
    return [f"lithops.jobs/{job_name}{suffix}" for job_name in job_names for suffix in "-/"]


def clone_function_executor(function_executor: Any, n_processes: int | None = None) -> Any:
    """Create a new FunctionExecutor with the same configuration as another one.

    `n_processes` is the number of functions that run at a time on this machine. None keeps the configured
    value.
    """
    config = copy.deepcopy(function_executor.config)
    if n_processes is not None:
        config[function_executor.backend]["worker_processes"] = n_processes
    return build_function_executor(config=config)


def slow_down_monitoring(function_executor: Any) -> float:
    """Increase the monitoring interval of Lithops to at least MAX_POLL_INTERVAL, and return it in seconds.

    This is the interval at which Lithops looks for finished functions. Each time, it sends a listing request
    to the storage, which is billed.
    """
    config = function_executor.internal_storage.get_storage_config()
    monitoring_interval = max(MAX_POLL_INTERVAL, float(config["monitoring_interval"]))
    # Change both copies of the setting, because `clone_function_executor` copies the second one.
    for settings in (config, function_executor.config["lithops"]):
        settings["monitoring_interval"] = monitoring_interval
    return monitoring_interval


def collect_module_sources(pickled_function: bytes, function_executor: Any) -> dict[str, tuple[str, bool]]:
    """Return the modules that a pickled function needs but the workers' runtime lacks.

    The result maps each module name to its source code and whether it is a package. To find the modules, the
    same analysis is used as in `FunctionExecutor.map`.
    """
    candidate_roots = {name.partition(".")[0] for name in list(sys.modules)}
    candidate_roots -= {"__main__", "polarmap", "numpy", "cloudpickle", *sys.stdlib_module_names}
    roots = {name.partition(".")[0] for name in find_referenced_modules(pickled_function, candidate_roots)}
    if not roots:
        return {}
    from lithops.job.serialize import create_module_data
    from lithops.libs.multyvac.module_dependency import ModuleDependencyAnalyzer

    analyzer = ModuleDependencyAnalyzer()
    runtime = function_executor.invoker.select_runtime("polarmap", None)
    analyzer.ignore({name for name, _ in runtime["preinstalls"]})
    analyzer.ignore({"polarmap", "numpy", "lithops"})
    for root in roots:
        analyzer.add(root)
    sources = {}
    for path, data in create_module_data(analyzer.get_and_clear_paths()).items():
        name = path.removesuffix(".py").replace("/", ".")
        is_package = name.endswith(".__init__")
        sources[name.removesuffix(".__init__")] = base64.b64decode(data).decode(), is_package
    return sources


def is_localhost_function_executor(function_executor: Any) -> bool:
    """Return True if functions run as processes on this machine, outside containers."""
    is_localhost_backend = function_executor.backend == "localhost"
    if not is_localhost_backend:
        return False
    return type(function_executor.compute_handler.env).__name__ == "DefaultEnvironment"


def find_futures_without_status(function_executor: Any, futures: Sequence[Any]) -> list[Any]:
    """Return the futures whose local processes have exited without reporting the end of their functions.

    A function reports its end by storing a status object. The result is empty if the storage cannot be
    reached.
    """
    if function_executor.backend != "localhost":
        return []
    get_status = function_executor.internal_storage.get_call_status
    handler = function_executor.compute_handler
    finished = [future for future in futures if _is_job_finished(handler, future.job_key)]
    try:
        return [item for item in finished if get_status(item.executor_id, item.job_id, item.call_id) is None]
    except Exception:
        return []


def _is_job_finished(compute_handler: Any, job_key: str) -> bool:
    """Return True if no process on this machine is still running functions of the job."""
    job = compute_handler.env.jobs.get(job_key)
    # In version 1 of the localhost backend, one process runs all tasks of a job.
    if isinstance(job, subprocess.Popen):
        return job.poll() is not None
    if job is None:  # Lithops has not started the job yet.
        return compute_handler.job_manager is None or not compute_handler.job_manager.is_alive()
    # In version 2, each task has its own process, and threads that wait for these processes set `job.done`. A
    # job also counts as finished if all of these threads have died.
    return job.done or not any(thread.is_alive() for thread in compute_handler.env.consumer_threads)


def find_interpreter_error(function_executor: Any) -> str:
    """Return why the Python interpreter of local workers cannot run Lithops functions.

    Return an empty string if it can, or if the workers are not on this machine.
    """
    if not is_localhost_function_executor(function_executor):
        return ""
    env, runtime = function_executor.compute_handler.env, function_executor.config["localhost"]["runtime"]
    command = [env.runtime_name, sys.modules[type(env).__module__].RUNNER_FILE, "get_metadata"]
    try:
        completed = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INTERPRETER_START_SECONDS,
        )
        if not completed.returncode:
            return ""
        error_lines = completed.stderr.strip().splitlines()
        reason = error_lines[-1] if error_lines else f"it ended with code {completed.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    return (
        f"the interpreter {runtime} of its workers does not run Lithops ({reason}): install lithops "
        f"and numpy there, or set runtime: {sys.executable} in the localhost section of the configuration"
    )


def restart_dead_monitor(function_executor: Any, futures: Sequence[Any]) -> None:
    """Restart the Lithops thread that monitors the futures, if it has died."""
    if futures and not function_executor.job_monitor.is_alive():
        function_executor.job_monitor.start(fs=futures)


def abandon_jobs(function_executor: Any, futures: Sequence[Any], job_keys: Collection[str]) -> None:
    """Remove queued functions, and kill running ones if the backend supports this.

    The futures of these jobs are also removed, because a FunctionExecutor keeps every future and its result.

    Parameters
    ----------
    function_executor : lithops.FunctionExecutor
        The executor of the jobs.
    futures : sequence of lithops futures
        The unfinished futures.
    job_keys : collection of str
        The keys of the jobs, including finished ones.
    """
    running_job_keys = {future.job_key for future in futures}
    if running_job_keys:
        with contextlib.suppress(Exception):
            function_executor.job_monitor.remove(futures)
            function_executor.compute_handler.clear(running_job_keys, exception=TimeoutError("abandoned"))
    function_executor.futures[:] = [
        each_future for each_future in function_executor.futures if each_future.job_key not in job_keys
    ]


def close_function_executor(function_executor: Any) -> None:
    """Kill the functions of a FunctionExecutor that polarmap has created, and close it.

    Lithops itself would not kill a job that it is just about to start, so all jobs are first passed to
    `abandon_jobs`.
    """
    futures = function_executor.futures
    abandon_jobs(function_executor, futures, {future.job_key for future in futures})
    with contextlib.suppress(Exception):
        function_executor.__exit__(None, None, None)
    atexit.unregister(function_executor._clean_at_exit)
    with contextlib.suppress(Exception):  # Only the singularity and k8s backends connect to RabbitMQ.
        function_executor.compute_handler.backend.connection.close()
    with contextlib.suppress(AttributeError):  # Only version 1 of the localhost backend has a job manager.
        function_executor.compute_handler.job_manager.join(timeout=5)
    # Lithops keeps its local job files outside the storage, so they have to be removed separately.
    for path in get_process_temp_folder().glob(f"lithops-*/jobs/{function_executor.executor_id}*"):
        path.unlink(missing_ok=True)


# --- futures -----------------------------------------------------------------------------------


class InvocationLostError(Exception):
    """Raised if a Lithops function has ended without a result. The message gives the reason."""


def add_status_callback(futures: Iterable[Any], on_status: Callable[[], object]) -> None:
    """Register a callback for when Lithops functions start or end.

    The callback is called without arguments, on a Lithops thread.
    """

    def set_status_and_notify(set_status: Callable[[Any], None], status: Any) -> None:
        set_status(status)
        on_status()

    for future in futures:
        for setter_name in ("_set_running", "_set_ready"):
            setattr(future, setter_name, partial(set_status_and_notify, getattr(future, setter_name)))


def is_future_finished(future: Any) -> bool:
    """Return True if Lithops has seen the end of the future's function, or has stopped waiting for it."""
    return bool(future.ready or future.success or future.done)


def fetch_result(future: Any, function_executor: Any) -> Any:
    """Return the result of a function that has ended. Raises InvocationLostError if it has no result."""
    if future.done:
        # The future is done although its result was not fetched, so Lithops has given up on the function.
        raise InvocationLostError(_explain_lost_result(future))
    future._write_activation_logs = lambda: None  # Otherwise, Lithops would keep the logs of all tasks.
    future.status(throw_except=False, internal_storage=function_executor.internal_storage)
    if future.error:
        raise InvocationLostError(_explain_lost_result(future))
    result = future.result(throw_except=False, internal_storage=function_executor.internal_storage)
    future._call_output = None  # Otherwise, the future would keep the result alive.
    return result


def _explain_lost_result(future: Any) -> str:
    """Return the reason that Lithops gives for a missing result."""
    error = future._exception[1] if isinstance(future._exception, tuple) else future._exception
    text = str(error) or "it never reported"
    if isinstance(error, ImportError):
        text += f" in the runtime of its worker, {future.runtime_name}: install it there"
    return text if isinstance(error, RuntimeError | MemoryError) else f"{type(error).__name__}: {text}"
