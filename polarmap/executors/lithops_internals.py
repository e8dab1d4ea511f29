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
from polarmap.executors.fork_server import START_SECONDS
from polarmap.executors.owned_folder import private_folder
from polarmap.executors.pickling import modules_named
from polarmap.worker.environment import get_absolute_sys_path
from polarmap.worker.future_tasks import CANCEL_POLL_INTERVAL
from polarmap.worker.segments import write_file
from polarmap.worker.storage_channel import MAX_POLL_INTERVAL

_replacing = threading.RLock()


@cache
def load_lithops() -> Any:
    """Lithops, quiet unless the caller has set up logging."""
    first = "lithops" not in sys.modules
    try:
        import lithops
    except FileNotFoundError as error:  # it asks for the temporary folder when it is imported
        raise ExecutorError(f"Lithops needs a temporary folder, set TMPDIR to one: {error}") from error
    logging.getLogger("lithops").addHandler(logging.NullHandler())
    if first:
        atexit.register(_remove_empty_folders)
    return lithops


def _remove_empty_folders() -> None:
    """Importing Lithops makes folders in the temporary folder; leave none that stayed empty."""
    from lithops import constants

    for folder in (constants.JOBS_DIR, constants.LOGS_DIR, constants.CLEANER_DIR, constants.LITHOPS_TEMP_DIR):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


# --- interpreters ------------------------------------------------------------------------------


def runner(runtime: str, version: int, is_private: bool) -> str:
    """The shell script that runs Lithops' runner with an interpreter and this Lithops, in our folder.

    Lithops would run a copy of itself in its shared folder, which any other process replaces.
    Workers in this interpreter import what the driver can: they get its module search path.

    is_private : whether the files of Lithops lie in our folder, too.
    """
    folder, is_this = private_folder(), runtime == named_for_lithops()
    script = folder / f"runner-{crc32(f'{version} {is_private} {runtime}'.encode())}"
    paths = get_absolute_sys_path() if is_this else [_lithops_alone()]
    write_file(str(folder), f"{script.name}.paths", json.dumps(paths).encode())
    run = (
        f"import json, sys; paths = json.load(open('{script}.paths')); "
        f"sys.path[:] = [*paths, *filter(None, sys.path)]; "
        f"from lithops.localhost.v{version}.runner import main; main()"
    )
    if not script.exists():
        place = f'TMPDIR="{folder}" ' if is_private else ""
        program = sys.executable if is_this else runtime
        script.write_text(f'#!/bin/sh\nshift\n{place}exec "{program}" -c "{run}" "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def _lithops_alone() -> str:
    """A folder in which other interpreters find this Lithops, and nothing else."""
    folder = private_folder() / "packages"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "lithops").symlink_to(Path(load_lithops().__file__).parent)
    return str(folder)


def named_for_lithops() -> str:
    """The path of this interpreter, or a name for it where Lithops refuses such a path."""
    return sys.executable if re.fullmatch(r"[A-Za-z0-9_/.:-]+", sys.executable) else "python-here"


# --- configurations and storage ----------------------------------------------------------------


def storage_settings(file: Path) -> dict[str, Any]:
    """The storage settings in a file; as everywhere in Lithops, localhost has localhost storage."""
    lithops = load_lithops()
    config: dict[str, Any] = lithops.config.load_yaml_config(str(file)) or {}
    section = config.setdefault("lithops", {})
    if "storage" not in section and section.get("backend", "localhost") == "localhost":
        section["storage"] = "localhost"
    complete = lithops.config.default_storage_config(config_data=config)
    settings: dict[str, Any] = lithops.config.extract_storage_config(complete)
    return settings


