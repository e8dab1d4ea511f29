"""Tests of the collector of one codeword: when it finishes, what it awaits, and its errors."""

from __future__ import annotations

import gc
import inspect
import math
import weakref
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from coded_maps import DATA, FLOATS, K, N, assert_right, coded, failing_on, faulty, losing, product
from plain import arrivals, arriving, assert_same, cut, plain_map, states

from polarmap import coded_map
from polarmap.codes import ArrivalTracker, PolarCode, SecretSharing
from polarmap.driver import local_evaluation
from polarmap.driver.acceptance import AcceptancePolicy
from polarmap.driver.coded_collector import CodedCollector
from polarmap.driver.function_properties import VERIFIED_PROPERTIES
from polarmap.driver.local_checks import LocalChecks
from polarmap.driver.padded_block import PaddedBlock
from polarmap.driver.parity_checks import ParityChecks
from polarmap.driver.verification import Accepted, Refused, Rejected, Verdict, Verifier
from polarmap.errors import CodedTimeoutError, NotDecodableError, NotLinearError
from polarmap.executors.replay import ReplaySession
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

# --- when a map is complete ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_an_unverified_map_stops_at_the_kth_arrival(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(N).tolist()
    result = coded(verify=False, executor=arriving(order, N))
    assert_right(result)
    report = result.report
    assert report.seconds == pytest.approx(1 + 0.1 * (K - 1))
    assert report.needed == K
    assert report.recovered == tuple(sorted(set(range(K)) - set(order[:K])))
    assert report.verified == ("no" if report.recovered else "not needed")
    assert states(report) == {"arrived": sorted(order[:K]), "abandoned": sorted(order[K:])}


def test_a_complete_map_of_a_verified_f_is_neither_checked_nor_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coded(executor=losing(0))  # f is verified from this map on.
    monkeypatch.setattr(PolarCode, "make_decoder", lambda *_: pytest.fail("a decoder was built"))
    for checks, method in ((ParityChecks, "_measure_residuals"), (LocalChecks, "start")):
        monkeypatch.setattr(checks, method, lambda *_: pytest.fail("the results were checked"))
    result = coded(executor=ReplayExecutor(dict.fromkeys(range(K, N), 1.1)))
    assert_same(result, plain_map(product, DATA, K))
    report = result.report
    assert (report.verified, report.seconds, report.needed, report.recovered) == ("not needed", 1.0, K, ())
    assert (report.amplification, report.error_bound, report.residual) == (0, 0, None)
    assert states(report) == {"arrived": list(range(K)), "abandoned": list(range(K, N))}


def test_the_last_data_result_avoids_decoding_while_the_map_waits_for_surplus() -> None:
    result = coded(executor=ReplayExecutor({8: 0.5, 4: 1.1, 9: 1.2, 10: 1.2, 11: 1.2}))
    assert_same(result, plain_map(product, DATA, K))
    report = result.report
    assert (report.verified, report.needed, report.recovered) == ("not needed", K, ())
    assert states(report) == {"arrived": list(range(K)), "surplus": [8], "abandoned": [9, 10, 11]}


def test_received_results_equal_a_plain_map_bit_for_bit() -> None:
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
def test_the_data_is_released_after_its_map_even_if_results_were_checked(surplus: int) -> None:
    data = DATA.copy()
    there = weakref.ref(data)
    lost = ReplayExecutor(dict.fromkeys(range(2 - surplus), math.inf))
    result = coded_map(np.negative, data, blocks=6, tasks=8, executor=lost)
    assert result.report.verified == ("parity" if surplus else "local")
    del data
    assert there() is None


# --- NaN and inf -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("row", "late"), [(4, 2.0), (4, 5.0), (0, 3.0)])  # Row 0 is in the lost block.
@pytest.mark.filterwarnings("ignore:the data contains NaN")
def test_a_map_waits_for_nan_and_inf_instead_of_decoding_from_them(bad: float, row: int, late: float) -> None:
    data = DATA.copy()
    data[row, 2] = bad
    data[14, 2] = -bad
    result = coded(np.copy, data, executor=ReplayExecutor({0: late}))
    assert_same(result, cut(data, K))
    assert result.report.verified == "not needed"
    assert result.report.seconds == late


@pytest.mark.filterwarnings("ignore:the data contains NaN")
def test_nan_and_inf_that_arrive_in_time_cause_no_wait() -> None:
    data = np.where(DATA > 1, math.inf, np.where(DATA < -1, math.nan, DATA))
    result = coded(np.copy, data, executor=ReplayExecutor({11: math.inf}))
    assert_same(result, cut(data, K))
    assert result.report.seconds == 1.0


