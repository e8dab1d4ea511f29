"""Faults of an executor are part of what its runs are told."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from plain import ends

from polarmap import Fault, FaultyExecutor, ReplayExecutor
from polarmap.blocks.uneven import PartBlocks
from polarmap.errors import CodeError
from polarmap.executors import executor_of
from polarmap.executors.base import Payload

BLOCKS = PartBlocks([[np.zeros(1)]] * 4, ("array",))


def test_faults_add_up_and_the_outer_ones_and_those_of_the_payload_come_first() -> None:
    inner = FaultyExecutor(ReplayExecutor(), dict.fromkeys(range(3), Fault("raise")))
    executor = executor_of(FaultyExecutor(inner, {1: Fault("kill")}))
    assert (executor.name, executor.worker) == ("replay", None)
    with closing(executor.open(Payload(np.copy, BLOCKS, {2: Fault("exit")}))) as run:
        run.submit([(task, 0) for task in range(4)])
        failures = [outcome.failure for _ in range(4) for outcome in ends(run.wait(9.0))]
    assert [failure and failure.kind for failure in failures] == ["raised", "lost", "lost", None]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([Fault("raise")], "faults must be a mapping from task to Fault"),
        ({-1: Fault("raise")}, "faults map tasks by number to a Fault each"),
        ({0: "raise"}, "faults map tasks by number to a Fault each"),
        ({0: Fault("rise")}, "the kind of a Fault is one of sleep, raise, exit, kill, garbage"),
        ({0: Fault("sleep", -1.0)}, "seconds of a Fault must be a number of at least 0"),
        ({0: Fault("raise", attempts=1.5)}, "attempts of a Fault must be an integer of at least 0"),  # type: ignore[arg-type]
    ],
)
def test_what_no_worker_could_suffer_is_refused(faults: Any, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        FaultyExecutor(ReplayExecutor(), faults)
