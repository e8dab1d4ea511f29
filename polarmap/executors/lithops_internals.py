"""All that is done with the inside of Lithops, which any new version may change: its pin moves by tests.

Everything else in this folder calls public methods of a `lithops.FunctionExecutor`, or what stands here.
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
    """Lithops, quiet unless the caller has set up logging."""
    is_first_import = "lithops" not in sys.modules
    try:
        import lithops
    except FileNotFoundError as error:  # it asks for the temporary folder when it is imported
        raise ExecutorError(f"Lithops needs a temporary folder, set TMPDIR to one: {error}") from error
    logging.getLogger("lithops").addHandler(logging.NullHandler())
    if is_first_import:
        atexit.register(_remove_empty_lithops_folders)
    return lithops


def _remove_empty_lithops_folders() -> None:
    """Importing Lithops makes folders in the temporary folder; leave none that stayed empty."""
    from lithops import constants

    for folder in (constants.JOBS_DIR, constants.LOGS_DIR, constants.CLEANER_DIR, constants.LITHOPS_TEMP_DIR):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


# --- interpreters ------------------------------------------------------------------------------


def write_runner_script(interpreter: str, localhost_version: int, in_private_folder: bool) -> str:
    """The shell script that runs Lithops' runner with an interpreter and this Lithops, in our folder.

    Lithops would run a copy of itself in its shared folder, which any other process replaces.
    Workers in this interpreter import what the driver can: they get its module search path.

    in_private_folder : whether the files of Lithops lie in our folder, too.
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
    """A folder in which other interpreters find this Lithops, and nothing else."""
    folder = get_process_temp_folder() / "packages"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "lithops").symlink_to(Path(import_lithops().__file__).parent)
    return str(folder)


def get_interpreter_for_lithops() -> str:
    """The path of this interpreter, or a name for it where Lithops refuses such a path."""
    return sys.executable if re.fullmatch(r"[A-Za-z0-9_/.:-]+", sys.executable) else "python-here"


# --- configurations and storage ----------------------------------------------------------------


def load_storage_settings(config_file: Path) -> dict[str, Any]:
    """The storage settings in a file; as everywhere in Lithops, localhost has localhost storage."""
    lithops = import_lithops()
    config: dict[str, Any] = lithops.config.load_yaml_config(str(config_file)) or {}
    section = config.setdefault("lithops", {})
    if "storage" not in section and section.get("backend", "localhost") == "localhost":
        section["storage"] = "localhost"
    complete_config = lithops.config.default_storage_config(config_data=config)
    settings: dict[str, Any] = lithops.config.extract_storage_config(complete_config)
    return settings


def open_storage_without_retries(storage_settings: dict[str, Any], timeout: int) -> Any:
    """A `lithops.Storage` whose clients wait so long and ask once: Lithops' own ask six times.

    Its S3 clients take this from their modules, of which there is a copy for this, so that executors of
    others keep theirs; that of Redis from its settings.
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
    """Another value of a name in a module of Lithops; one at a time."""
    with _patch_lock:
        original = getattr(owner, attribute_name)
        setattr(owner, attribute_name, value)
        try:
            yield
        finally:
            setattr(owner, attribute_name, original)


# --- FunctionExecutors -------------------------------------------------------------------------


def build_function_executor(in_private_folder: bool = False, **options: Any) -> Any:
    """A FunctionExecutor; on this machine, but for containers, its functions run this Lithops.

    in_private_folder : whether what these leave lies in our folder, not in Lithops' shared one.
    """
    with contextlib.ExitStack() as stack:
        for version in (1, 2):
            module = importlib.import_module(f"lithops.localhost.v{version}.localhost")
            # It would copy Lithops to the shared folder, where we run none.
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
            # Spares one interpreter start per process, and a file in the user's Lithops cache.
            function_executor.internal_storage.get_runtime_meta = lambda key: metadata
    return function_executor


def build_localhost_executor() -> Any:
    """A FunctionExecutor on this machine with all its files in our folder.

    Each job has as many slots as its configuration says when it is started.
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
    # An absolute bucket takes storage and job files out of Lithops' shared folder.
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
    """What the keys of all objects of jobs or FunctionExecutors begin with, and those of no others.

    >>> list_job_key_prefixes(["2f-1"])
    ['lithops.jobs/2f-1-', 'lithops.jobs/2f-1/']
    """
    return [f"lithops.jobs/{job_name}{suffix}" for job_name in job_names for suffix in "-/"]


def clone_function_executor(function_executor: Any, n_processes: int | None = None) -> Any:
    """A further FunctionExecutor with the configuration of one; `n_processes`: tasks at a time, here."""
    config = copy.deepcopy(function_executor.config)
    if n_processes is not None:
        config[function_executor.backend]["worker_processes"] = n_processes
    return build_function_executor(config=config)


