"""Lithops FunctionExecutors: how they are opened, and events of their functions, with fake futures."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from memory_functions import HERE, Functions

from polarmap.errors import ExecutorError
from polarmap.executors import lithops_invocations
from polarmap.executors.interface import Reach
from polarmap.executors.lithops import delete_objects_below
from polarmap.executors.lithops_internals import (
    InvocationLostError,
    close_function_executor,
    get_interpreter_for_lithops,
)
from polarmap.executors.lithops_invocations import (
    InterpreterError,
    LithopsInvocations,
    LithopsSource,
    open_function_executor,
    read_complete_config,
)


def invoke(functions: Functions, *keys: Any) -> LithopsInvocations:
    jobs = LithopsInvocations(LithopsSource.from_executor(functions), shares_executor=True)
    jobs.invoke(functions, lambda x, storage: 10 // x, {key: {"x": key} for key in keys})
    return jobs


def test_finished_results_are_reported_once() -> None:
    jobs = invoke(functions := Functions(), 2, 0, 5)
    assert jobs.collect_finished_results() == {}
    functions.futures[0].ready = functions.futures[1].success = True
    results = jobs.collect_finished_results()
    assert results.pop(2) == 5
    with pytest.raises(ZeroDivisionError) as raised:
        operator.floordiv(10, 0)  # Python 3.14 changed the message.
    assert str(results.pop(0)) == f"ZeroDivisionError: {raised.value}"
    assert (results, jobs.collect_finished_results(), list(jobs.running_futures)) == ({}, {}, [5])


def test_remote_functions_start_when_invoked_and_local_ones_when_reported() -> None:
    jobs = invoke(Functions(), 1)
    assert [jobs.collect_started_keys(), jobs.collect_started_keys()] == [[1], []]
    jobs = invoke(functions := Functions("localhost"), 1, 2)
    assert jobs.collect_started_keys() == []
    functions.futures[0].running = True
    assert [jobs.collect_started_keys(), jobs.collect_started_keys()] == [[1], []]


@pytest.mark.parametrize(
    ("reason", "may_ask", "kind", "message"),
    [
        ("", True, InvocationLostError, "its worker process ended without reporting"),
        ("no numpy there", True, InterpreterError, "no numpy there"),
        ("no numpy there", False, InvocationLostError, "its worker process ended without reporting"),
    ],
)
def test_function_that_ended_without_a_status_is_lost(
    reason: str, may_ask: bool, kind: type, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = invoke(functions := Functions(), 1, 2)
    monkeypatch.setattr(lithops_invocations, "find_futures_without_status", lambda *_: [functions.futures[1]])
    monkeypatch.setattr(lithops_invocations, "find_interpreter_error", lambda _: reason)
    [(key, error)] = jobs.collect_finished_results(may_ask).items()
    assert (key, type(error), str(error)) == (2, kind, message)
    assert list(jobs.running_futures) == [1]


def test_dead_monitor_is_restarted() -> None:
    runs: list[Any] = []
    functions = Functions()
    functions.job_monitor = SimpleNamespace(is_alive=lambda: bool(runs), start=lambda fs: runs.append(fs))
    invoke(functions, 0, 2).collect_finished_results()
    assert runs == [functions.futures]


@pytest.mark.parametrize("is_owned", [False, True])
def test_only_objects_of_these_jobs_are_removed(is_owned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The name of executor 1 is a prefix of executor 10, and the name of job 100 is a prefix of job 1000.
    functions = Functions()
    monkeypatch.setattr(lithops_invocations, "close_function_executor", lambda functions: None)
    monkeypatch.setattr(lithops_invocations, "clone_function_executor", lambda *_: functions)
    jobs = LithopsInvocations(LithopsSource.from_executor(functions), shares_executor=not is_owned)
    jobs.invoke(functions, None, {0: {}})
    others = {f"lithops.jobs/{name}/00000/status.json" for name in ("x-10-M000", "x-1-M0001", "y-1-M000")}
    own = {"lithops.jobs/x-1-M000/00000/status.json", "lithops.jobs/x-1-M000-job.json"}
    for key in others | own:
        functions.storage.put_object("b", key, b"")
    delete_objects_below(functions.storage, jobs.close())
    expected_keys = others - {"lithops.jobs/x-1-M0001/00000/status.json"} if is_owned else others
    assert {key for _, key in functions.storage.objects} == expected_keys
    assert len(functions.futures) == is_owned  # the futures are removed from an executor of the caller


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_folder_removed_while_a_job_is_stored_is_made_again(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(*given: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return usual(*given, **options)

    functions, errors = Functions("localhost"), [error()]
    usual = functions.map
    monkeypatch.setattr(functions, "map", store)
    assert list(invoke(functions, 1, 2).running_futures) == [1, 2]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("no"), "lithops/memory cannot start a job: ZeroDivisionError: no$"),
        (
            Exception("Total data exceeded maximum size of 4.0MiB"),
            r"size of 4\.0MiB\. The tasks refer to many stored objects: set data_limit: 0",
        ),
    ],
)
def test_refused_job_raises_one_clear_error(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise error

    functions = Functions()
    monkeypatch.setattr(functions, "map", refuse)
    with pytest.raises(ExecutorError, match=message):
        invoke(functions, 1)
    monkeypatch.setattr(lithops_invocations, "clone_function_executor", refuse)
    with pytest.raises(ExecutorError, match="cannot start a job"):
        LithopsInvocations(
            LithopsSource.from_executor(Functions("localhost")), shares_executor=True
        ).get_executor_for_next_job(2)


@pytest.mark.parametrize(
    ("backend", "reach"), [("aws_lambda", Reach("aws_lambda", "memory")), ("localhost", Reach("", "memory"))]
)
def test_functions_can_access_buckets_of_their_storage(backend: str, reach: Reach) -> None:
    source = LithopsSource.from_executor(Functions(backend))
    assert LithopsInvocations(source, shares_executor=True).reach == reach


# --- configurations ------------------------------------------------------------------


def test_a_configuration_is_completed_with_this_interpreter(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    config = read_complete_config(file)
    assert config["localhost"]["runtime"] == get_interpreter_for_lithops()
    file.write_text(HERE.replace("version: 1", "version: 1, runtime: mine"))
    assert read_complete_config(file)["localhost"]["runtime"] == "mine"


def test_function_executor_is_opened_from_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    for text, limit in [("storage:", 0), ("data_limit: 3, storage:", 3)]:  # a limit of 0 means no limit
        file.write_text(HERE.replace("storage:", text))
        functions = open_function_executor(file)
        assert (functions.backend, functions.config["lithops"]["data_limit"]) == ("localhost", limit)
        close_function_executor(functions)


@pytest.mark.parametrize("use", [read_complete_config, open_function_executor])
def test_errors_of_lithops_name_the_configuration_file(tmp_path: Path, use: Callable[[Path], Any]) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("lithops: {backend: nowhere, storage: localhost}\n")
    with pytest.raises(ExecutorError, match=r"Lithops cannot use '.*odd\.yaml': "):
        use(file)