def impatient_storage(settings: dict[str, Any], seconds: int) -> Any:
    """A `lithops.Storage` whose clients wait so long and ask once: Lithops' own ask six times.

    Its S3 clients take this from their modules, of which there is a copy for this, so that executors of
    others keep theirs; that of Redis from its settings.
    """
    kind = settings["backend"]
    if kind == "redis":
        retry: Any = importlib.import_module("redis.retry")
        once = retry.Retry(importlib.import_module("redis.backoff").NoBackoff(), 0)
        waits = {"socket_connect_timeout": seconds, "socket_timeout": seconds, "retry": once}
        settings = {**settings, kind: waits | settings[kind]}
    build = partial(load_lithops().Storage, storage_config=settings)
    backend = importlib.import_module(f"lithops.storage.backends.{kind}")
    theirs = backend.StorageBackend
    if not hasattr(sys.modules[theirs.__module__], "OBJ_REQ_RETRIES"):
        return build()
    spec: Any = importlib.util.find_spec(theirs.__module__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(CONN_READ_TIMEOUT=seconds, OBJ_REQ_RETRIES=0)
    with _replaced(backend, "StorageBackend", vars(module)[theirs.__name__]):
        return build()


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of a name in a module of Lithops; one at a time."""
    with _replacing:
        found = getattr(module, name)
        setattr(module, name, value)
        try:
            yield
        finally:
            setattr(module, name, found)


# --- FunctionExecutors -------------------------------------------------------------------------


def build_functions(is_private: bool = False, **options: Any) -> Any:
    """A FunctionExecutor; on this machine, but for containers, its functions run this Lithops.

    is_private : whether what these leave lies in our folder, not in Lithops' shared one.
    """
    with contextlib.ExitStack() as stack:
        for version in (1, 2):
            module = importlib.import_module(f"lithops.localhost.v{version}.localhost")
            # It would copy Lithops to the shared folder, where we run none.
            stack.enter_context(_replaced(module.DefaultEnvironment, "setup", lambda env: None))
        functions = load_lithops().FunctionExecutor(log_level=None, **options)
    if runs_here(functions):
        env, settings = functions.compute_handler.env, functions.config["localhost"]
        env._ensure_runner = lambda: None
        env.runtime_name = runner(settings["runtime"], settings.get("version", 2), is_private)
        if settings["runtime"] == named_for_lithops():
            metadata = _runtime_metadata()
            # Spares one interpreter start per process, and a file in the user's Lithops cache.
            functions.internal_storage.get_runtime_meta = lambda key: metadata
    return functions


def localhost_functions() -> Any:
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
    section = {"version": 1, "runtime": named_for_lithops(), "worker_processes": 1}
    functions = build_functions(True, config={"lithops": lithops_section, "localhost": section})
    # An absolute bucket takes storage and job files out of Lithops' shared folder.
    bucket = str(private_folder() / "storage")
    functions.config["localhost"]["storage_bucket"] = bucket
    functions.internal_storage.bucket = functions.storage.bucket = bucket
    return functions


@cache
def _runtime_metadata() -> dict[str, Any]:
    load_lithops()
    from lithops.worker.utils import get_runtime_metadata

    metadata: dict[str, Any] = get_runtime_metadata()
    return metadata


def objects_of(names: Iterable[str]) -> list[str]:
    """What the keys of all objects of jobs or FunctionExecutors begin with, and those of no others.

    >>> objects_of(["2f-1"])
    ['lithops.jobs/2f-1-', 'lithops.jobs/2f-1/']
    """
    return [f"lithops.jobs/{name}{end}" for name in names for end in "-/"]


def another_like(functions: Any, processes: int | None = None) -> Any:
    """A further FunctionExecutor with the configuration of one; `processes`: tasks at a time, here."""
    config = copy.deepcopy(functions.config)
    if processes is not None:
        config[functions.backend]["worker_processes"] = processes
    return build_functions(config=config)


def look_seldom(functions: Any) -> float:
    """Look for workers that have ended as seldom as for what nobody expects; how often: each is a listing."""
    config = functions.internal_storage.get_storage_config()
    seldom = max(MAX_POLL_INTERVAL, float(config["monitoring_interval"]))
    for settings in (config, functions.config["lithops"]):  # its own, and what `another_like` copies
        settings["monitoring_interval"] = seldom
    return seldom


def module_sources(pickled: bytes, functions: Any) -> dict[str, tuple[str, bool]]:
    """Modules that a pickled function needs and the workers' runtime lacks: source, and whether a package.

    As Lithops itself finds the modules of a function that it maps.
    """
    others = {name.partition(".")[0] for name in list(sys.modules)}
    others -= {"__main__", "polarmap", "numpy", "cloudpickle", *sys.stdlib_module_names}
    roots = {name.partition(".")[0] for name in modules_named(pickled, others)}
    if not roots:
        return {}
    from lithops.job.serialize import create_module_data
    from lithops.libs.multyvac.module_dependency import ModuleDependencyAnalyzer

    analyzer = ModuleDependencyAnalyzer()
    runtime = functions.invoker.select_runtime("polarmap", None)
    analyzer.ignore({name for name, _ in runtime["preinstalls"]})
    analyzer.ignore({"polarmap", "numpy", "lithops"})
    for root in roots:
        analyzer.add(root)
    found = {}
    for path, data in create_module_data(analyzer.get_and_clear_paths()).items():
        name = path.removesuffix(".py").replace("/", ".")
        is_package = name.endswith(".__init__")
        found[name.removesuffix(".__init__")] = base64.b64decode(data).decode(), is_package
    return found


def runs_here(functions: Any) -> bool:
    """Whether its workers are processes of this machine, in no container."""
    is_here = functions.backend == "localhost"
    return is_here and type(functions.compute_handler.env).__name__ == "DefaultEnvironment"


def ended_silently(functions: Any, futures: Sequence[Any]) -> list[Any]:
    """Those whose processes have ended on this machine and left no status, as far as the storage answers."""
    if functions.backend != "localhost":
        return []
    status = functions.internal_storage.get_call_status
    ended = [future for future in futures if _has_job_ended(functions.compute_handler, future.job_key)]
    try:
        return [one for one in ended if status(one.executor_id, one.job_id, one.call_id) is None]
    except Exception:
        return []


def _has_job_ended(handler: Any, key: str) -> bool:
    """Whether nothing runs the tasks of a job on this machine any more."""
    job = handler.env.jobs.get(key)
    if isinstance(job, subprocess.Popen):  # version 1: it runs them all
        return job.poll() is not None
    if job is None:  # it waits for a thread that starts it
        return handler.job_manager is None or not handler.job_manager.is_alive()
    # version 2: a process for each, counted down by threads
    return job.done or not any(thread.is_alive() for thread in handler.env.consumer_threads)


def interpreter_error(functions: Any) -> str:
    """Why the interpreter of workers on this machine cannot run tasks; empty if it can, or elsewhere."""
    if not runs_here(functions):
        return ""
    env, runtime = functions.compute_handler.env, functions.config["localhost"]["runtime"]
    command = [env.runtime_name, sys.modules[type(env).__module__].RUNNER_FILE, "get_metadata"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_SECONDS
        )
        if not done.returncode:
            return ""
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"it ended with code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    return (
        f"the interpreter {runtime} of its workers does not run Lithops ({reason}): install lithops "
        f"and numpy there, or say runtime: {sys.executable} in the localhost section of the configuration"
    )


def keep_monitoring(functions: Any, futures: Sequence[Any]) -> None:
    """Start the thread that watches these again if it has died."""
    if futures and not functions.job_monitor.is_alive():
        functions.job_monitor.start(fs=futures)


def leave(functions: Any, futures: Sequence[Any], jobs: Collection[str]) -> None:
    """Drop or kill what runs of these on an executor; where that cannot be done, they go on.

    It would keep every future, with its result: those of these jobs go.
    """
    keys = {future.job_key for future in futures}
    if keys:
        with contextlib.suppress(Exception):
            functions.job_monitor.remove(futures)
            functions.compute_handler.clear(keys, exception=TimeoutError("abandoned"))
    functions.futures[:] = [one for one in functions.futures if one.job_key not in jobs]


def end(functions: Any) -> None:
    """Kill what a FunctionExecutor of ours runs, and let go of it.

    By the keys of its jobs: without them Lithops kills what runs, but not a job that its thread
    is just about to start.
    """
    leave(functions, functions.futures, {future.job_key for future in functions.futures})
    with contextlib.suppress(Exception):
        functions.__exit__(None, None, None)
    atexit.unregister(functions._clean_at_exit)
    with contextlib.suppress(Exception):  # singularity and k8s keep a connection to RabbitMQ
        functions.compute_handler.backend.connection.close()
    with contextlib.suppress(AttributeError):  # only that of localhost, version 1, has one
        functions.compute_handler.job_manager.join(timeout=5)
    for path in private_folder().glob(f"lithops-*/jobs/{functions.executor_id}*"):  # outside its storage
        path.unlink(missing_ok=True)


# --- futures -----------------------------------------------------------------------------------


class LostError(Exception):
    """A function ended without a result, for the reason that this says."""


def call_when_seen(futures: Iterable[Any], call: Callable[[], object]) -> None:
    """Let Lithops call this from its own threads once it has seen that one of these has begun or ended."""

    def then_call(note: Callable[[Any], None], status: Any) -> None:
        note(status)
        call()

    for future in futures:
        for name in ("_set_running", "_set_ready"):
            setattr(future, name, partial(then_call, getattr(future, name)))


def has_ended(future: Any) -> bool:
    """Whether Lithops has seen the end of a function, or given it up."""
    return bool(future.ready or future.success or future.done)


def result_of(future: Any, functions: Any) -> Any:
    """What a function that has ended returned; LostError if it returned nothing."""
    if future.done:  # without our having asked: Lithops gave it up
        raise LostError(_reason(future))
    future._write_activation_logs = lambda: None  # else it keeps logs of every task
    future.status(throw_except=False, internal_storage=functions.internal_storage)
    if future.error:
        raise LostError(_reason(future))
    result = future.result(throw_except=False, internal_storage=functions.internal_storage)
    future._call_output = None  # a future may stay for long after its result
    return result


def _reason(future: Any) -> str:
    """Why a task gave no result, as Lithops says it."""
    error = future._exception[1] if isinstance(future._exception, tuple) else future._exception
    text = str(error) or "it never reported"
    if isinstance(error, ImportError):
        text += f" in the runtime of its worker, {future.runtime_name}: install it there"
    return text if isinstance(error, RuntimeError | MemoryError) else f"{type(error).__name__}: {text}"