def slow_down_monitoring(function_executor: Any) -> float:
    """Look for workers that have ended as seldom as for what nobody expects; how often: each is a listing."""
    config = function_executor.internal_storage.get_storage_config()
    monitoring_interval = max(MAX_POLL_INTERVAL, float(config["monitoring_interval"]))
    # its own, and what `clone_function_executor` copies
    for settings in (config, function_executor.config["lithops"]):
        settings["monitoring_interval"] = monitoring_interval
    return monitoring_interval


def collect_module_sources(pickled_function: bytes, function_executor: Any) -> dict[str, tuple[str, bool]]:
    """Modules that a pickled function needs and the workers' runtime lacks: source, and whether a package.

    As Lithops itself finds the modules of a function that it maps.
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
    """Whether its workers are processes of this machine, in no container."""
    is_localhost_backend = function_executor.backend == "localhost"
    if not is_localhost_backend:
        return False
    return type(function_executor.compute_handler.env).__name__ == "DefaultEnvironment"


def find_exited_without_status(function_executor: Any, futures: Sequence[Any]) -> list[Any]:
    """Those whose processes have ended on this machine and left no status, as far as the storage answers."""
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
    """Whether nothing runs the tasks of a job on this machine any more."""
    job = compute_handler.env.jobs.get(job_key)
    if isinstance(job, subprocess.Popen):  # version 1: it runs them all
        return job.poll() is not None
    if job is None:  # it waits for a thread that starts it
        return compute_handler.job_manager is None or not compute_handler.job_manager.is_alive()
    # version 2: a process for each, counted down by threads
    return job.done or not any(thread.is_alive() for thread in compute_handler.env.consumer_threads)


def find_interpreter_error(function_executor: Any) -> str:
    """Why the interpreter of workers on this machine cannot run tasks; empty if it can, or elsewhere."""
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
        f"and numpy there, or say runtime: {sys.executable} in the localhost section of the configuration"
    )


def restart_dead_monitor(function_executor: Any, futures: Sequence[Any]) -> None:
    """Start the thread that watches these again if it has died."""
    if futures and not function_executor.job_monitor.is_alive():
        function_executor.job_monitor.start(fs=futures)


def abandon_jobs(function_executor: Any, futures: Sequence[Any], job_keys: Collection[str]) -> None:
    """Drop or kill what runs of these on an executor; where that cannot be done, they go on.

    It would keep every future, with its result: those of these jobs go.
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
    """Kill what a FunctionExecutor of ours runs, and let go of it.

    By the keys of its jobs: without them Lithops kills what runs, but not a job that its thread
    is just about to start.
    """
    futures = function_executor.futures
    abandon_jobs(function_executor, futures, {future.job_key for future in futures})
    with contextlib.suppress(Exception):
        function_executor.__exit__(None, None, None)
    atexit.unregister(function_executor._clean_at_exit)
    with contextlib.suppress(Exception):  # singularity and k8s keep a connection to RabbitMQ
        function_executor.compute_handler.backend.connection.close()
    with contextlib.suppress(AttributeError):  # only that of localhost, version 1, has one
        function_executor.compute_handler.job_manager.join(timeout=5)
    # outside its storage
    for path in get_process_temp_folder().glob(f"lithops-*/jobs/{function_executor.executor_id}*"):
        path.unlink(missing_ok=True)


# --- futures -----------------------------------------------------------------------------------


class InvocationLostError(Exception):
    """A function ended without a result, for the reason that this says."""


def add_status_callback(futures: Iterable[Any], on_status: Callable[[], object]) -> None:
    """Let Lithops call this from its own threads once it has seen that one of these has begun or ended."""

    def set_status_and_notify(set_status: Callable[[Any], None], status: Any) -> None:
        set_status(status)
        on_status()

    for future in futures:
        for setter_name in ("_set_running", "_set_ready"):
            setattr(future, setter_name, partial(set_status_and_notify, getattr(future, setter_name)))


def is_future_finished(future: Any) -> bool:
    """Whether Lithops has seen the end of a function, or given it up."""
    return bool(future.ready or future.success or future.done)


def fetch_result(future: Any, function_executor: Any) -> Any:
    """What a function that has ended returned; InvocationLostError if it returned nothing."""
    if future.done:  # without our having asked: Lithops gave it up
        raise InvocationLostError(_explain_lost_result(future))
    future._write_activation_logs = lambda: None  # else it keeps logs of every task
    future.status(throw_except=False, internal_storage=function_executor.internal_storage)
    if future.error:
        raise InvocationLostError(_explain_lost_result(future))
    result = future.result(throw_except=False, internal_storage=function_executor.internal_storage)
    future._call_output = None  # a future may stay for long after its result
    return result


def _explain_lost_result(future: Any) -> str:
    """Why a task gave no result, as Lithops says it."""
    error = future._exception[1] if isinstance(future._exception, tuple) else future._exception
    text = str(error) or "it never reported"
    if isinstance(error, ImportError):
        text += f" in the runtime of its worker, {future.runtime_name}: install it there"
    return text if isinstance(error, RuntimeError | MemoryError) else f"{type(error).__name__}: {text}"
