"""schedule="on_demand": parity tasks start only when data tasks are late or have failed.

Most tests replay run times on a virtual clock, where the simulation of plans is the oracle. The last tests
use real thread pools and persistent workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from plain import assert_same, cut, plain_map, states

from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.driver import local_evaluation
from polarmap.errors import CodedTimeoutError, NotDecodableError
from polarmap.planning import Empirical, simulate_on_demand
from polarmap.planning.simulation.jobs import SimulatedJobs
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import CodedResult

N, K = 32, 24
DATA = np.random.default_rng(0).standard_normal((2 * K, 5))
WHOLE = np.random.default_rng(0).integers(-99, 99, (2 * K, 5))
WEIGHTS = np.random.default_rng(1).standard_normal(5)


def product(block: np.ndarray) -> np.ndarray:
    return block @ WEIGHTS


def coded(f: Callable[[Any], Any] = product, data: Any = DATA, **options: Any) -> CodedResult:
    defaults = {"blocks": K, "tasks": N, "timeout": 1000.0, "schedule": "on_demand"}
    return coded_map(f, data, **defaults | options)


def worker_seconds(result: CodedResult) -> float:
    """Return the total run time of all tasks, each until it returned or the map ended."""
    end = result.report.seconds
    spans = [(task.launched, task.arrived) for task in result.report.tasks if task.launched is not None]
    return sum((end if arrived is None else arrived) - launched for launched, arrived in spans)


# --- on the virtual clock ----------------------------------------------------------------------


def test_parity_is_neither_started_nor_encoded_while_data_tasks_are_on_time() -> None:
    # The first map encodes once to check that f is linear.
    assert coded(executor=ReplayExecutor()).report.encode_seconds > 0
    result = coded(executor=ReplayExecutor())
    assert_same(result, plain_map(product, DATA, K))
    assert states(result.report) == {"arrived": list(range(K)), "held back": list(range(K, N))}
    assert result.report.encode_seconds == 0
    assert [task.attempts for task in result.report.tasks] == [1] * K + [0] * (N - K)
    assert "held back: 24, 25" in str(result.report)


def test_as_many_parity_tasks_are_started_as_data_tasks_are_late() -> None:
    seconds = {task: 1.0 + 0.01 * task for task in range(K)} | {5: 5.0, 9: 5.0}
    result = coded(executor=ReplayExecutor(seconds), verify=False)
    assert_same(result, plain_map(product, DATA, K), 1e-11)
    report = result.report
    assert report.recovered == (5, 9)
    assert states(report)["abandoned"] == [5, 9]
    assert states(report)["held back"] == list(range(K + 2, N))
    # The median of 24 tasks is 1.13 s and the minimum 1 s, so tasks are late after 1.13 + 0.13 log2(6) = 1.47
    # s.
    launched = [report.tasks[task].launched for task in (24, 25)]
    assert launched == pytest.approx([1.466] * 2, abs=0.01)
    assert report.seconds == pytest.approx(2.466, abs=0.01)


def test_late_task_that_returns_makes_decoding_unnecessary() -> None:
    result = coded(executor=ReplayExecutor({3: 1.5, 20: 1.7}), verify=False)
    assert_same(result, plain_map(product, DATA, K))
    assert result.report.verified == "not needed"
    assert result.report.tasks_in_state("abandoned") == [24, 25]


@pytest.mark.parametrize("kind", ["raise", "kill"])
def test_parity_replaces_failed_tasks_immediately(kind: str) -> None:
    seconds = dict.fromkeys(range(K), 2.0) | {2: 0.5, 7: 0.7}
    faults = {2: Fault(kind), 7: Fault(kind)}
    result = coded(executor=FaultyExecutor(ReplayExecutor(seconds), faults), verify=False)
    assert_same(result, plain_map(product, DATA, K), 1e-11)
    assert [result.report.tasks[task].launched for task in (24, 25)] == [0.5, 0.7]
    assert result.report.seconds == 2.0
    assert all(task.attempts <= 1 for task in result.report.tasks)


def test_failed_tasks_are_retried_if_parity_is_used_up() -> None:
    faults = {task: Fault("kill") for task in range(N - K + 2)}
    result = coded(executor=FaultyExecutor(ReplayExecutor(), faults), verify=False)
    assert_same(result, plain_map(product, DATA, K), 1e-11)
    assert max(task.attempts for task in result.report.tasks) == 2
    faults = {task: Fault("kill", attempts=9) for task in range(N - K + 2)}
    with pytest.raises(NotDecodableError, match="of 24 needed results"):
        coded(executor=FaultyExecutor(ReplayExecutor(), faults))


@pytest.mark.parametrize("seed", range(10))
def test_sparse_codes_start_the_parity_that_their_pattern_needs(seed: int) -> None:
    # With a sparse code, n_late parity blocks may not suffice to decode. The map starts the fewest that do.
    late = np.random.default_rng(seed).permutation(K)[:3].tolist()
    result = coded(np.copy, WHOLE, executor=ReplayExecutor(dict.fromkeys(late, math.inf)), verify=False)
    assert_same(result, cut(WHOLE, K))
    started = [task.index for task in result.report.tasks if task.launched]
    arrived = np.isin(np.arange(N), [*set(range(K)) - set(late), *started])
    code = PolarCode(N, K, "arikan")
    assert code.is_decodable(arrived)
    arrived[started[-1]] = False
    assert not code.is_decodable(arrived)
    assert result.report.seconds == pytest.approx(2.1, abs=0.02)


def test_inaccurate_decoding_starts_another_parity_task() -> None:
    executor = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    report = coded(executor=executor, rtol=3e-15, verify=False).report
    assert report.error_bound <= 3e-15
    assert len(report.tasks_in_state("arrived")) > K


@pytest.mark.filterwarnings("ignore:the data contains NaN")
def test_nan_starts_no_parity_tasks() -> None:
    data = DATA.copy()
    data[3, 3] = math.nan
    result = coded(np.copy, data, executor=ReplayExecutor({1: 3.0, 2: 9.0}))
    assert_same(result, cut(data, K))
    assert result.report.seconds == 9.0


def assert_as_simulated(result: CodedResult, jobs: SimulatedJobs) -> None:
    assert result.report.seconds == pytest.approx(jobs.completion_times[0], abs=1e-6)
    assert worker_seconds(result) == pytest.approx(jobs.worker_seconds[0], rel=1e-5, abs=1e-6)
    assert sum(task.launched is not None for task in result.report.tasks) == jobs.n_tasks_started[0]


@pytest.mark.parametrize("k", [1, 2, 3, 7, 24])
def test_map_agrees_with_simulation_if_tasks_may_never_return(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A long poll interval lets the local evaluation of f on padding finish within one poll.
    monkeypatch.setattr(local_evaluation, "EVALUATION_POLL_SECONDS", 60.0)
    for seed in range(40):
        rng = np.random.default_rng([k, seed])
        spare = int(rng.integers(1, 6))
        times = rng.choice([1.0, 30.0]) * rng.exponential(1.0, k + spare) + rng.choice([0.0, 1.0])
        times[rng.random(k + spare) < rng.choice([0.0, 0.3, 0.7])] = math.inf
        jobs = simulate_on_demand(times[None, :k], times[None, k:])
        executor = ReplayExecutor(dict(enumerate(times.tolist())))
        options = {
            "blocks": k,
            "tasks": k + spare,
            "executor": executor,
            "timeout": 2000.0,
            "verify": False,
        }
        if jobs.completion_times[0] > 2000:
            with pytest.raises(CodedTimeoutError):
                coded(**options)
        else:
            result = coded(**options)
            assert_same(result, plain_map(product, DATA, k), 1e-9)
            assert_as_simulated(result, jobs)


# --- every loss that the code can tolerate, with few tasks -------------------------------------

# The third entry says whether the data are integers. The code tolerates any n - k losses for floats, but
# only some sets of n - k losses for integers.
SIZES = [(n, k, False) for n, k in [(2, 1), (4, 1), (4, 3), (5, 3), (5, 2)]]
SIZES += [(n, k, True) for n, k in [(2, 1), (4, 1), (3, 2), (5, 2), (4, 3), (5, 3), (6, 3), (6, 4), (7, 4)]]


def lossy(lost: Sequence[int], kinds: Sequence[str]) -> FaultyExecutor:
    """Return an executor on which each task in `lost` fails in the way of its entry in `kinds`.

    Every attempt of the task fails.
    """
    seconds = {task: math.inf for task, kind in zip(lost, kinds) if kind == "never"}
    faults = {task: Fault(kind, attempts=9) for task, kind in zip(lost, kinds) if kind != "never"}
    return FaultyExecutor(ReplayExecutor(seconds), faults)


@pytest.mark.parametrize(("n", "k", "whole"), SIZES)
def test_on_demand_succeeds_wherever_upfront_does(n: int, k: int, whole: bool) -> None:
    rng = np.random.default_rng(n)
    data = WHOLE if whole else DATA
    for count in range(n - k + 1):
        for lost in combinations(range(n), count):
            mixed = rng.choice(["never", "raise", "kill"], count).tolist()
            for kinds in (["never"] * count, ["raise"] * count, mixed):
                assert_as_reliable(data, n, k, lost, kinds)


def assert_as_reliable(data: np.ndarray, n: int, k: int, lost: Sequence[int], kinds: Sequence[str]) -> None:
    options = {"blocks": k, "tasks": n, "verify": False, "timeout": 1000.0}
    try:
        coded(np.copy, data, executor=lossy(lost, kinds), **options, schedule="upfront")
    except (NotDecodableError, CodedTimeoutError):
        return
    result = coded(np.copy, data, executor=lossy(lost, kinds), **options)
    assert_same(result, cut(data, k), 1e-9)
    silent = set(range(k)) <= set(lost)  # no data task returns
    assert result.report.seconds <= (60 * 2 ** (n - k) if silent else 20.0)


def test_failed_tasks_are_not_retried_until_the_last_parity_task_is_late() -> None:
    # The last parity task gets its expected run time before failed tasks are retried.
    executor = FaultyExecutor(ReplayExecutor({0: 0.25, 1: math.inf, 2: 6.5}), {0: Fault("kill")})
    result = coded(blocks=3, tasks=5, executor=executor, verify=False)
    assert_same(result, plain_map(product, DATA, 3), 1e-11)
    assert [task.launched for task in result.report.tasks] == [0.0, 0.0, 0.0, 0.25, 6.0]
    assert max(task.attempts for task in result.report.tasks) == 1


def test_result_of_another_shape_is_replaced_like_a_failure() -> None:
    # A result of the wrong shape counts as a failure, although its run time is known.

    def f(block: np.ndarray) -> np.ndarray:
        return block[:1] if (block == DATA[:2]).all() else block

    result = coded(f, executor=ReplayExecutor({0: 1.05}), verify=False, retries=0)
    assert_same(result, cut(DATA, K), 1e-11)
    assert result.report.recovered == (0,)
    assert result.report.tasks[K].launched == pytest.approx(1.05)


def test_run_times_are_learned_from_started_tasks() -> None:
    # The run time of a parity task is counted from its own start. Tasks that never started are left out.
    report = coded(executor=ReplayExecutor({0: 50.0}), verify=False).report
    distribution = Empirical.from_reports(report)
    assert distribution.n_observations == K + 1
    assert distribution.values.tolist() == pytest.approx([1.0])


# --- with real pools ---------------------------------------------------------------------------


def copied(block: np.ndarray) -> np.ndarray:
    return block.copy()


def test_a_pool_starts_parity_for_a_straggler() -> None:
    with ThreadPoolExecutor(6) as pool:
        executor = FaultyExecutor(pool, {1: Fault("sleep", 60.0)})
        result = coded(copied, blocks=4, tasks=6, executor=executor, timeout=60)
    assert_same(result, cut(DATA, 4), 1e-11)
    assert 1 in result.report.recovered  # on a busy machine, further tasks may be late
    assert result.report.tasks[4].launched is not None


def test_queued_tasks_are_not_late() -> None:
    # Eight tasks share two workers. A task that waits for a worker is not late.
    with ThreadPoolExecutor(2) as pool:
        result = coded(copied, blocks=8, tasks=12, executor=FaultyExecutor(pool, slow(range(8))))
    assert_same(result, cut(DATA, 8), 1e-11)
    assert len(result.report.tasks_in_state("held back")) >= 2


def slow(tasks: Sequence[int]) -> Mapping[int, Fault]:
    return {task: Fault("sleep", 0.3) for task in tasks}
