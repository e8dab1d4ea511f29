"""FaultyExecutor: injected faults in the tasks of any executor."""

from __future__ import annotations

from contextlib import closing

import numpy as np
from plain import ends

from polarmap.blocks.uneven import UncodedBlocks
from polarmap.executors import resolve_executor
from polarmap.executors.interface import JobSpec
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

BLOCKS = UncodedBlocks([[np.zeros(1)]] * 4, ("array",))


def test_nested_faults_are_merged_and_outer_faults_take_precedence() -> None:
    inner = FaultyExecutor(ReplayExecutor(), dict.fromkeys(range(3), Fault("raise")))
    executor = resolve_executor(FaultyExecutor(inner, {1: Fault("kill")}))
    assert (executor.name, executor.worker_spec) == ("replay", None)
    with closing(executor.open(JobSpec(np.copy, BLOCKS, {2: Fault("exit")}))) as run:
        run.submit([(task, 0) for task in range(4)])
        failures = [outcome.failure for _ in range(4) for outcome in ends(run.wait(9.0))]
    assert [failure and failure.kind for failure in failures] == ["raised", "lost", "lost", None]


def test_name_follows_the_underlying_executor() -> None:
    pool = ReplayExecutor()
    executor = resolve_executor(FaultyExecutor(pool))
    pool.name = "replay (TCP)"
    assert executor.name == "replay (TCP)"
