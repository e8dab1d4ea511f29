"""ReplayExecutor: scripted run times on a virtual clock, and evaluations of f."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from plain import ends

from polarmap.blocks.uneven import UncodedBlocks
from polarmap.errors import CodeError
from polarmap.executors.interface import AttemptStarted, JobSpec, Outcome
from polarmap.executors.replay import GIVE_UP_SECONDS, ReplaySession
from polarmap.testing import Fault, ReplayExecutor

N = 4


def opened(seconds: Mapping[int, float], f: Any = np.copy, n: int = N, **more: Any) -> ReplaySession:
    blocks = UncodedBlocks([[np.full(4, float(task))] for task in range(n)], ("array",))
    return ReplayExecutor(seconds).open(JobSpec(f, blocks, **more))


def test_tasks_arrive_at_scripted_times_of_a_virtual_clock() -> None:
    run = opened({0: 3.0, 2: math.inf})
    run.submit([(task, 0) for task in range(N)])
    assert run.wait(0.0) == [AttemptStarted(task, 0, 0.0) for task in range(N)]
    assert [run.wait(9.0)[0].task for _ in range(3)] == [1, 3, 0]
    assert run.now() == 3.0
    assert run.wait(9.0) == []
    assert run.now() == 12.0
    [outcome] = run.wait(math.inf)
    assert isinstance(outcome, Outcome)
    assert (outcome.task, outcome.failure and outcome.failure.kind) == (2, "lost")
    assert run.now() == GIVE_UP_SECONDS


def test_f_is_called_when_its_result_arrives() -> None:
    calls: list[float] = []

    def f(block: Any) -> Any:
        calls.append(block[0])
        return block

    run = opened({0: 2.0}, f)
    run.submit([(0, 0), (1, 0)])
    assert (run.wait(1.0)[-1].task, calls) == (1, [1.0])
    run.close()
    assert (run.wait(9.0), calls) == ([], [1.0])


def test_faulty_worker_does_not_call_f_and_is_lost_at_its_arrival_time() -> None:
    run = opened({}, pytest.fail, faults={0: Fault("kill"), 1: Fault("exit")})
    run.submit([(0, 0), (1, 0)])
    outcomes = [outcome for _ in range(3) for outcome in ends(run.wait(9.0))]
    assert [str(outcome.failure) for outcome in outcomes] == [
        "WorkerLost: its worker was lost by the injected fault 'kill'",
        "WorkerLost: its worker was lost by the injected fault 'exit'",
    ]
    assert run.now() == 10.0


def test_every_session_has_a_separate_clock_and_f_may_modify_its_block() -> None:
    def f(block: Any) -> Any:
        block += 1.0
        return block

    for _ in range(2):
        run = opened({}, f)
        assert run.now() == 0.0
        for attempt in range(2):
            run.submit([(0, attempt)])
            _, outcome = run.wait(9.0)
            assert isinstance(outcome, Outcome)
            assert (outcome.attempt, outcome.leaves[0].tolist()) == (attempt, [1.0] * 4)
        assert run.now() == 2.0


class CountingTime(float):
    """A time that counts how often any time is compared."""

    times = 0

    def __radd__(self, now: float) -> CountingTime:
        return CountingTime(now + float(self))

    def __lt__(self, other: float) -> bool:
        CountingTime.times += 1
        return float(self) < float(other)


def test_arrivals_are_not_compared_with_all_others() -> None:
    # With a heap, the number of comparisons of an arrival grows like log n instead of n.
    n = 2000
    order = np.random.default_rng(0).permutation(n).tolist()
    run = opened({task: CountingTime(1.0 + turn) for turn, task in enumerate(order)}, n=n)
    run.submit([(task, 0) for task in range(n)])
    arrived = [run.wait(1e9)[-1].task for _ in range(n)]
    assert arrived == order
    assert CountingTime.times < 3 * n * math.log2(n)


@pytest.mark.parametrize("script", [3, {0: -1.0}, {0.5: 1.0}, {0: "1"}, {0: math.nan}])
def test_a_script_maps_tasks_to_seconds(script: Any) -> None:
    with pytest.raises(CodeError, match="arrival_seconds must map task indices to seconds of at least 0"):
        ReplayExecutor(script)
