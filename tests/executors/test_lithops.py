"""Maps through Lithops: what is seen of their tasks, with futures in memory and on this machine."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_functions import HERE, Functions
from plain import ends, first_ends

from polarmap.blocks.uneven import PartBlocks
from polarmap.errors import ExecutorError
from polarmap.executors import lithops_jobs
from polarmap.executors.base import Began, Outcome, Payload
from polarmap.executors.lithops import PARITY_NICE, LithopsExecutor, LithopsRun
from polarmap.executors.lithops_jobs import Jobs
from polarmap.executors.owned_folder import private_folder
from polarmap.worker import io_lithops
from polarmap.worker.parts import Place
from polarmap.worker.stored_output import OutputSpec

CONFIG = {"lithops": {"backend": "aws_lambda", "storage": "memory"}, "aws_lambda": {"runtime_memory": 2048}}
DATA = [np.arange(3.0) + task for task in range(3)]
BLOCKS = PartBlocks([[block] for block in DATA], ("array",))


def functions(backend: str = "aws_lambda") -> Any:
    found: Any = Functions(backend)
    found.config = CONFIG
    return found


def payload(output: Place | None = None) -> Payload:
    return Payload(np.copy, BLOCKS, output=output and OutputSpec(output, "y", 5))


def test_it_is_named_after_its_backend_and_knows_its_workers() -> None:
    executor = LithopsExecutor(functions())
    assert executor.name == "lithops/aws_lambda"
    assert executor.worker is not None
    assert executor.worker.memory == 2048


def test_a_configuration_is_opened_for_a_map_and_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    opened, ended = [], []

    def open_functions(path: Any) -> Any:
        opened.append(functions())
        return opened[-1]

    monkeypatch.setattr(lithops_jobs, "open_functions", open_functions)
    monkeypatch.setattr(lithops_jobs, "end", ended.append)
    executor = LithopsExecutor(file)
    assert (executor.name, opened) == ("lithops/localhost", [])
    executor.open(payload()).close()
    with pytest.raises(ExecutorError):
        executor.open(payload(Place("folder", "/data")))
    assert len(opened) == 2
    assert ended == opened


# --- futures in memory ---------------------------------------------------------------


class Run(LithopsRun):
    """With what it runs on at hand."""

    def __init__(self, **more: Any) -> None:
        self.functions = Functions()
        super().__init__(Jobs(self.functions, shares=True), Payload(np.negative, BLOCKS, **more))


@pytest.fixture(autouse=True)
def nobody_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here, exit_when = os.getpid(), io_lithops.exit_when
    monkeypatch.setattr(io_lithops, "exit_when", lambda *how: os.getpid() == here or exit_when(*how))


def told(run: Run) -> list[Outcome]:
    return ends(run.wait(1.0))


def begun(run: Run) -> set[int]:
    return {event.task for event in run.wait(0.01) if isinstance(event, Began)}


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
    monkeypatch.setattr(lithops_jobs, "has_ended", lambda future: looks.append(future))
    run = Run()
    run.submit([(0, 0)])
    for _ in range(1000):
        run.wait(0.0)
    assert 1 <= len(looks) < 1000


# --- jobs on this machine ------------------------------------------------------------


def opened(f: Any, n: int = 4, **more: Any) -> LithopsRun:
    blocks = PartBlocks([[np.full(2, float(task))] for task in range(n)], ("array",))
    return LithopsExecutor("localhost").open(Payload(f, blocks, **more))


def files() -> list[Path]:
    """Of maps, in the private folder."""
    own = {"owner", "python", "paths", "this-python", "localhost-runner.log"}
    return [path for path in private_folder().rglob("*") if path.is_file() and path.name not in own]


def test_what_has_low_priority_gives_way_in_its_first_attempt() -> None:
    with closing(opened(lambda block: np.array([os.nice(0)]), low_priority=range(2, 4))) as run:
        run.submit([(task, 0) for task in range(3)])
        first = {one.task: int(one.leaves[0][0]) for one in first_ends(run, 3) if one.leaves}
        run.submit([(2, 1), (3, 0)])
        later = {one.task: int(one.leaves[0][0]) for one in first_ends(run, 2) if one.leaves}
    usual = first[0]
    assert first == {0: usual, 1: usual, 2: min(19, usual + PARITY_NICE)}
    assert later == {2: usual, 3: usual}


def test_nothing_is_left_even_if_nothing_was_started() -> None:
    before = files()
    opened(np.copy).close()
    with closing(opened(np.copy)) as run:
        assert run.wait(0.0) == []
        run.submit([(task, 0) for task in range(4)])
        first_ends(run, 1)
    assert files() == before
