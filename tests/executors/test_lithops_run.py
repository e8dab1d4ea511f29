"""What is seen of tasks through Lithops, with futures and a storage in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.blocks.uneven import PartBlocks
from polarmap.errors import CodeError, ExecutorError
from polarmap.executors import lithops_run
from polarmap.executors.base import Began, Outcome, Payload
from polarmap.executors.lithops_run import LithopsRun
from polarmap.worker import io_lithops

DATA = [np.arange(3.0) + task for task in range(3)]
BLOCKS = PartBlocks([[block] for block in DATA], ("array",))


class Future:
    """As Lithops has it, with what it will return."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.ready = self.success = self.done = self.error = self.running = False
        self.runtime_name, self.job_key = "python", "x-1-M000"
        self.executor_id = "x-1"
        self._exception: Any = None
        self._call = call

    def status(self, **options: Any) -> None:
        pass

    def result(self, **options: Any) -> Any:
        return self._call()


class Functions:
    """A FunctionExecutor that runs nothing until a future is asked for its result."""

    backend, internal_storage = "memory", None

    def __init__(self) -> None:
        self.storage = DictStorage()
        self.futures: list[Future] = []
        self.executor_id = "x-1"
        self.job_monitor = SimpleNamespace(is_alive=lambda: True)

    def map(self, task: Any, fields: Sequence[Any], **options: Any) -> list[Future]:
        made = [Future(lambda one=one: task(one["fields"], self.storage)) for one in fields]
        self.futures += made
        return made


class Run(LithopsRun):
    """With what it runs on at hand."""

    def __init__(self, is_owned: bool = False, **more: Any) -> None:
        self.functions = Functions()
        super().__init__("memory", Payload(np.negative, BLOCKS, **more), self.functions, is_owned)


@pytest.fixture(autouse=True)
def nobody_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_lithops, "exit_when", lambda is_cancelled: None)


def told(run: Run) -> list[Outcome]:
    return [event for event in run.wait(1.0) if isinstance(event, Outcome)]


def begun(run: Run) -> set[int]:
    return {event.task for event in run.wait(0.01) if isinstance(event, Began)}


def test_what_is_ready_is_told_once() -> None:
    run = Run()
    run.submit([(2, 0), (0, 0)])
    assert begun(run) == {0, 2}
    assert run.wait(0.01) == []
    run.functions.futures[0].ready = True
    [outcome] = told(run)
    assert outcome.leaves is not None
    assert (outcome.task, outcome.leaves[0].tolist()) == (2, (-DATA[2]).tolist())
    run.functions.futures[1].success = True
    assert [one.task for one in told(run)] == [0]


def test_what_lithops_gave_up_is_lost_with_its_reason() -> None:
    run = Run()
    run.submit([(0, 0), (1, 0), (2, 0)])
    first, second, third = run.functions.futures
    first.done, first._exception = True, (RuntimeError, RuntimeError("timed out"))
    second.ready = second.error = True
    second._exception = KeyError("x")
    third.ready, third._call = True, lambda: 1 / 0  # type: ignore[assignment]
    texts = [str(outcome.failure) for outcome in told(run)]
    assert texts == [
        "WorkerLost: timed out",
        "WorkerLost: KeyError: 'x'",
        "WorkerLost: ZeroDivisionError: division by zero",
    ]


def test_elsewhere_a_task_begins_when_it_is_handed_over_and_here_when_lithops_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    run.submit([(1, 0)])
    assert begun(run) == {1}
    monkeypatch.setattr(Functions, "backend", "localhost")
    monkeypatch.setattr(lithops_run, "runs_here", lambda functions: False)
    monkeypatch.setattr(lithops_run, "ended_silently", lambda functions, futures: [])
    here = Run()
    here.submit([(2, 0)])
    assert begun(here) == set()
    here.functions.futures[0].running = True
    assert begun(here) == {2}


def test_what_ended_without_a_word_is_lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.submit([(0, 0), (1, 0)])
    silent = run.functions.futures[1]
    monkeypatch.setattr(
        lithops_run, "ended_silently", lambda functions, futures: [one for one in futures if one is silent]
    )
    monkeypatch.setattr(lithops_run, "interpreter_error", lambda functions: "")
    [outcome] = told(run)
    assert (outcome.task, str(outcome.failure)) == (
        1,
        "WorkerLost: its worker process ended without reporting",
    )


