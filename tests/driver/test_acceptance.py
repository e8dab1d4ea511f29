"""Tests of how long a map waits for results that verify that f is linear, and of the errors if it is not."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from coded_maps import DATA, FLOATS, LOST_DATA, K, N, assert_right, coded, faulty, losing, product
from plain import arrivals, arriving, assert_same, plain_map

from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.driver import local_evaluation
from polarmap.driver.function_properties import LINEAR_OR_AFFINE, FunctionProperty
from polarmap.errors import NotLinearError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.worker.pytree import get_layout


@pytest.mark.parametrize(("usual", "bound"), [(0.01, 0.2), (1.0, 1.0), (3.0, 3.0), (50.0, 10.0)])
def test_the_wait_for_surplus_is_one_median_task_time_within_limits(
    usual: float, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # f on the driver ends within one poll, even on a busy machine.
    monkeypatch.setattr(local_evaluation, "EVALUATION_POLL_SECONDS", 60.0)
    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    result = coded(executor=arriving(order, N, start=usual, step=0.0))
    assert_right(result)
    report = result.report
    assert report.verified == "local"
    assert bound <= report.redundancy_wait_seconds < bound + 0.5
    assert report.seconds == pytest.approx(usual + report.redundancy_wait_seconds)


def test_surplus_ends_the_wait() -> None:
    order = arrivals(PolarCode(N, K), K + 1, np.random.default_rng(3))
    result = coded(executor=arriving(order, N, step=0.25))
    assert_right(result)
    report = result.report
    assert report.verified == "parity"
    assert report.needed == K
    assert report.residual is not None
    assert report.residual < 1e-12
    assert report.seconds == pytest.approx(1 + 0.25 * K)
    assert report.redundancy_wait_seconds == pytest.approx(0.25)
    assert 0 < report.error_bound < 1e-10


def test_wait_for_surplus_ends_when_no_task_is_running() -> None:
    faults = dict.fromkeys([1, 4, 8, 9], Fault("kill"))
    report = coded(executor=faulty(faults), retries=0).report
    assert (report.verified, report.seconds) == ("local", pytest.approx(1.0, abs=0.1))


def test_a_later_use_stops_at_the_kth_arrival() -> None:
    order = arrivals(PolarCode(N, K), N - 1, np.random.default_rng(3))
    assert coded(executor=arriving(order, N)).report.verified == "parity"
    report = coded(data=-DATA, executor=arriving(order, N)).report
    assert report.verified == "earlier"
    assert report.seconds == pytest.approx(1 + 0.1 * (K - 1))
    assert report.redundancy_wait_seconds == 0


def test_verify_true_waits_every_time() -> None:
    order = arrivals(PolarCode(N, K), N - 1, np.random.default_rng(3))
    for _ in range(2):
        assert coded(verify=True, executor=arriving(order, N)).report.verified == "parity"
    assert coded(verify=True, executor=arriving(order[:K], N)).report.verified == "local"


@pytest.mark.parametrize("trust", [False, 0 == 1, np.False_])
def test_verify_false_skips_verification(trust: Any) -> None:
    result = coded(np.abs, executor=ReplayExecutor(LOST_DATA | {8: 1.5}), verify=trust)
    assert result.report.verified == "no"
    assert result.report.residual is None
    assert_same(list(result)[5:], plain_map(np.abs, DATA, K)[5:])


def test_a_badly_conditioned_function_is_refused_unless_rtol_admits_it() -> None:
    times = DATA + 1e9
    with pytest.raises(NotLinearError, match="If f is linear but ill-conditioned, raise rtol"):
        coded(np.diff, times, executor=ReplayExecutor(LOST_DATA))
    result = coded(np.diff, times, executor=ReplayExecutor(LOST_DATA), rtol=1e-4)
    assert_same(result, plain_map(np.diff, times, K), 1e-4)
    assert 1e-8 < result.report.error_bound < 1e-4


def test_the_size_of_the_residual_is_reported() -> None:
    with pytest.raises(NotLinearError, match=r"(?s)off by 0\.\d+ \(relative\).*verify=False skips"):
        coded(np.abs, executor=ReplayExecutor(LOST_DATA))


# --- f that the driver cannot evaluate ---------------------------------------------------------


def test_a_function_the_driver_cannot_evaluate_is_returned_with_a_warning() -> None:
    calls = []

    def only_on_workers(block: np.ndarray) -> np.ndarray:
        calls.append(block)
        if len(calls) > K:
            raise RuntimeError("no accelerator here")
        return product(block)

    faults = dict.fromkeys([1, 4, 8, 9], Fault("kill"))
    with pytest.warns(RuntimeWarning, match="could not be verified.*RuntimeError: no accelerator here"):
        result = coded(only_on_workers, executor=faulty(faults), retries=0)
    assert_right(result)
    assert result.report.verified == "no"


def test_a_function_the_driver_cannot_evaluate_waits_for_surplus() -> None:
    calls = []

    def only_on_workers(block: np.ndarray) -> np.ndarray:
        calls.append(block)
        if len(calls) == K + 1:
            raise RuntimeError("no accelerator here")
        return product(block)

    result = coded(
        only_on_workers, executor=ReplayExecutor({1: math.inf, 4: math.inf, 10: 5.0, 11: math.inf})
    )
    assert_right(result)
    assert len(calls) == K + 2
    assert (result.report.verified, result.report.seconds) == ("parity", 5.0)


@pytest.mark.parametrize(
    ("trouble", "usual", "bound"),
    [("raises", 0.1, 20.0), ("raises", 30.0, 120.0), ("does not end", 1.0, 20.0)],
)
def test_an_unverifiable_result_is_returned_in_bounded_time(trouble: str, usual: float, bound: float) -> None:
    # The other tasks hang and f cannot be evaluated on the driver: the map warns after 20 s or four task
    # times.
    calls, over = [], threading.Event()

    def only_on_workers(block: np.ndarray) -> np.ndarray:
        calls.append(block)
        if len(calls) > K:
            if trouble == "raises":
                raise RuntimeError("no accelerator here")
            over.wait()
        return product(block)

    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    text = "raised RuntimeError: no accelerator" if trouble == "raises" else "had not ended after"
    executor = arriving(order, N, start=usual, step=0.0)
    with pytest.warns(RuntimeWarning, match=f"could not be verified: no result beyond the 8.*{text}"):
        result = coded(only_on_workers, executor=executor, timeout=None)
    over.set()
    assert_right(result)
    assert result.report.verified == "no"
    assert usual + bound <= result.report.seconds < usual + bound + 1


def test_f_that_cannot_be_checked_delays_a_map_only_with_verify_true(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # f on the driver ends within one poll, even on a busy machine.
    monkeypatch.setattr(local_evaluation, "EVALUATION_POLL_SECONDS", 60.0)
    here = threading.main_thread()

    def f(block: np.ndarray) -> np.ndarray:
        if threading.current_thread() is not here:
            raise RuntimeError("no accelerator here")
        return block

    options = {"blocks": 24, "tasks": 32, "executor": losing(*range(24, 32))}
    assert coded_map(f, FLOATS, **options).report.seconds < 2.1
    with pytest.warns(RuntimeWarning, match="could not be verified: all data tasks.*no accelerator here"):
        coded_map(f, FLOATS, **options, verify=True)


# --- every data task reported ------------------------------------------------------------------


@pytest.mark.parametrize("f", [np.sin, np.sort, lambda block: block / block.sum()])
@pytest.mark.parametrize("arrival", [1.1, math.inf])
def test_with_all_data_any_function_gives_the_bits_of_a_plain_map(
    f: Callable[[Any], Any], arrival: float
) -> None:
    # The map warns, because the first straggler would make it fail.
    words = r"(?s)those of a plain map, but f is not linear.* off by [0-9.]+ "
    with pytest.warns(RuntimeWarning, match=words):
        late = coded(f, executor=ReplayExecutor(dict.fromkeys(range(K, N), arrival)))
    assert_same(late, plain_map(f, DATA, K))
    with pytest.raises(NotLinearError, match=r"(?s)f is not linear.*off by [0-9.]+ \(relative\)"):
        coded(f, executor=ReplayExecutor(dict.fromkeys(range(K, N), arrival)), verify=True)
    trusting = coded(f, executor=ReplayExecutor(dict.fromkeys(range(K, N), arrival)), verify=False)
    assert_same(trusting, plain_map(f, DATA, K))


@pytest.mark.parametrize("options", [{}, {"timeout": 100}, {"schedule": "on_demand"}])
@pytest.mark.parametrize("code", ["rotation", "arikan"])
def test_a_nonlinear_f_causes_a_warning_in_any_order_of_arrivals(code: str, options: dict[str, Any]) -> None:
    for seed in range(12):
        order = np.random.default_rng(seed).permutation(12).tolist()
        with pytest.warns(RuntimeWarning, match="those of a plain map, but f is not linear") as warned:
            result = coded_map(
                np.exp, FLOATS, blocks=8, tasks=12, code=code, executor=arriving(order, 12), **options
            )
        assert len(warned) == 1
        assert_same(result, plain_map(np.exp, FLOATS, 8))
        assert result.report.residual is not None
        assert result.report.residual > 1e-3


@pytest.mark.parametrize("options", [{}, {"timeout": 100}, {"schedule": "on_demand"}])
@pytest.mark.parametrize("verify", ["auto", True])
def test_a_nonlinear_f_is_refused_if_a_result_is_lost_in_any_order_of_arrivals(
    verify: Any, options: dict[str, Any]
) -> None:
    for seed in range(8):
        order = [task for task in np.random.default_rng(seed).permutation(12).tolist() if task != 2]
        with pytest.raises(NotLinearError, match="f is not linear"):
            coded_map(
                np.exp, FLOATS, blocks=8, tasks=12, verify=verify, executor=arriving(order, 12), **options
            )


def test_a_failed_task_of_a_nonlinear_f_is_retried() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("raise")})
    with pytest.warns(RuntimeWarning, match="those of a plain map"):
        result = coded_map(np.exp, FLOATS, blocks=8, tasks=12, executor=faulty)
    assert_same(result, plain_map(np.exp, FLOATS, 8))


def test_f_that_fails_on_parity_blocks_causes_a_warning_though_no_data_is_lost() -> None:
    # The parity blocks of positive numbers can be negative.
    def f(block: np.ndarray) -> np.ndarray:
        if (block < 0).any():
            raise ValueError("negative")
        return block

    with pytest.warns(
        RuntimeWarning,
        match=r"(?s)but f is not linear.*Found: f fails on parity blocks, here with ValueError",
    ):
        result = coded_map(f, np.exp(FLOATS), blocks=4, tasks=6, executor=losing(), retries=0)
    assert_same(result, plain_map(f, np.exp(FLOATS), 4))


def test_on_demand_a_parity_block_is_evaluated_on_the_driver() -> None:
    with pytest.warns(RuntimeWarning, match="f of a parity block is off by"):
        coded_map(np.exp, FLOATS, blocks=24, tasks=32, executor=losing(), schedule="on_demand")
    assert coded_map(np.negative, FLOATS, blocks=24, executor=losing(), schedule="on_demand").report.k == 24
    assert FunctionProperty(np.negative, LINEAR_OR_AFFINE, get_layout([FLOATS[:2]])).value