def test_a_map_waits_for_data_if_parity_blocks_overflow() -> None:
    data = np.full((3 * K, 2), 6e4, "f2") * np.where(np.arange(3 * K) % 2, 1, -1)[:, None].astype("f2")
    data[: 3 * K // 2] *= -1
    result = coded(np.copy, data, executor=ReplayExecutor({0: 3.0}))
    assert_same(result, cut(data, K), 0.05)


def test_a_warning_names_nan_in_the_data_of_a_map() -> None:
    data = FLOATS.copy()
    data[17, 2] = data[30, 0] = np.nan
    with pytest.warns(RuntimeWarning, match=r"at 2 positions, the first in row 17, entry \(2,\)"):
        result = coded_map(np.negative, data, blocks=24, tasks=32, executor=losing())
    np.testing.assert_array_equal(result.concatenate(), -data)
    with pytest.warns(RuntimeWarning, match="sums of the data overflow float64"):
        coded_map(np.negative, 1.7e308 * np.sign(FLOATS), blocks=24, tasks=32, executor=losing())


@pytest.mark.parametrize("verify", ["auto", False])
@pytest.mark.filterwarnings("ignore:the data contains NaN")
def test_nan_with_a_lost_worker_ends_with_one_clear_error(verify: Any) -> None:
    data = FLOATS.copy()
    data[17, 2] = np.nan
    options = {"blocks": 24, "tasks": 32, "verify": verify}
    with pytest.raises(NotDecodableError, match=r"NaN or inf, .* not all data tasks reported: 23 of 24"):
        coded_map(np.negative, data, executor=losing(3), **options)
    with pytest.raises(CodedTimeoutError, match="1 task still runs; results contain NaN or inf"):
        coded_map(np.negative, data, executor=losing(3), timeout=50, **options)


# --- tasks that never end, inaccurate patterns -----------------------------------------------------


@pytest.mark.parametrize("schedule", ["upfront", "on_demand"])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_map_in_which_no_result_can_arrive_raises_a_clear_error(schedule: str, retries: int) -> None:
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
        assert result.report.seconds < 30.0  # The map does not wait for results that cannot help.
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


def test_a_timeout_error_lists_arrivals_and_failures() -> None:
    seconds = {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.3} | dict.fromkeys(range(4, N), math.inf)
    text = r"^3 of 8 needed results arrived within 2.5 s, 8 tasks still run; failed 1 task: WorkerLost"
    with pytest.raises(CodedTimeoutError, match=text) as caught:
        coded(executor=faulty({2: Fault("kill")}, seconds), timeout=2.5, retries=0)
    assert isinstance(caught.value, TimeoutError)


def test_a_timeout_that_interrupts_verification_is_reported() -> None:
    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    with pytest.raises(CodedTimeoutError, match=r"8 of 8 .*could not be verified in time.*verify=False"):
        coded(executor=arriving(order, N, step=0.0), timeout=1.5)


def test_contradicting_results_are_checked_again_only_when_a_result_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The loop polls every 5 s although the results contradict each other. It used to poll every 0.25 s.
    looks = list[float]()
    wait = ReplaySession.wait
    monkeypatch.setattr(
        ReplaySession, "wait", lambda run, timeout: looks.append(timeout) or wait(run, timeout)
    )
    lost = ReplayExecutor({0: math.inf, 1: 1000.0})
    with pytest.raises(NotLinearError):
        coded_map(np.square, FLOATS, blocks=6, tasks=9, executor=lost, timeout=500)
    assert len(looks) < 150


# --- predicates have no side effects -----------------------------------------------------

PREDICATES = ("is_", "has_", "can_", "must_", "would_")
# Attributes that hold cached values. Filling a cache does not count as a side effect.
CACHED = {
    "_decoder",
    "_missing_indices",
    "_previous_decoder",
    "_trial_cache",
    "_cached_decoder",
    "_cached_values",
    "_effects",
}
AFTER_ARRIVAL = PaddedBlock
WHEN_DETERMINED = AcceptancePolicy, LocalChecks, Verifier
# Number of polls after which predicates are called. The driver polls its own evaluation of f far more often.
MAX_POLLS = 20
ARGUMENTS = {"task_indices": range(K - 1), "now": 2.0, "max_wait_seconds": 1.0}


def is_component(value: object) -> bool:
    module = type(value).__module__
    return module.startswith("polarmap.driver.") or isinstance(value, ArrivalTracker)


def collect_components(value: object, components: dict[int, object]) -> dict[int, object]:
    """Return all objects of the driver that are reachable from `value`, by their id()."""
    if is_component(value) and hasattr(value, "__dict__") and id(value) not in components:
        components[id(value)] = value
        for part in vars(value).values():
            collect_components(part, components)
    return components


def get_state(component: object) -> dict[str, Any]:
    """Return a copy of an object's state, without cached values."""
    # A LocalEvaluation is changed by another thread at any time.
    if isinstance(component, local_evaluation.LocalEvaluation):
        return {}
    cached = {name for name, kind in vars(type(component)).items() if isinstance(kind, cached_property)}
    return {
        name: get_comparable_value(value)
        for name, value in vars(component).items()
        if name not in CACHED | cached
    }


def get_comparable_value(value: object) -> object:
    """Return a value that differs once `value` has been replaced or, for a collection, changed."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: id(item) for key, item in value.items()}
    if isinstance(value, (list, set)):
        return [id(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) else id(value)


def ask_all_predicates(component: object) -> int:
    """Call all predicates of an object that need only arguments in ARGUMENTS, and return their number."""
    n_asked = 0
    for name, member in inspect.getmembers_static(type(component)):
        if not name.lstrip("_").startswith(PREDICATES):
            continue
        if isinstance(member, property):
            getattr(component, name)
        elif inspect.isfunction(member):
            _, *parameters = inspect.signature(member).parameters.values()
            required = [
                parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty
            ]
            if not ARGUMENTS.keys() >= set(required):
                continue
            getattr(component, name)(*map(ARGUMENTS.__getitem__, required))
        else:
            continue
        n_asked += 1
    return n_asked


def ask_collector(collector: CodedCollector) -> int:
    """Call all predicates of a collector's parts twice, check that none changes, and return their number."""
    n_asked, components = 0, collect_components(collector, {})
    for component in components.values():
        has_results, is_determined = collector.received.by_task, collector.decoder.ready_at is not None
        if isinstance(component, WHEN_DETERMINED) and not is_determined:
            continue
        if isinstance(component, AFTER_ARRIVAL) and not has_results:
            continue
        before = {key: get_state(part) for key, part in components.items()}
        n_asked += ask_all_predicates(component)
        ask_all_predicates(component)
        assert {key: get_state(part) for key, part in components.items()} == before, component
    return n_asked


SCENARIOS: dict[str, dict[str, Any]] = {
    "nothing is lost": {"executor": losing()},
    "parity agrees": {"executor": losing(1)},
    "f is evaluated here": {"executor": losing(1, 4, 8, 9)},
    "garbage": {"executor": faulty({2: Fault("garbage")}, {2: 0.9, 3: math.inf})},
    "not linear": {"f": np.abs, "executor": ReplayExecutor({0: 9.0, 1: 3.0})},
    "NaN": {"f": lambda block: np.log(block), "executor": ReplayExecutor({0: 2.0})},
    "padding": {"data": DATA[:-1], "executor": losing(1, 3)},
    "padding is awaited": {"f": np.sort, "data": DATA[:-1], "executor": ReplayExecutor({K - 1: 9.0})},
    "estimates": {"executor": losing(*range(5)), "on_timeout": "estimate", "timeout": 9.0},
    "noise": {"code": SecretSharing(), "executor": losing(2)},
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.filterwarnings("ignore")
def test_predicates_change_nothing(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_evaluation, "EVALUATION_POLL_SECONDS", 60.0)
    expected, n_asked, try_finish = coded(**SCENARIOS[scenario]), list[int](), CodedCollector.try_finish

    def ask_and_try_finish(collector: CodedCollector) -> bool:
        if len(n_asked) < MAX_POLLS:
            n_asked.append(ask_collector(collector))
        has_finished = try_finish(collector)
        if len(n_asked) < MAX_POLLS or has_finished:
            n_asked.append(ask_collector(collector))
        return has_finished

    VERIFIED_PROPERTIES.clear()
    monkeypatch.setattr(CodedCollector, "try_finish", ask_and_try_finish)
    result = coded(**SCENARIOS[scenario])
    assert max(n_asked) >= 10
    for block, expected_block in zip(result, expected):
        np.testing.assert_allclose(block, expected_block, rtol=1e-9, atol=1e-9)
    for name in ("verified", "recovered", "needed", "last_block", "errors"):
        assert getattr(result.report, name) == getattr(expected.report, name)
    assert len(result.report.evaluated_locally) == len(expected.report.evaluated_locally)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.filterwarnings("ignore")
def test_a_verdict_changes_no_results_and_no_tasks(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_evaluation, "EVALUATION_POLL_SECONDS", 60.0)
    verdicts, judge = list[Verdict](), AcceptancePolicy.judge

    def judge_and_compare(policy: AcceptancePolicy) -> Verdict:
        parts = policy._decoder.received, policy._task_table
        before, properties = [get_state(part) for part in parts], dict(VERIFIED_PROPERTIES)
        verdicts.append(judge(policy))
        assert [get_state(part) for part in parts] == before
        assert properties == VERIFIED_PROPERTIES
        return verdicts[-1]

    monkeypatch.setattr(AcceptancePolicy, "judge", judge_and_compare)
    report = coded(**SCENARIOS[scenario]).report
    accepted = [verdict.verification for verdict in verdicts if isinstance(verdict, Accepted)]
    assert accepted in ([report.verified], [])
    if scenario == "garbage":
        assert [verdict.task_index for verdict in verdicts if isinstance(verdict, Rejected)] == [2]
    if scenario == "not linear":
        assert any(isinstance(verdict, Refused) for verdict in verdicts)
