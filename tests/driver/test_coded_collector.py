"""One codeword: when it is over, what it waits for, and what is said where it cannot be."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from coded_maps import DATA, FLOATS, K, N, assert_right, coded, failing_on, faulty, losing, product
from plain import arrivals, arriving, assert_same, cut, plain_map, states

from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.driver.local_checks import LocalChecks
from polarmap.driver.parity_checks import ParityChecks
from polarmap.errors import CodedTimeoutError, NotDecodableError, NotLinearError
from polarmap.executors.replay import ReplaySession
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

# --- when it is over ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_unverified_it_stops_at_the_kth_arrival(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(N).tolist()
    result = coded(verify=False, executor=arriving(order, N))
    assert_right(result)
    report = result.report
    assert report.seconds == pytest.approx(1 + 0.1 * (K - 1))
    assert report.needed == K
    assert report.recovered == tuple(sorted(set(range(K)) - set(order[:K])))
    assert report.verified == ("no" if report.recovered else "not needed")
    assert states(report) == {"arrived": sorted(order[:K]), "abandoned": sorted(order[K:])}


def test_where_nothing_is_missing_nothing_is_checked_or_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    coded(executor=losing(0))  # f is known from here
    monkeypatch.setattr(PolarCode, "make_decoder", lambda *_: pytest.fail("made"))
    for checks, method in ((ParityChecks, "_measure_residuals"), (LocalChecks, "start")):
        monkeypatch.setattr(checks, method, lambda *_: pytest.fail("checked"))
    result = coded(executor=ReplayExecutor(dict.fromkeys(range(K, N), 1.1)))
    assert_same(result, plain_map(product, DATA, K))
    report = result.report
    assert (report.verified, report.seconds, report.needed, report.recovered) == ("not needed", 1.0, K, ())
    assert (report.amplification, report.error_bound, report.residual) == (0, 0, None)
    assert states(report) == {"arrived": list(range(K)), "abandoned": list(range(K, N))}


def test_the_last_data_result_spares_decoding_while_surplus_is_waited_for() -> None:
    result = coded(executor=ReplayExecutor({8: 0.5, 4: 1.1, 9: 1.2, 10: 1.2, 11: 1.2}))
    assert_same(result, plain_map(product, DATA, K))
    report = result.report
    assert (report.verified, report.needed, report.recovered) == ("not needed", K, ())
    assert states(report) == {"arrived": list(range(K)), "surplus": [8], "abandoned": [9, 10, 11]}


def test_results_that_arrived_are_the_bits_of_a_plain_map() -> None:
    result = coded(np.cumsum, executor=ReplayExecutor({2: 2.0}))
    expected = plain_map(np.cumsum, DATA, K)
    assert result.report.recovered == (2,)
    assert_same(result[:2] + result[3:], expected[:2] + expected[3:])


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("surplus", [0, 1])
def test_the_data_is_gone_when_its_map_is_over_though_results_were_checked(surplus: int) -> None:
    data = DATA.copy()
    there = weakref.ref(data)
    lost = ReplayExecutor(dict.fromkeys(range(2 - surplus), math.inf))
    result = coded_map(np.negative, data, blocks=6, tasks=8, executor=lost)
    assert result.report.verified == ("parity" if surplus else "local")
    del data
    assert there() is None


# --- NaN and inf -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("row", "late"), [(4, 2.0), (4, 5.0), (0, 3.0)])  # 0: of the lost block
@pytest.mark.filterwarnings("ignore:the data is NaN")
def test_nan_and_inf_are_not_decoded_from_but_waited_for(bad: float, row: int, late: float) -> None:
    data = DATA.copy()
    data[row, 2] = bad
    data[14, 2] = -bad
    result = coded(np.copy, data, executor=ReplayExecutor({0: late}))
    assert_same(result, cut(data, K))
    assert result.report.verified == "not needed"
    assert result.report.seconds == late


@pytest.mark.filterwarnings("ignore:the data is NaN")
def test_nan_and_inf_in_time_cost_no_wait() -> None:
    data = np.where(DATA > 1, math.inf, np.where(DATA < -1, math.nan, DATA))
    result = coded(np.copy, data, executor=ReplayExecutor({11: math.inf}))
    assert_same(result, cut(data, K))
    assert result.report.seconds == 1.0


def test_overflow_of_parity_blocks_is_waited_for() -> None:
    data = np.full((3 * K, 2), 6e4, "f2") * np.where(np.arange(3 * K) % 2, 1, -1)[:, None].astype("f2")
    data[: 3 * K // 2] *= -1
    result = coded(np.copy, data, executor=ReplayExecutor({0: 3.0}))
    assert_same(result, cut(data, K), 0.05)


def test_nan_is_named_when_it_is_encoded() -> None:
    data = FLOATS.copy()
    data[17, 2] = data[30, 0] = np.nan
    with pytest.warns(RuntimeWarning, match=r"at 2 places, the first of them in row 17, entry \(2,\)"):
        result = coded_map(np.negative, data, blocks=24, tasks=32, executor=losing())
    np.testing.assert_array_equal(result.concatenate(), -data)
    with pytest.warns(RuntimeWarning, match="sums of the data overflow float64"):
        coded_map(np.negative, 1.7e308 * np.sign(FLOATS), blocks=24, tasks=32, executor=losing())


@pytest.mark.parametrize("verify", ["auto", False])
@pytest.mark.filterwarnings("ignore:the data is NaN")
def test_nan_with_a_lost_worker_ends_with_one_clear_error(verify: Any) -> None:
    data = FLOATS.copy()
    data[17, 2] = np.nan
    options = {"blocks": 24, "tasks": 32, "verify": verify}
    with pytest.raises(NotDecodableError, match=r"NaN or inf, .* not all data tasks reported: 23 of 24"):
        coded_map(np.negative, data, executor=losing(3), **options)
    with pytest.raises(CodedTimeoutError, match="1 task still runs; results contain NaN or inf"):
        coded_map(np.negative, data, executor=losing(3), timeout=50, **options)


# --- what never ends, what is not accurate -----------------------------------------------------


@pytest.mark.parametrize("schedule", ["upfront", "on_demand"])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_map_in_which_nothing_can_arrive_says_so(schedule: str, retries: int) -> None:
    faulty = FaultyExecutor(losing(1, 2, 4), {5: Fault("kill", attempts=9)})
    with pytest.raises(NotDecodableError, match=r"5 of 6 .*, and no more can come; failed 3 tasks: .*3600 s"):
        coded_map(np.negative, FLOATS, blocks=6, tasks=9, executor=faulty, retries=retries, schedule=schedule)


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("how", ["kill", "never"])
def test_an_inaccurate_pattern_is_returned_with_its_bound(dtype: str, how: str) -> None:
    data, code = FLOATS.astype(dtype), PolarCode(32, 24)
    limit = 0.1 if dtype == "f2" else 1e-4
    n_rejected = 0
    for seed in range(400):
        lost = np.random.default_rng(seed).permutation(32)[:8].tolist()
        arrived = ~np.isin(np.arange(32), lost)
        amplification = code.make_decoder(arrived, modular=False).amplification
        if amplification * np.finfo(dtype).eps <= limit:
            continue
        n_rejected += 1
        faults = dict.fromkeys(lost, Fault("kill", attempts=9)) if how == "kill" else {}
        executor = FaultyExecutor(ReplayExecutor() if faults else losing(*lost), faults)
        options = {"blocks": 24, "tasks": 32, "verify": False}
        with pytest.warns(RuntimeWarning, match=r"no more accurately than to .* which is more than rtol"):
            result = coded_map(np.negative, data, executor=executor, **options)
        truth = -data.astype(float)
        off = np.abs(result.concatenate().astype(float) - truth).max() / np.abs(truth).max()
        assert off <= result.report.error_bound
        assert result.report.seconds < 30.0  # no result that would help is waited for any longer
        if n_rejected == 3:
            break
    assert n_rejected >= 2


def test_different_failures_are_counted_separately() -> None:
    faults = dict.fromkeys([1, 2], Fault("kill", attempts=9)) | {7: Fault("raise", attempts=9)}
    with pytest.raises(NotDecodableError) as caught:
        coded(failing_on(3, 4, 5), executor=faulty(faults))
    for part in (
        "only 7 of 8 needed results can arrive: 6 did, 1 task still runs",
        "3 tasks: ValueError",
        "2 tasks: WorkerLost",
        "1 task: RuntimeError",
    ):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value.__cause__) == "no such block"


def test_timeout_tells_what_arrived_and_what_failed() -> None:
    seconds = {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.3} | dict.fromkeys(range(4, N), math.inf)
    text = r"^3 of 8 needed results arrived within 2.5 s, 8 tasks still run; failed 1 task: WorkerLost"
    with pytest.raises(CodedTimeoutError, match=text) as caught:
        coded(executor=faulty({2: Fault("kill")}, seconds), timeout=2.5, retries=0)
    assert isinstance(caught.value, TimeoutError)


def test_timeout_that_cuts_verification_short_says_so() -> None:
    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    with pytest.raises(CodedTimeoutError, match=r"8 of 8 .*could not be verified in time.*verify=False"):
        coded(executor=arriving(order, N, step=0.0), timeout=1.5)


def test_results_that_contradict_each_other_are_looked_at_again_when_another_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop looks every 5 s, whatever happens; it did every quarter of a second."""
    looks = list[float]()
    wait = ReplaySession.wait
    monkeypatch.setattr(
        ReplaySession, "wait", lambda run, timeout: looks.append(timeout) or wait(run, timeout)
    )
    lost = ReplayExecutor({0: math.inf, 1: 1000.0})
    with pytest.raises(NotLinearError):
        coded_map(np.square, FLOATS, blocks=6, tasks=9, executor=lost, timeout=500)
    assert len(looks) < 150
