"""The internals of Lithops that polarmap uses. A failure means that a new version of Lithops changed them."""

from __future__ import annotations

import builtins
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from pool_processes import python_in, until

from polarmap.errors import ExecutorError
from polarmap.executors.lithops_internals import (
    InvocationLostError,
    abandon_jobs,
    add_status_callback,
    build_localhost_executor,
    close_function_executor,
    fetch_result,
    find_futures_without_status,
    find_interpreter_error,
    get_interpreter_for_lithops,
    import_lithops,
    is_future_finished,
    is_localhost_function_executor,
    load_storage_settings,
    open_storage_without_retries,
    restart_dead_monitor,
    write_runner_script,
)
from polarmap.executors.temp_folders import get_process_temp_folder


def test_error_without_a_temporary_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, *more: Any) -> Any:
        if name == "lithops":
            raise FileNotFoundError("No usable temporary directory found")
        return original_import(name, *more)

    original_import = builtins.__import__
    import_lithops.cache_clear()
    monkeypatch.setattr("builtins.__import__", none)
    with pytest.raises(
        ExecutorError, match=r"needs a temporary folder\. Set TMPDIR to an existing folder: No usable"
    ):
        import_lithops()


def test_private_executor_leaves_no_files_and_processes() -> None:
    functions = build_localhost_executor()
    try:
        functions.config["localhost"]["worker_processes"] = 3
        assert str(get_process_temp_folder()) in functions.storage.bucket
        good, bad, late = functions.map(work, [{"number": number} for number in range(3)], chunksize=1)
        reported = list[int]()
        for number, future in enumerate((good, bad, late)):
            add_status_callback([future], partial(reported.append, number))
        for future in (good, bad):
            assert until(partial(is_future_finished, future))
        assert fetch_result(good, functions) == 10
        with pytest.raises(InvocationLostError, match=r"ZeroDivisionError: (integer )?division"):
            fetch_result(bad, functions)
        assert not is_future_finished(late)
        assert until(lambda: bool(late.running))
        assert until(lambda: set(reported) == {0, 1, 2})
        assert find_futures_without_status(functions, [late]) == []
        restart_dead_monitor(functions, [late])
        assert functions.job_monitor.is_alive()
        abandon_jobs(functions, [late], {f"{late.job_key}0"})
        assert functions.futures == [good, bad, late]
        abandon_jobs(functions, [], {late.job_key})
        assert functions.futures == []
    finally:
        close_function_executor(functions)
    assert not list(get_process_temp_folder().glob(f"lithops-*/jobs/{functions.executor_id}*"))


@pytest.mark.parametrize("version", [1, 2])
def test_interpreter_that_cannot_run_lithops_is_reported(tmp_path: Path, version: int) -> None:
    import lithops

    script = python_in(tmp_path)
    config = {
        "lithops": {"backend": "localhost", "storage": "localhost"},
        "localhost": {"version": version, "runtime": str(script)},
    }
    functions = lithops.FunctionExecutor(config=config, log_level=None)
    assert is_localhost_function_executor(functions)
    assert find_interpreter_error(functions) == ""
    python_in(tmp_path, lacks="numpy")
    message = rf"{script} of its workers .*No module named 'numpy'.* set runtime: {sys.executable}"
    assert re.search(message, find_interpreter_error(functions))
    script.unlink()
    assert "No such file" in find_interpreter_error(functions)
    close_function_executor(functions)


def work(number: int) -> int:
    import time as there

    if number == 2:
        there.sleep(600)
    return 10 // (1 - number)


def test_futures_that_lithops_gave_up_have_a_reason() -> None:
    flags = {"ready": False, "success": False, "done": True}
    for error, reason in [
        (TimeoutError("too late"), "TimeoutError: too late"),
        ((RuntimeError, RuntimeError("killed"), None), "killed"),
        (MemoryError("no more"), "no more"),
        (ImportError("no numpy"), "ImportError: no numpy in the runtime of its worker, p3: install it there"),
        (None, "NoneType: None"),
    ]:
        future = SimpleNamespace(**flags, _exception=error, runtime_name="p3")
        assert is_future_finished(future)
        with pytest.raises(InvocationLostError, match=f"^{reason}$"):
            fetch_result(future, None)


def test_default_storage_is_localhost(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("lithops: {backend: localhost}\n")
    settings = load_storage_settings(file)
    assert settings["backend"] == "localhost"
    storage = open_storage_without_retries(settings, timeout=3)
    assert storage.backend == "localhost"


@pytest.mark.parametrize("kind", ["aws_s3", "minio"])
def test_s3_client_has_the_timeout_and_no_retries(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    client = boto3.Session.client

    def counted(self: Any, *args: Any, config: Any, **options: Any) -> Any:
        made.append(config)
        return client(self, *args, config=config, **options)

    monkeypatch.setattr(boto3.Session, "client", counted)
    keys = {"access_key_id": "a", "secret_access_key": "b", "storage_bucket": "c", "user_agent": "d"}
    backend = {**keys, "region": "us-east-1", "endpoint": "http://127.0.0.1:9"}
    storage = open_storage_without_retries({"backend": kind, kind: backend}, timeout=3)
    backend_module = importlib.import_module(f"lithops.storage.backends.{kind}")
    [config] = made
    assert (config.connect_timeout, config.read_timeout) == (3, 3)
    assert storage.get_client().meta.config.retries["total_max_attempts"] == 1
    assert (storage.backend, storage.bucket) == (kind, "c")
    # Other users of Lithops must get the original class again.
    assert not isinstance(storage.storage_handler, backend_module.StorageBackend)


@pytest.mark.parametrize(("version", "is_other"), [(1, True), (2, False)])
def test_interpreter_runs_the_installed_lithops_by_a_private_script(
    version: int, is_other: bool, tmp_path: Path
) -> None:
    runtime = str(python_in(tmp_path)) if is_other else get_interpreter_for_lithops()
    folder, script = get_process_temp_folder(), Path(write_runner_script(runtime, version, False))
    assert script.parent == folder
    assert str(folder).startswith(str(Path(tempfile.gettempdir()).resolve()))
    shutil.rmtree(folder)
    assert write_runner_script(runtime, version, False) == str(script)
    output = subprocess.run(
        [script, "replaced.py", "get_metadata"], stdout=subprocess.PIPE, check=True
    ).stdout
    assert json.loads(output)["python_version"] == f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_interpreter_with_a_space_in_its_path_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.setattr("sys.executable", str(python_in(folder)))
    functions = build_localhost_executor()
    try:
        [future] = functions.map(work, [{"number": 0}])
        assert until(partial(is_future_finished, future))
        assert fetch_result(future, functions) == 10
    finally:
        close_function_executor(functions)