def test_an_interpreter_that_runs_nothing_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.submit([(0, 0), (1, 0)])
    monkeypatch.setattr(lithops_run, "ended_silently", lambda functions, futures: futures)
    monkeypatch.setattr(lithops_run, "interpreter_error", lambda functions: "no numpy there")
    with pytest.raises(ExecutorError, match="memory runs no task: no numpy there"):
        told(run)


def test_a_monitor_that_died_is_started_again() -> None:
    started: list[Any] = []
    run = Run()
    run.functions.job_monitor = SimpleNamespace(
        is_alive=lambda: bool(started), start=lambda fs: started.append(fs)
    )
    run.submit([(0, 0), (2, 0)])
    run.wait(0.0)
    assert started == [run.functions.futures]


@pytest.mark.parametrize("is_owned", [False, True])
def test_what_is_removed_is_of_this_map_alone(is_owned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """FunctionExecutor 1 of a process must not remove what 10 to 19 need, nor job 100 what 1000 needs."""
    monkeypatch.setattr(lithops_run, "end", lambda functions: None)
    run = Run(is_owned)
    run.submit([(0, 0)])
    others = {f"lithops.jobs/{name}/00000/status.json" for name in ("x-10-M000", "x-1-M0001", "y-1-M000")}
    own = {"lithops.jobs/x-1-M000/00000/status.json", "lithops.jobs/x-1-M000-job.json"}
    for key in others | own:
        run.functions.storage.put_object("b", key, b"")
    run.close()
    kept = others - {"lithops.jobs/x-1-M0001/00000/status.json"} if is_owned else others
    assert {key for _, key in run.functions.storage.objects} == kept


def test_pieces_come_before_the_end_of_their_task() -> None:
    run = Run(subtasks=3)
    run.submit([(1, 0)])
    [future] = run.functions.futures
    future.ready = True
    outcomes = told(run)
    assert [(one.subtasks, one.over) for one in outcomes] == [((1,), False), ((2,), False), ((0,), True)]


def test_a_block_that_was_damaged_is_stored_again_for_the_next_attempt() -> None:
    run = Run()
    run.submit([(1, 0)])
    storage, [future] = run.functions.storage, run.functions.futures
    [key] = [key for _, key in storage.objects if "/blocks/" in key]
    storage.objects["b", key] = bytes(len(storage.objects["b", key]))
    future.ready = True
    [outcome] = told(run)
    assert outcome.failure is not None
    assert outcome.failure.kind == "damaged"
    run.submit([(1, 1)])
    run.functions.futures[1].ready = True
    [outcome] = told(run)
    assert outcome.leaves is not None
    assert outcome.leaves[0].tolist() == (-DATA[1]).tolist()


def test_waiting_takes_as_long_as_it_may() -> None:
    run = Run()
    run.submit([(0, 0)])
    began = time.monotonic()
    assert begun(run) == {0}
    assert run.wait(0.1) == []
    assert 0.1 <= time.monotonic() - began < 5.0


def test_the_more_run_the_rarer_is_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(lithops_run, "has_ended", lambda future: looks.append(future))
    run = Run()
    run.submit([(0, 0)])
    for _ in range(1000):
        run.wait(0.0)
    assert 1 <= len(looks) < 1000


def test_a_job_that_is_refused_is_one_clear_error() -> None:
    run = Run()
    run.functions.map = lambda *given, **options: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(ExecutorError, match="memory takes no job: ZeroDivisionError"):
        run.submit([(0, 0)])


def test_more_parts_than_lithops_allows_say_what_to_set() -> None:
    run = Run()

    def refuse(*given: object, **options: object) -> None:
        raise Exception("Total data exceeded maximum size of 4.0MiB")

    run.functions.map = refuse  # type: ignore[assignment, method-assign]
    with pytest.raises(
        ExecutorError, match=r"size of 4\.0MiB: tasks are told of many parts; say data_limit: 0"
    ):
        run.submit([(0, 0)])


def test_an_f_that_cannot_travel_is_named() -> None:
    run = Run()
    run._payload = Payload((one for one in ()).__next__, BLOCKS)
    run.functions.map = lambda *given, **options: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(CodeError, match="f cannot be pickled for memory"):
        run.submit([(0, 0)])
