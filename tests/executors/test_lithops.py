"""A FunctionExecutor of the caller, and a configuration, as executors."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap import Fault
from polarmap.blocks.uneven import PartBlocks
from polarmap.errors import ExecutorError
from polarmap.executors import lithops, lithops_run
from polarmap.executors.base import Outcome, Payload
from polarmap.executors.lithops import LithopsExecutor, LocalhostExecutor, open_functions, read_configuration
from polarmap.executors.lithops_internals import end, named_for_lithops
from polarmap.executors.lithops_run import PARITY_NICE, LithopsRun
from polarmap.executors.owned_folder import private_folder
from polarmap.worker.cores import available_cores
from polarmap.worker.parts import Place
from polarmap.worker.stored_output import OutputSpec

PATIENCE = 60.0
HERE = "lithops: {backend: localhost, storage: localhost}\nlocalhost: {version: 1}\n"
CONFIG = {"lithops": {"backend": "aws_lambda", "storage": "memory"}, "aws_lambda": {"runtime_memory": 2048}}


def functions(backend: str = "aws_lambda") -> Any:
    return SimpleNamespace(backend=backend, config=CONFIG, storage=DictStorage(), futures=[])


def payload(output: Place | None = None) -> Payload:
    blocks = PartBlocks([[np.zeros(2)]], ("array",))
    return Payload(np.copy, blocks, output=output and OutputSpec(output, "y", 5))


def test_it_is_named_after_its_backend_and_knows_its_workers() -> None:
    executor = LithopsExecutor(functions())
    assert executor.name == "lithops/aws_lambda"
    assert executor.worker is not None
    assert executor.worker.memory == 2048


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place("driver", "memory of this process"), "workers cannot reach: use a thread pool"),
        (Place("folder", "/data"), "workers on aws_lambda cannot reach: use storage= of that backend"),
        (
            Place("bucket", "b", "aws_s3"),
            "in aws_s3 bucket 'b', but this executor stores in memory",
        ),
    ],
)
def test_storage_that_its_workers_cannot_reach_is_refused(place: Place, message: str) -> None:
    with pytest.raises(ExecutorError, match=message):
        LithopsExecutor(functions()).open(payload(place))


def test_what_its_workers_reach_is_taken_and_nothing_is_left() -> None:
    given = functions("localhost")
    for place in (None, Place("bucket", "b", "memory"), Place("folder", "/data")):
        LithopsExecutor(given).open(payload(place)).close()
    assert given.storage.objects == {}


def test_a_configuration_is_opened_for_a_map_and_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    opened, ended = [], []

    def open_functions(path: Any) -> Any:
        opened.append(functions())
        opened[-1].executor_id = "x"
        return opened[-1]

    monkeypatch.setattr(lithops, "open_functions", open_functions)
    for module in (lithops, lithops_run):
        monkeypatch.setattr(module, "end", ended.append)
    executor = LithopsExecutor(file)
    assert (executor.name, opened) == ("lithops/localhost", [])
    executor.open(payload()).close()
    with pytest.raises(ExecutorError):
        executor.open(payload(Place("folder", "/data")))
    assert len(opened) == 2
    assert ended == opened


# --- configurations ------------------------------------------------------------------


def test_a_configuration_is_completed_with_this_interpreter(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    config = read_configuration(file)
    assert config["localhost"]["runtime"] == named_for_lithops()
    file.write_text(HERE.replace("version: 1", "version: 1, runtime: mine"))
    assert read_configuration(file)["localhost"]["runtime"] == "mine"


def test_an_executor_of_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    functions = open_functions(file)
    assert functions.backend == "localhost"
    assert functions.config["lithops"]["data_limit"] == 0  # tickets may name any number of parts
    end(functions)
    file.write_text(HERE.replace("storage:", "data_limit: 3, storage:"))
    functions = open_functions(file)
    assert functions.config["lithops"]["data_limit"] == 3
    end(functions)


@pytest.mark.parametrize("use", [read_configuration, open_functions])
def test_what_lithops_says_names_the_file(tmp_path: Path, use: object) -> None:
    assert callable(use)
    file = tmp_path / "odd.yaml"
    file.write_text("lithops: {backend: nowhere, storage: localhost}\n")
    with pytest.raises(ExecutorError, match=r"Lithops cannot use '.*odd\.yaml': "):
        use(file)


# --- jobs on this machine ------------------------------------------------------------


def opened(f: Any, n: int = 4, **more: Any) -> LithopsRun:
    blocks = PartBlocks([[np.full(2, float(task))] for task in range(n)], ("array",))
    return LocalhostExecutor().open(Payload(f, blocks, **more))


def outcomes_of(run: LithopsRun, count: int) -> list[Outcome]:
    found: list[Outcome] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline
        found += [event for event in run.wait(0.5) if isinstance(event, Outcome)]
    return found


def files() -> list[Path]:
    """Of maps, in the private folder."""
    own = {"owner", "python", "paths", "this-python", "localhost-runner.log"}
    return [path for path in private_folder().rglob("*") if path.is_file() and path.name not in own]


def test_what_has_low_priority_gives_way_in_its_first_attempt() -> None:
    with closing(opened(lambda block: np.array([os.nice(0)]), low_priority=range(2, 4))) as run:
        run.submit([(0, 0), (1, 0), (2, 0)])
        first = {one.task: int(one.leaves[0][0]) for one in outcomes_of(run, 3) if one.leaves}
        run.submit([(2, 1), (3, 0)])
        later = {one.task: int(one.leaves[0][0]) for one in outcomes_of(run, 2) if one.leaves}
    usual = first[0]
    assert first == {0: usual, 1: usual, 2: min(19, usual + PARITY_NICE)}
    assert later == {2: usual, 3: usual}


def test_tasks_that_sleep_do_not_keep_others_from_starting() -> None:
    n = 2 * available_cores() + 6
    faults = {task: Fault("sleep", 600.0) for task in range(n - 1)}
    with closing(opened(np.copy, n, faults=faults)) as run:
        run.submit([(task, 0) for task in range(n)])
        [outcome] = outcomes_of(run, 1)
    assert outcome.task == n - 1


def test_nothing_is_left_even_if_nothing_was_started() -> None:
    before = files()
    opened(np.copy).close()
    with closing(opened(np.copy)) as run:
        run.submit([(task, 0) for task in range(4)])
        outcomes_of(run, 1)
    assert files() == before


def test_looking_before_anything_was_submitted_finds_nothing() -> None:
    with closing(opened(np.copy)) as run:
        assert run.wait(0.0) == []
