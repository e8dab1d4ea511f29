"""What `executor=` may be, and what each of it means."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plain import ends

import polarmap
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.executors import (
    choose_storage_for_workers,
    collect_injected_faults,
    is_on_local_cores,
    make_executor_persistent,
    resolve_executor,
    rewrap_with_faults,
    suggest_n_blocks,
    unwrap_faulty_executor,
)
from polarmap.executors.interface import JobSpec, MapExecutor
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


class Pool:
    """Of some other library."""

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("choice", "name"), [(None, "processes here"), ("localhost", "localhost"), (Pool(), "Pool")]
)
def test_it_says_what_it_is(choice: Any, name: str) -> None:
    executor = resolve_executor(choice)
    assert isinstance(executor, MapExecutor)
    assert executor.name == name


def test_an_executor_of_ours_is_taken_as_it_is() -> None:
    replay = ReplayExecutor()
    assert resolve_executor(replay) is replay


def test_only_a_configuration_is_opened_for_many_maps() -> None:
    faulty = FaultyExecutor("localhost", {0: Fault("raise")})
    for choice in (None, Pool(), faulty):
        kept, close = make_executor_persistent(choice)
        close()
        assert kept is choice or kept == choice


def test_arrays_stay_beside_the_workers_that_read_them(tmp_path: Path) -> None:
    functions = SimpleNamespace(compute_handler=None, internal_storage=None)
    in_memory, in_file = np.zeros(2), np.memmap(tmp_path / "A", shape=2, mode="w+")
    assert choose_storage_for_workers("localhost", in_memory) == get_process_temp_folder() / "arrays"
    assert choose_storage_for_workers(None, in_file) == get_process_temp_folder() / "arrays"
    assert choose_storage_for_workers(None, in_memory) is None
    assert choose_storage_for_workers(FaultyExecutor(functions), in_memory) is functions
    assert choose_storage_for_workers(Pool(), in_memory) is None


# --- faults ---


BLOCKS = UncodedBlocks([[np.zeros(1)]] * 4, ("array",))


def test_faults_add_up_and_the_outer_ones_and_those_of_the_payload_come_first() -> None:
    inner = FaultyExecutor(ReplayExecutor(), dict.fromkeys(range(3), Fault("raise")))
    executor = resolve_executor(FaultyExecutor(inner, {1: Fault("kill")}))
    assert (executor.name, executor.worker_spec) == ("replay", None)
    with closing(executor.open(JobSpec(np.copy, BLOCKS, {2: Fault("exit")}))) as run:
        run.submit([(task, 0) for task in range(4)])
        failures = [outcome.failure for _ in range(4) for outcome in ends(run.wait(9.0))]
    assert [failure and failure.kind for failure in failures] == ["raised", "lost", "lost", None]


@pytest.mark.parametrize("choice", [None, "localhost", polarmap.Pool(), Pool(), ReplayExecutor()])
def test_fault_injection_answers_as_the_executor_that_it_wraps(choice: Any) -> None:
    faulty, data = FaultyExecutor(FaultyExecutor(choice, {0: Fault("kill")}), {1: Fault("raise")}), np.ones(3)
    assert unwrap_faulty_executor(faulty) is choice
    assert type(unwrap_faulty_executor(resolve_executor(faulty))) is type(resolve_executor(choice))
    for question in (
        is_on_local_cores,
        partial(suggest_n_blocks, max_blocks=1000),
        partial(choose_storage_for_workers, data=data),
    ):
        assert question(faulty) == question(choice)
    other = rewrap_with_faults(faulty, "localhost")
    assert (unwrap_faulty_executor(other), other.faults, other.executor.faults) == (
        "localhost",
        {1: Fault("raise")},
        {0: Fault("kill")},
    )
    assert collect_injected_faults(resolve_executor(faulty)) == {0: Fault("kill"), 1: Fault("raise")}
    assert collect_injected_faults(ReplayExecutor()) == {}


def test_its_name_is_that_of_the_executor_underneath_at_any_time() -> None:
    pool = ReplayExecutor()
    executor = resolve_executor(FaultyExecutor(pool))
    pool.name = "replay (TCP)"
    assert executor.name == "replay (TCP)"
