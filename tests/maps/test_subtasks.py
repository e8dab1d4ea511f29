"""Subtasks(s): pieces of a task are handed in one by one, and what a straggler has finished counts."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import assert_same, cut, plain_map, process_pool

from polarmap import (
    CodedResult,
    Fault,
    FaultyExecutor,
    PolarCode,
    ReplayExecutor,
    Stored,
    Subtasks,
    coded_map,
)
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, NotLinearError
from polarmap.planning import ShiftedExponential, simulate_subtasks
from polarmap.run import row_by_row
from polarmap.run.local_evaluation import LocalRun
from polarmap.run.trusted import TRUSTED
from polarmap.worker.run_task import rows

N, K, S = 12, 8, 4
DATA = np.random.default_rng(0).standard_normal((6 * K, 5))
WHOLE = np.random.default_rng(0).integers(-99, 99, (6 * K, 5))
WEIGHTS = np.random.default_rng(1).standard_normal(5)
ROOT = Path(__file__).resolve().parents[2]


def product(block: np.ndarray) -> np.ndarray:
    return block @ WEIGHTS


def coded(f: Callable[[Any], Any] = product, data: Any = DATA, **options: Any) -> CodedResult:
    defaults = {"blocks": K, "workers": N, "timeout": 1000.0, "schedule": Subtasks(S)}
    return coded_map(f, data, **defaults | options)


# --- on the virtual clock ----------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [2, 3, 4, 6])
def test_half_finished_work_counts(pieces: int) -> None:
    """Five of twelve workers are three times as slow: whole tasks would take 3 s."""
    seconds = {task: 1.0 + 0.001 * task for task in range(N)} | dict.fromkeys(range(5), 3.0)
    result = coded(executor=ReplayExecutor(seconds), schedule=Subtasks(pieces), verify=False)
    assert_same(result, plain_map(product, DATA, K), 1e-11)
    report = result.report
    times = np.array([[seconds[task] for task in range(N)]])
    assert report.seconds == pytest.approx(simulate_subtasks(times, K, pieces).time[0])
    assert report.seconds < 3.0
    assert set(report.indices("abandoned")) >= set(range(5))
    assert all(report.tasks[task].subtasks < pieces for task in range(5))
    assert sum(report.tasks[task].subtasks for task in range(5)) > 0
    assert report.tasks[7].subtasks == pieces
    assert f"{pieces} subtasks each; " in str(report)


def test_maps_end_when_the_simulation_says_and_before_any_code_of_whole_tasks_could() -> None:
    distribution, gain = ShiftedExponential(1.0, 1.0), []
    for seed in range(30):
        times = distribution.sample(np.random.default_rng(seed), (1, N))
        executor = ReplayExecutor(dict(enumerate(times[0].tolist())))
        report = coded(executor=executor, verify=False).report
        assert report.seconds == pytest.approx(simulate_subtasks(times, K, S).time[0])
        gain.append(report.seconds / np.sort(times[0])[K - 1])
    assert np.mean(gain) < 0.85


def test_tasks_that_all_return_are_a_plain_map() -> None:
    result = coded(executor=ReplayExecutor(dict.fromkeys(range(K, N), 9.0)))
    assert_same(result, plain_map(product, DATA, K), 1e-15)
    assert result.report.verified == "not needed"
    assert result.report.recovered == ()
    assert {task.subtasks for task in result.report.tasks[:K]} == {S}


def test_containers_and_integers() -> None:
    data = [(block, {"x": block[:, 0]}) for block in cut(WHOLE, K)]

    def f(block: Any) -> Any:
        return {"twice": block[0] * 2, "x": block[1]["x"]}

    result = coded(f, data, executor=ReplayExecutor({2: math.inf, 5: math.inf}))
    assert_same(result, [f(block) for block in data])


def test_workers_that_die_in_the_middle_leave_what_they_finished() -> None:
    """Five die: with whole tasks seven of eight needed results could arrive."""
    faults = {task: Fault("kill", attempts=9) for task in (0, 2, 4, 6, 9)}
    result = coded(executor=FaultyExecutor(ReplayExecutor(), faults), retries=0, verify=False)
    assert_same(result, plain_map(product, DATA, K), 1e-11)
    assert result.report.indices("failed") == [0, 2, 4, 6, 9]
    assert [result.report.tasks[task].subtasks for task in (0, 2)] == [S // 2] * 2
    with pytest.raises(NotDecodableError):
        coded(executor=FaultyExecutor(ReplayExecutor(), faults), retries=0, schedule=Subtasks(1))


def test_too_many_deaths_are_tried_again() -> None:
    faults = {task: Fault("kill") for task in range(10)}
    result = coded(executor=FaultyExecutor(ReplayExecutor(), faults), verify=False)
    assert_same(result, plain_map(product, DATA, K), 1e-11)
    faults = {task: Fault("kill", attempts=9) for task in range(10)}
    with pytest.raises(NotDecodableError, match="of 8 needed results"):
        coded(executor=FaultyExecutor(ReplayExecutor(), faults), verify=False)


def test_timeouts_are_kept() -> None:
    with pytest.raises(CodedTimeoutError, match="of 8 needed results arrived within 2 s"):
        coded(executor=ReplayExecutor(dict.fromkeys(range(N), 50.0)), timeout=2.0)


@pytest.mark.parametrize("data", [DATA, DATA.astype("f4")])
def test_garbage_is_trusted_in_no_piece(data: np.ndarray) -> None:
    executor = FaultyExecutor(ReplayExecutor({3: math.inf, 1: 0.9}), {1: Fault("garbage", attempts=9)})
    result = coded(np.copy, data, executor=executor, verify=True)
    assert_same(result, cut(data, K), 1e-11 if data.dtype == np.float64 else 1e-4)
    assert 1 in result.report.indices("failed")


@pytest.mark.parametrize("data", [DATA, WHOLE])
def test_without_surplus_a_decoded_piece_is_evaluated_here(data: np.ndarray) -> None:
    executor = ReplayExecutor(dict.fromkeys([1, 4, 8, 9], math.inf))
    whole = data.dtype.kind == "i"
    options = {"workers": N if not whole else 16}
    result = coded(np.copy, data, executor=executor, **options)
    assert_same(result, cut(data, K), 1e-11)
    assert result.report.verified == ("parity" if whole else "local")
    TRUSTED.clear()
    with pytest.raises(NotLinearError):
        coded(np.abs, executor=executor)


def test_f_that_is_not_linear_is_refused() -> None:
    with pytest.raises(NotLinearError):
        coded(np.abs, executor=ReplayExecutor({3: math.inf}))


@settings(derandomize=True, max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(["", "", "", "raise", "kill", "late", "hang"]), min_size=N, max_size=N),
    pieces=st.integers(2, 6),
    seed=st.integers(0, 1000),
    whole=st.booleans(),
)
def test_any_mix_of_misfortunes_gives_the_plain_map_or_an_error(
    kinds: list[str], pieces: int, seed: int, whole: bool
) -> None:
    TRUSTED.clear()
    data = WHOLE if whole else DATA
    times = np.random.default_rng(seed).uniform(1, 2, N)
    seconds = {i: {"late": 9.0, "hang": math.inf}.get(kind, times[i]) for i, kind in enumerate(kinds)}
    faults = {i: Fault(kind, attempts=9) for i, kind in enumerate(kinds) if kind in ("raise", "kill")}
    executor = FaultyExecutor(ReplayExecutor(seconds), faults)
    comes = np.array([kind in ("", "late") for kind in kinds])
    decodes = PolarCode(N, K, "arikan" if whole else "rotation").decodable(comes)
    gave_up = False
    try:
        result = coded(np.copy, data, executor=executor, timeout=60.0, schedule=Subtasks(pieces))
    except (RuntimeError, TimeoutError) as error:
        gave_up = not hasattr(error, "__notes__")
    else:
        assert_same(result, cut(data, K), 1e-9)
    assert not (gave_up and decodes)


# --- does f act on rows? -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        lambda block: np.cumsum(block, axis=0),
        lambda block: block - block.mean(axis=0),
        lambda block: block[::-1].copy(),
        lambda block: block.T @ block[:, 0],
        lambda block: block.sum(axis=0),
    ],
    ids=["cumsum", "centred", "reversed", "gram", "sums"],
)
@pytest.mark.parametrize("late", [1.0, math.inf])
def test_f_that_mixes_rows_is_refused(f: Callable[[Any], Any], late: float) -> None:
    with pytest.raises((CodeError, NotLinearError)):
        coded(f, executor=ReplayExecutor({3: late}))


def test_f_that_mixes_rows_is_refused_in_plain_words() -> None:
    with pytest.raises(CodeError, match="not what f gives of its rows piece by piece, joined along axis 0"):
        coded(lambda block: np.cumsum(block, axis=0), executor=ReplayExecutor())
    with pytest.raises(CodeError, match="cannot be joined along axis 0: leave Subtasks out"):
        coded(np.sum, executor=ReplayExecutor())


def test_rows_are_checked_once_and_whenever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(row_by_row, "LocalRun", lambda *given: made.append(given) or LocalRun(*given))
    for verify, evaluations in [("auto", 1), ("auto", 0), (True, 1), (False, 0)]:
        made.clear()
        coded(executor=ReplayExecutor(), verify=verify)
        assert len(made) == evaluations


def test_rows_that_cannot_be_checked_here_are_warned_of() -> None:
    def only_on_workers(block: np.ndarray) -> np.ndarray:
        if len(block) == 6:
            raise RuntimeError("no accelerator here")
        return product(block)

    with pytest.warns(RuntimeWarning, match="acts on each row by itself.*RuntimeError: no accelerator here"):
        result = coded(only_on_workers, executor=ReplayExecutor())
    assert_same(result, plain_map(product, DATA, K), 1e-11)


def test_a_check_of_rows_that_does_not_end_is_given_up() -> None:
    over = threading.Event()

    def stuck_here(block: np.ndarray) -> np.ndarray:
        if len(block) == 6:
            over.wait()
        return product(block)

    with pytest.warns(RuntimeWarning, match="here it did not end"):
        result = coded(stuck_here, executor=ReplayExecutor())
    over.set()
    assert 20.7 < result.report.seconds < 23


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": Subtasks(7)}, r"Subtasks\(7\) cuts every array.*shape \(6, 5\): use fewer"),
        ({"schedule": 4}, r"schedule must be 'upfront', .*, not 4: use Subtasks\(4\)"),
        ({"on_timeout": "estimate"}, "Subtasks do not go with on_timeout='estimate'"),
        ({"out": Stored("y")}, "Subtasks do not go with out="),
        ({"data": [np.float64(one) for one in range(K)]}, r"shape \(\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CodeError, match=message):
        coded(**{"executor": ReplayExecutor()} | options)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "two"])
def test_a_count_that_cannot_be_is_refused_where_it_is_written(count: Any) -> None:
    with pytest.raises(CodeError, match="the count of Subtasks must be a positive integer"):
        Subtasks(count)


# --- for real ----------------------------------------------------------------------------------


def copied(block: np.ndarray) -> np.ndarray:
    return block.copy()


def assert_partial(result: CodedResult, tasks: list[int], data: np.ndarray = DATA) -> None:
    """The plain map, some of it from tasks that never ended."""
    assert_same(result, cut(data, result.report.k), 1e-11)
    for task in tasks:
        assert result.report.tasks[task].arrived is None
        assert result.report.tasks[task].subtasks


def test_threads_hand_in_what_they_finish() -> None:
    """Three of six workers take 40 s for a piece but the first; four are needed for each."""
    gate, calls = threading.Event(), {}

    def f(block: np.ndarray) -> np.ndarray:
        task = slow.get(float(block[0, 0]))
        key = (
            threading.get_ident(),
            task,
        )  # a thread may do several tasks, the driver does them, too
        calls[key] = calls.get(key, 0) + 1
        if task is not None and calls[key] > 2:
            gate.wait(40)
        return block.copy()

    blocks = cut(DATA, 4)
    slow = {float(blocks[task][rows(12, 4, one), 0][0]): task for task in (0, 2) for one in range(4)}
    with ThreadPoolExecutor(6) as pool:
        result = coded(f, blocks=4, workers=6, executor=pool, timeout=60)
        gate.set()
    assert_partial(result, [0, 2])


def test_processes_hand_in_what_they_finish() -> None:
    faults = {0: Fault("sleep", 160.0), 2: Fault("raise")}
    with process_pool(6) as pool:
        executor = FaultyExecutor(pool, faults)
        result = coded(copied, blocks=4, workers=6, executor=executor, timeout=60, retries=0)
    assert_partial(result, [2])


def test_localhost_hands_in_what_the_dead_have_finished() -> None:
    """Three of seven die in the middle; five are needed for each piece."""
    data = np.random.default_rng(3).standard_normal((5 * 8, 400))
    faults = {0: Fault("kill", attempts=9), 2: Fault("kill", attempts=9), 5: Fault("kill", attempts=9)}
    executor = FaultyExecutor("localhost", faults)
    f = lambda block: block.copy()  # noqa: E731 - travels by value
    result = coded(
        f, data, blocks=5, workers=7, executor=executor, timeout=90, retries=0, schedule=Subtasks(2)
    )
    assert_partial(result, [0, 2, 5], data)


def test_a_lithops_executor_of_the_caller_hands_in_objects() -> None:
    data = np.random.default_rng(3).standard_normal((5 * 8, 400))
    faults = {0: Fault("raise", attempts=9), 2: Fault("raise", attempts=9), 5: Fault("raise", attempts=9)}
    executor = FaultyExecutor(ROOT / "config" / "localhost.yaml", faults)
    f = lambda block: block.copy()  # noqa: E731 - travels by value
    result = coded(
        f, data, blocks=5, workers=7, executor=executor, timeout=90, retries=0, schedule=Subtasks(2)
    )
    assert_partial(result, [0, 2, 5], data)
