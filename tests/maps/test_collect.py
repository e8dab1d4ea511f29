"""From arrivals to results, on a virtual clock: when it stops, what it trusts, how it fails."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain import arrivals, arriving, assert_same, cut, plain_map, states

import polarmap
from polarmap import CodedResult, Decoder, Fault, FaultyExecutor, PolarCode, ReplayExecutor, coded_map
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, NotLinearError
from polarmap.executors.base import Payload
from polarmap.executors.replay import ReplayRun
from polarmap.run import local_run
from polarmap.run.trusted import TRUSTED

N, K = 12, 8
DATA = np.random.default_rng(0).standard_normal((3 * K, 5))
WHOLE = np.random.default_rng(0).integers(-99, 99, (3 * K, 5))
WEIGHTS = np.random.default_rng(1).standard_normal(5)
VIRTUAL_SECONDS = 1000.0  # a limit on the virtual clock, so that a missing arrival fails the test
LOST_DATA = dict.fromkeys([1, 4], math.inf)


class Recorder:
    """A replay that notes what is done to it and to its run, and can be interrupted."""

    name = "recorder"
    worker = None

    def __init__(
        self, replay: ReplayExecutor, interrupt: tuple[str, int, BaseException] | None = None
    ) -> None:
        self.replay, self.calls = replay, []
        self._interrupt = interrupt

    def open(self, payload: Payload) -> RecordedRun:
        self.note("open")
        self.run = RecordedRun(self, payload)
        return self.run

    def note(self, call: Any) -> None:
        self.calls.append(call)
        verb, times, error = self._interrupt or ("", 0, None)
        verbs = [one if isinstance(one, str) else one[0] for one in self.calls]
        if verbs[-1] == verb and verbs.count(verb) == times and error is not None:
            raise error

    def submitted(self) -> list[list[int]]:
        """What was handed in, one list for each time."""
        return [list(call[1:]) for call in self.calls if call[0] == "submit"]


class RecordedRun:
    def __init__(self, recorder: Recorder, payload: Payload) -> None:
        self._recorder, self._run = recorder, recorder.replay.open(payload)

    def now(self) -> float:
        return self._run.now()

    def submit(self, attempts: Sequence[tuple[int, int]]) -> None:
        self._recorder.note(("submit", *(task for task, _ in attempts)))
        self._run.submit(attempts)

    def wait(self, timeout: float) -> Any:
        self._recorder.note("wait")
        assert timeout >= 0
        return self._run.wait(timeout)

    def wake(self) -> None:
        self._run.wake()

    def close(self) -> None:
        self._recorder.note("close")
        self._run.close()


def product(block: np.ndarray) -> np.ndarray:
    return block @ WEIGHTS


def coded(f: Callable[[Any], Any] = product, data: Any = DATA, **options: Any) -> CodedResult:
    defaults = {"blocks": K, "workers": N, "timeout": VIRTUAL_SECONDS}
    return coded_map(f, data, **defaults | options)


def faulty(faults: Mapping[int, Fault], seconds: Mapping[int, float] | None = None) -> FaultyExecutor:
    return FaultyExecutor(ReplayExecutor(seconds), faults)


def assert_right(result: CodedResult, f: Callable[[Any], Any] = product, data: Any = DATA) -> None:
    assert_same(result, plain_map(f, data, K), 1e-11)


def failing_on(*indices: int, error: Exception | None = None) -> Callable[[Any], Any]:
    """product, but an exception on these blocks of DATA."""
    corners = [DATA[3 * index, 0] for index in indices]

    def f(block: np.ndarray) -> np.ndarray:
        if block[0, 0] in corners:
            raise error or ValueError("no such block")
        return product(block)

    return f


# --- when it stops -----------------------------------------------------------------------------


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
    assert states(report) == {"used": sorted(order[:K]), "abandoned": sorted(order[K:])}


def test_with_all_data_it_stops_at_once_and_parity_is_not_waited_for() -> None:
    assert_right(coded())  # from then on f is known to be linear
    result = coded(executor=ReplayExecutor(dict.fromkeys(range(K, N), 1.1)))
    assert_same(result, plain_map(product, DATA, K))
    report = result.report
    assert (report.verified, report.needed, report.recovered) == ("not needed", K, ())
    assert report.seconds == 1.0
    assert (report.amplification, report.error_bound, report.residual) == (0, 0, None)
    assert states(report) == {"used": list(range(K)), "abandoned": list(range(K, N))}


def test_the_last_data_result_spares_decoding_while_surplus_is_waited_for() -> None:
    result = coded(executor=ReplayExecutor({8: 0.5, 4: 1.1, 9: 1.2, 10: 1.2, 11: 1.2}))
    assert_same(result, plain_map(product, DATA, K))
    report = result.report
    assert (report.verified, report.needed, report.recovered) == ("not needed", K, ())
    assert states(report) == {"used": list(range(K)), "surplus": [8], "abandoned": [9, 10, 11]}


@pytest.mark.parametrize("f", [np.sin, np.sort, lambda block: block / block.sum()])
@pytest.mark.parametrize("arrival", [1.1, math.inf])
def test_with_all_data_any_function_gives_the_bits_of_a_plain_map(
    f: Callable[[Any], Any], arrival: float
) -> None:
    """With a warning, as the first straggler would be an error."""
    with pytest.warns(RuntimeWarning, match=r"those of a plain map, but .* off by [0-9.]+ .*f is not linear"):
        late = coded(f, executor=ReplayExecutor(dict.fromkeys(range(K, N), arrival)))
    assert_same(late, plain_map(f, DATA, K))
    with pytest.raises(NotLinearError, match=r"off by [0-9.]+ \(relative\): f is not linear"):
        coded(f, executor=ReplayExecutor(dict.fromkeys(range(K, N), arrival)), verify=True)
    trusting = coded(f, executor=ReplayExecutor(dict.fromkeys(range(K, N), arrival)), verify=False)
    assert_same(trusting, plain_map(f, DATA, K))


def test_results_that_arrived_are_the_bits_of_a_plain_map() -> None:
    result = coded(np.cumsum, executor=ReplayExecutor({2: 2.0}))
    expected = plain_map(np.cumsum, DATA, K)
    assert result.report.recovered == (2,)
    assert_same(result[:2] + result[3:], expected[:2] + expected[3:])


def test_who_arrived_when_is_reported() -> None:
    seconds = {task: 1 + 0.1 * task for task in range(N)} | LOST_DATA
    report = coded(executor=ReplayExecutor(seconds)).report
    assert [task.index for task in report.tasks] == list(range(N))
    for task in report.tasks:
        arrived = task.index not in (1, 4, 11)
        expected = 1 + 0.1 * task.index if arrived else None
        assert task.arrived == pytest.approx(expected)
        assert task.seconds == pytest.approx(expected)
        assert (task.attempts, task.failures) == (1, ())
    assert states(report)["abandoned"] == [1, 4, 11]


def test_results_come_in_the_order_of_their_blocks() -> None:
    data = np.repeat(np.arange(K, dtype=float), 3)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(N).tolist()
        result = coded(np.mean, data, executor=arriving(order, N))
        assert [round(float(mean), 9) for mean in result] == list(range(K))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "twice": lambda block: block + block,
    "sums": lambda block: block.sum(axis=0),
    "two arrays": lambda block: (block[1:], block.T[0]),
    "sum": lambda block: block.sum(),
    "column minus one": lambda block: block[:, :1] - 1,
}


@settings(derandomize=True, max_examples=150)
@given(
    k=st.integers(1, 10),
    parity=st.integers(1, 6),
    lost=st.integers(0, 6),
    dtype=st.sampled_from(["f2", "f4", "f8", "c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]),
    seed=st.integers(0, 1000),
    kernel=st.sampled_from(["auto", "arikan", "sequential"]),
    name=st.sampled_from(sorted(FUNCTIONS)),
)
@example(k=4, parity=1, lost=1, dtype="f2", seed=279, kernel="auto", name="column minus one")
def test_any_code_order_and_dtype_gives_the_plain_map(
    k: int, parity: int, lost: int, dtype: str, seed: int, kernel: str, name: str
) -> None:
    TRUSTED.clear()
    f, stream = FUNCTIONS[name], np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    low, high = (0, 9) if kind in "fc" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    data = stream.integers(low, high, (2 * k, 3), endpoint=True, dtype=dtype if kind in "iu" else np.int64)
    data = data.astype(dtype)
    n = k + parity
    code = PolarCode(n, k, "arikan", "sequential") if kernel == "sequential" else kernel
    seconds = {task: float(turn) for turn, task in enumerate(stream.permutation(n).tolist())}
    late = dict.fromkeys(stream.permutation(n)[: min(lost, parity)].tolist(), 100.0)
    options = {"blocks": k, "workers": n, "code": code, "timeout": VIRTUAL_SECONDS}
    result = coded_map(f, data, executor=ReplayExecutor(seconds | late), **options)
    assert_same(result, plain_map(f, data, k), {"f2": 0.2, "f4": 1e-4, "c8": 1e-4}.get(dtype, 1e-9))


# --- surplus and verification ------------------------------------------------------------------


@pytest.mark.parametrize(("usual", "bound"), [(0.01, 0.2), (1.0, 1.0), (3.0, 3.0), (50.0, 10.0)])
def test_the_wait_for_surplus_is_one_median_task_time_within_limits(
    usual: float, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_run, "LOOK_SECONDS", 60.0)  # f here ends within one look, however busy this is
    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    result = coded(executor=arriving(order, N, start=usual, step=0.0))
    assert_right(result)
    report = result.report
    assert report.verified == "local"
    assert bound <= report.surplus_seconds < bound + 0.5
    assert report.seconds == pytest.approx(usual + report.surplus_seconds)


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
    assert report.surplus_seconds == pytest.approx(0.25)
    assert 0 < report.error_bound < 1e-10


def test_nobody_to_wait_for_ends_the_wait_for_surplus() -> None:
    faults = dict.fromkeys([1, 4, 8, 9], Fault("kill"))
    report = coded(executor=faulty(faults), retries=0).report
    assert (report.verified, report.seconds) == ("local", pytest.approx(1.0, abs=0.1))


def test_a_later_use_stops_at_the_kth_arrival() -> None:
    order = arrivals(PolarCode(N, K), N - 1, np.random.default_rng(3))
    assert coded(executor=arriving(order, N)).report.verified == "parity"
    report = coded(data=-DATA, executor=arriving(order, N)).report
    assert report.verified == "earlier"
    assert report.seconds == pytest.approx(1 + 0.1 * (K - 1))
    assert report.surplus_seconds == 0


def test_a_later_use_checks_surplus_that_is_there() -> None:
    exponent = np.array(1)  # an array's values do not tell functions apart

    def f(block: np.ndarray) -> np.ndarray:
        return block**exponent

    assert coded(f, executor=ReplayExecutor(LOST_DATA | {8: 1.5})).report.verified == "parity"
    # Integers need as many arrivals as their pattern says: more than K are there when it is enough.
    whole = WHOLE[: 3 * 48 // 6].repeat(6, axis=0)
    order = np.random.default_rng(0).permutation(64).tolist()
    options = {"blocks": 48, "workers": 64, "executor": arriving(order, 64)}
    report = coded(f, whole, **options).report
    assert report.needed > 48
    assert report.verified == "parity"
    exponent[...] = 2
    with pytest.warns(RuntimeWarning, match="those of a plain map, but the parity equations are off"):
        result = coded(f, whole, **options | {"executor": arriving(order, 64)})
    assert_same(result, plain_map(f, whole, 48))
    never = arriving([task for task in order if task != 3], 64)
    with pytest.raises(NotLinearError):
        coded(f, whole, **options | {"executor": never})


def test_verify_true_waits_every_time() -> None:
    order = arrivals(PolarCode(N, K), N - 1, np.random.default_rng(3))
    for _ in range(2):
        assert coded(verify=True, executor=arriving(order, N)).report.verified == "parity"
    assert coded(verify=True, executor=arriving(order[:K], N)).report.verified == "local"


@pytest.mark.parametrize("trust", [False, 0 == 1, np.False_])
def test_verify_false_takes_the_users_word(trust: Any) -> None:
    result = coded(np.abs, executor=ReplayExecutor(LOST_DATA | {8: 1.5}), verify=trust)
    assert result.report.verified == "no"
    assert result.report.residual is None
    assert_same(list(result)[5:], plain_map(np.abs, DATA, K)[5:])


def test_a_badly_conditioned_function_is_refused_unless_rtol_admits_it() -> None:
    times = DATA + 1e9
    with pytest.raises(NotLinearError, match="if it is linear but badly conditioned, raise rtol"):
        coded(np.diff, times, executor=ReplayExecutor(LOST_DATA))
    result = coded(np.diff, times, executor=ReplayExecutor(LOST_DATA), rtol=1e-4)
    assert_same(result, plain_map(np.diff, times, K), 1e-4)
    assert 1e-8 < result.report.error_bound < 1e-4


def test_the_size_of_the_residual_is_said() -> None:
    with pytest.raises(NotLinearError, match=r"off by 0\.\d+ \(relative\).*verify=False trusts you"):
        coded(np.abs, executor=ReplayExecutor(LOST_DATA))


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
def test_what_neither_surplus_nor_the_driver_can_verify_is_returned_in_bounded_time(
    trouble: str, usual: float, bound: float
) -> None:
    """Tasks hang and f cannot be evaluated here: after 20 s, or four task times, there is a warning."""
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


@pytest.mark.parametrize("f", [np.abs, np.sort, np.square])
def test_broken_equations_are_warned_of_though_all_data_arrives(f: Callable[[Any], Any]) -> None:
    """An equation is broken, nobody can tell by whom; then the last data task reports."""
    seconds = dict.fromkeys(range(10, N), math.inf) | {3: 1.1}
    with pytest.warns(RuntimeWarning, match=r"those of a plain map.*off by [0-9.e+]+ \(relative\)"):
        result = coded(f, executor=ReplayExecutor(seconds))
    assert result.report.verified == "not needed"
    assert result.report.residual is not None
    assert result.report.residual > 0.1
    assert_same(result, plain_map(f, DATA, K))


def test_garbage_among_all_data_is_named_when_the_equations_tell_it() -> None:
    seconds = dict.fromkeys(range(10, N), 1.15) | {3: 1.1}
    result = coded(np.copy, executor=faulty({0: Fault("garbage")}, seconds))
    assert_same(result, cut(DATA, K), 1e-11)
    assert_named(result, 0)


def test_while_several_workers_are_suspected_another_result_is_awaited() -> None:
    """Two broken equations that two workers could have broken alike; the next result tells which."""
    code = PolarCode(N, K, "arikan")
    order, culprit, suspects = ambiguous_arrivals(code)
    options = {"executor": FaultyExecutor(arriving(order, N, step=0.05), {culprit: Fault("garbage")})}
    result = coded(np.copy, code=code, verify=True, **options)
    assert len(suspects) > 1
    assert states(result.report)["failed"] == [culprit]
    assert_same(result, cut(DATA, K), 1e-11)
    # Nobody else comes: refused, rather than one of the two named.
    few = order[: order_at(code, order, culprit) + 1]
    options = {"executor": FaultyExecutor(arriving(few, N, step=0.05), {culprit: Fault("garbage")})}
    with pytest.raises(NotLinearError):
        coded(np.copy, code=code, verify=True, **options)


def ambiguous_arrivals(code: PolarCode) -> tuple[list[int], int, list[int]]:
    """An order in which garbage from one task first has two explanations, then one."""
    for seed in range(2000):
        order = np.random.default_rng(seed).permutation(N).tolist()[: N - 1]
        if set(order) >= set(range(K)):
            continue
        for culprit in order[:K]:
            turn = order_at(code, order, culprit)
            if not K + 2 <= turn + 1 < len(order):
                continue
            early, late = (explanations(code, order[:count], culprit) for count in (turn + 1, len(order)))
            if len(early) > 1 and late == [culprit]:
                return order, culprit, early
    raise AssertionError("no such order")


def order_at(code: PolarCode, order: list[int], culprit: int) -> int:
    """The first turn after which an equation between arrived blocks involves the culprit."""
    for turn in range(K, len(order)):
        if explanations(code, order[: turn + 1], culprit):
            return turn
    return len(order)


def explanations(code: PolarCode, arrived: list[int], culprit: int) -> list[int]:
    """The tasks whose columns in the equations between arrived blocks are parallel to the culprit's."""
    missing = sorted(set(range(N)) - set(arrived))
    equations = scipy.linalg.null_space(code.parity_check[:, missing].T).T @ code.parity_check
    if np.linalg.norm(equations[:, culprit]) < 1e-9:
        return []
    return [
        index
        for index in arrived
        if np.linalg.matrix_rank(equations[:, [culprit, index]], tol=1e-9) == 1
        and np.linalg.norm(equations[:, index]) > 1e-9
    ]


# --- accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("dtype", "rtol"), [("f8", 1e-15), ("f8", 5e-15), ("f4", None), ("f4", 2e-6), ("f2", None)]
)
def test_decoding_waits_until_the_amplification_of_errors_is_small_enough(
    seed: int, dtype: str, rtol: float | None
) -> None:
    order = np.random.default_rng(seed).permutation(64).tolist()
    options = {"blocks": 48, "workers": 64, "executor": arriving(order, 64), "verify": False, "rtol": rtol}
    report = coded(np.copy, DATA.repeat(2, axis=0).astype(dtype), **options).report
    allowed = {"f8": 1e-10, "f4": 1e-4, "f2": 0.1}[dtype] if rtol is None else rtol
    decoder = Decoder(PolarCode(64, 48), max_amplification=allowed / np.finfo(dtype).eps)
    assert report.needed == needed_by(decoder, order)
    assert report.error_bound <= allowed
    assert report.error_bound == pytest.approx(report.amplification * np.finfo(dtype).eps)


def test_what_is_accurate_enough_stays_so() -> None:
    """One more equation may raise the amplification a little, above the limit again."""
    code, (order, first, second) = PolarCode(6, 4), rising_amplification()
    assert first < second
    options = {"blocks": 4, "workers": 6, "code": code, "executor": arriving(order, 6)}
    result = coded(np.copy, rtol=first * np.finfo(float).eps * 1.0001, **options)
    assert_same(result, cut(DATA, 4), 1e-11)
    assert result.report.verified == "parity"
    assert result.report.seconds == pytest.approx(1.4)


def rising_amplification() -> tuple[list[int], float, float]:
    """Five arrivals of which the last raises the amplification; before and after."""
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(6).tolist()[:5]
        first, second = (amplification(PolarCode(6, 4), order[:count]) for count in (4, 5))
        if 0 < 1.01 * first < second:
            return order, first, second
    raise AssertionError("no such order")


def amplification(code: PolarCode, arrived: list[int]) -> float:
    decoder = Decoder(code)
    for index in arrived:
        decoder.add(index)
    return decoder.amplification


def test_a_result_more_precise_than_its_data_is_as_accurate_as_the_data() -> None:
    report = coded(executor=ReplayExecutor(LOST_DATA), data=DATA.astype("f4"), verify=False).report
    assert report.error_bound == pytest.approx(report.amplification * np.finfo("f4").eps)


def test_integers_have_no_error_but_floats_made_of_them_have() -> None:
    order = arrivals(PolarCode(N, K, "arikan"), N - 2, np.random.default_rng(0), exact=True)
    assert coded(np.copy, WHOLE, executor=arriving(order, N)).report.error_bound == 0
    assert 0 < coded(product, WHOLE, executor=arriving(order, N)).report.error_bound < 1e-12


def test_floats_made_of_integers_need_not_wait_until_integers_could_be_decoded() -> None:
    code = PolarCode(N, K, "arikan")
    orders = [np.random.default_rng(seed).permutation(N).tolist() for seed in range(20)]
    needed = [[needed_by(Decoder(code, exact=exact), order) for exact in (True, False)] for order in orders]
    assert [1, 1] in [[exact > inexact, inexact < N] for exact, inexact in needed]
    for order, (exact, inexact) in zip(orders, needed):
        options = {"executor": arriving(order, N), "verify": False}
        assert coded(np.copy, WHOLE, **options).report.needed == exact
        assert coded(product, WHOLE, **options).report.needed == inexact


def needed_by(decoder: Decoder, order: list[int]) -> int:
    return next(turn for turn, index in enumerate(order, 1) if decoder.add(index))


def test_floats_beside_integers_have_an_error() -> None:
    data = [(one, float(one[0])) for one in WHOLE[:K]]
    order = arrivals(PolarCode(N, K, "arikan"), N - 2, np.random.default_rng(0), exact=True)
    result = coded(lambda pair: (pair[0], pair[1] / 7), data, executor=arriving(order, N))
    assert_same(result, plain_map(lambda pair: (pair[0], pair[1] / 7), data, K), 1e-11)
    assert 0 < result.report.error_bound < 1e-12


@pytest.mark.parametrize("dtype", ["u1", "i1", "u4", "i4", "u8"])
@pytest.mark.parametrize("f", [np.sum, np.copy, lambda block: block * 3])
def test_integers_keep_their_dtype_when_only_parity_arrives(dtype: str, f: Callable[[Any], Any]) -> None:
    limits = np.iinfo(dtype)
    data = np.random.default_rng(0).integers(limits.min, limits.max, (4, 6), dtype, endpoint=True)
    never = ReplayExecutor(dict.fromkeys(range(2), math.inf))
    result = coded_map(f, data, blocks=2, workers=6, executor=never, timeout=VIRTUAL_SECONDS)
    assert_same(result, plain_map(f, data, 2))
    assert result.report.recovered == (0, 1)


# --- NaN and inf -------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("late", [2.0, 5.0])
@pytest.mark.filterwarnings("ignore:the data is NaN")
def test_nan_and_inf_are_not_decoded_from_but_waited_for(bad: float, late: float) -> None:
    data = DATA.copy()
    data[4, 2] = bad
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


@pytest.mark.filterwarnings("ignore:the data is NaN")
def test_nan_in_a_lost_block_is_waited_for() -> None:
    data = DATA.copy()
    data[0, 0] = math.nan
    result = coded(np.copy, data, executor=ReplayExecutor({0: 3.0}))
    assert_same(result, cut(data, K))
    assert result.report.seconds == 3.0


def test_overflow_of_parity_blocks_is_waited_for() -> None:
    data = np.full((3 * K, 2), 6e4, "f2") * np.where(np.arange(3 * K) % 2, 1, -1)[:, None].astype("f2")
    data[: 3 * K // 2] *= -1
    result = coded(np.copy, data, executor=ReplayExecutor({0: 3.0}))
    assert_same(result, cut(data, K), 0.05)


# --- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raise", "kill", "exit"])
def test_failures_that_parity_covers_are_not_tried_again(kind: str) -> None:
    seconds = {task: 1 + 0.1 * task for task in range(N)}
    recorder = Recorder(ReplayExecutor(seconds))
    faults = {0: Fault(kind), 3: Fault(kind), 9: Fault(kind)}
    result = coded(executor=FaultyExecutor(recorder, faults))
    assert_right(result)
    report = result.report
    assert states(report)["failed"] == [0, 3, 9]
    assert report.recovered == (0, 3)
    assert all(task.attempts == 1 for task in report.tasks)
    assert recorder.submitted() == [[*range(N)]]
    text = "RuntimeError: injected fault" if kind == "raise" else f"struck by '{kind}'"
    assert text in report.tasks[0].failures[0]


@pytest.mark.parametrize("kind", ["raise", "kill"])
def test_failures_that_parity_does_not_cover_are_tried_again(kind: str) -> None:
    seconds = dict.fromkeys(range(6, 11), 0.5) | {11: math.inf}
    recorder = Recorder(ReplayExecutor(seconds))
    result = coded(executor=FaultyExecutor(recorder, dict.fromkeys(range(6), Fault(kind))))
    assert_right(result)
    # With the fifth failure too little can arrive; all that failed so far is tried again.
    assert recorder.submitted() == [[*range(N)], [0, 1, 2, 3, 4]]
    assert [task.attempts for task in result.report.tasks] == [2] * 5 + [1] * 7
    assert [len(task.failures) for task in result.report.tasks] == [1] * 6 + [0] * 6
    assert 5 in result.report.recovered


def test_failures_are_tried_again_when_nothing_else_happens() -> None:
    """Two tasks hang, and the failed ones may be faster."""
    seconds = dict.fromkeys(range(8, 12), math.inf)
    result = coded(executor=faulty({0: Fault("kill"), 1: Fault("raise")}, seconds), verify=False)
    assert_same(result, plain_map(product, DATA, K))
    assert [task.attempts for task in result.report.tasks] == [2, 2] + [1] * 10
    assert result.report.seconds == 3.0  # 1 s each, and the wait in between


@pytest.mark.parametrize(("strikes", "retries"), [(1, 1), (3, 3), (1, 5)])
def test_failures_are_tried_as_often_as_needed_and_allowed(strikes: int, retries: int) -> None:
    faults = dict.fromkeys(range(N - K + 1), Fault("raise", attempts=strikes))
    seconds = {11: 0.5}
    result = coded(executor=faulty(faults, seconds), retries=retries)
    assert_right(result)
    assert max(task.attempts for task in result.report.tasks) == strikes + 1
    with pytest.raises(NotDecodableError, match="7 of 8 needed results"):
        coded(executor=faulty(faults, seconds), retries=strikes - 1)


@settings(derandomize=True, max_examples=100)
@given(
    kinds=st.lists(
        st.sampled_from(["", "", "raise", "kill", "sleep", "hang", "odd"]), min_size=N, max_size=N
    ),
    strikes=st.integers(1, 2),
    retries=st.integers(0, 2),
    seed=st.integers(0, 1000),
    whole=st.booleans(),
)
@example(kinds=["", "raise", *[""] * 4, "odd", *[""] * 5], strikes=1, retries=0, seed=0, whole=True)
def test_any_mix_of_misfortunes_gives_the_plain_map_or_an_error(
    kinds: list[str], strikes: int, retries: int, seed: int, whole: bool
) -> None:
    TRUSTED.clear()
    stream = np.random.default_rng(seed)
    data = WHOLE + stream.integers(0, 99) if whole else DATA
    odd = [data[3 * index].tolist() for index in range(K) if kinds[index] == "odd"]
    seconds = dict(enumerate(stream.permutation(N) + 1.0))
    seconds |= {index: math.inf for index, kind in enumerate(kinds) if kind == "hang"}
    faults = {
        i: Fault(kind, 30, strikes) for i, kind in enumerate(kinds) if kind in ("raise", "kill", "sleep")
    }

    def f(block: np.ndarray) -> np.ndarray:
        return block.T if block[0].tolist() in odd else block[1:]

    healed = ("", "odd", "sleep") if retries < strikes else ("", "odd", "sleep", "raise", "kill")
    comes = np.array([kind in healed and not (kind == "odd" and i < K) for i, kind in enumerate(kinds)])
    try:
        result = coded(f, data, executor=faulty(faults, seconds), retries=retries)
    except NotLinearError:
        assert odd  # and evaluated here, with the same odd result
    except (RuntimeError, CodedTimeoutError) as error:
        few = not hasattr(error, "__notes__")
        assert not few or not PolarCode(N, K, "arikan" if whole else "rotation").decodable(comes)
    else:
        assert_same(result, [block[1:] for block in cut(data, K)], 1e-9)


def test_retries_that_are_used_up_end_in_counts_and_the_first_cause() -> None:
    first = ValueError("no such block")
    with pytest.raises(NotDecodableError) as caught:
        coded(failing_on(0, 1, 2, 5, 6, error=first), executor=ReplayExecutor({0: 0.5}))
    assert "7 of 8 needed results" in str(caught.value)
    assert "5 tasks: ValueError: no such block" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value.__cause__) == "no such block"


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


def test_an_exception_that_would_not_travel_is_itself_where_it_need_not() -> None:
    class Local(Exception):  # noqa: N818
        def __reduce__(self) -> Any:
            raise TypeError("not picklable")

    with pytest.raises(Local, match="here"):
        coded(failing_on(*range(8), error=Local("here")), executor=ReplayExecutor())


def test_f_that_fails_everywhere_is_found_out_at_once() -> None:
    calls = []

    def f(block: np.ndarray) -> np.ndarray:
        calls.append(block)
        raise KeyError("column")

    recorder = Recorder(arriving(range(N), N))
    with pytest.raises(
        KeyError, match="column'\nf fails everywhere: each of the first 5 of 12 tasks to end raised"
    ):
        coded(f, executor=recorder)
    assert len(calls) == N - K + 1
    assert recorder.run.now() == pytest.approx(1 + 0.1 * (N - K))
    assert recorder.calls.count("close") == 1


def test_timeout_tells_what_arrived() -> None:
    recorder = Recorder(arriving(range(5), N))
    with pytest.raises(
        CodedTimeoutError, match=r"5 of 8 needed results arrived within 2.5 s, 7 tasks still run"
    ):
        coded(executor=recorder, timeout=2.5)
    assert recorder.run.now() == pytest.approx(2.5)
    assert recorder.calls[-1] == "close"


def test_timeout_tells_what_failed() -> None:
    seconds = dict.fromkeys(range(4, N), math.inf)
    with pytest.raises(CodedTimeoutError, match=r"3 of 8 .*8 tasks still run.*1 task: WorkerLost") as caught:
        coded(executor=faulty({2: Fault("kill", attempts=99)}, seconds), timeout=4)
    assert isinstance(caught.value, TimeoutError)


def test_timeout_that_cuts_verification_short_says_so() -> None:
    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    with pytest.raises(CodedTimeoutError, match=r"8 of 8 .*could not be verified in time.*verify=False"):
        coded(executor=arriving(order, N, step=0.0), timeout=1.5)


# --- results that do not fit -------------------------------------------------------------------


def odd_at(indices: Sequence[int], how: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """product, but workers return something else of blocks of DATA: not f evaluated here, on a thread."""
    corners, workers = DATA[3 * np.array(indices), 0], threading.current_thread()

    def f(block: np.ndarray) -> Any:
        is_odd = block[0, 0] in corners and threading.current_thread() is workers
        return how(block) if is_odd else product(block)

    return f


@pytest.mark.parametrize(
    "how",
    [np.sum, np.ravel, lambda block: (product(block),), lambda block: product(block) + 0j],
    ids=["scalar", "longer", "tuple", "complex"],
)
@pytest.mark.parametrize("arrival", [0.5, 1.0, 1.1])
def test_a_result_unlike_the_others_is_a_failure_whenever_it_comes(
    how: Callable[[Any], Any], arrival: float
) -> None:
    result = coded(odd_at([2], how), executor=ReplayExecutor({2: arrival} | dict.fromkeys(range(7, N), 1.2)))
    assert_right(result)
    report = result.report
    assert report.recovered == (2,)
    assert report.tasks[2].state == "failed"
    assert "returned" in report.tasks[2].failures[0]


def test_a_result_that_looked_odd_is_not_awaited_once_more() -> None:
    """Task 1 looks odd beside task 0 and is tried again, before task 2 shows that it was right."""
    seconds = {0: 0.5, 1: 1.0, 2: 2.9} | dict.fromkeys(range(3, N), math.inf)
    with pytest.raises(
        CodedTimeoutError, match=r"2 of 8 .* within 3\.1 s, 9 tasks still run; failed 1 task: W"
    ):
        coded(odd_at([0], np.sum), executor=ReplayExecutor(seconds), timeout=3.1, retries=1)


def test_too_many_results_unlike_the_others_are_an_error_that_names_shape_and_dtype() -> None:
    corners = DATA[3 * np.arange(5), 0]

    def f(block: np.ndarray) -> np.ndarray:
        return block[:, :2] if block[0, 0] in corners else product(block)

    with pytest.raises(NotDecodableError, match=r"7 of 8.*5 tasks: WrongShape: returned float64\[3, 2\]"):
        coded(f, executor=ReplayExecutor())


def test_the_shape_of_most_results_wins_however_late() -> None:
    """Three odd ones come first, then two right ones, and the right ones overtake them."""
    result = coded(odd_at(range(3), lambda block: block[:, :2]), executor=arriving(range(N), N))
    assert_right(result)
    assert states(result.report)["failed"] == [0, 1, 2]
    assert [task.failures for task in result.report.tasks[3:]] == [()] * (N - 3)


def test_dtypes_may_differ_in_width() -> None:
    """f of wider parity blocks may be wider than f of data blocks."""
    data = WHOLE.astype("i2")
    order = arrivals(PolarCode(N, K, "arikan"), N - 2, np.random.default_rng(0), exact=True)
    result = coded(lambda block: np.float32(2) * block, data, executor=arriving(order, N))
    assert_same(result, plain_map(lambda block: np.float32(2) * block, data, K), 1e-4)


# --- garbage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", [0, 5, 8, 11])
@pytest.mark.parametrize("data", [DATA, DATA.astype("f4"), DATA * (1 - 2j)], ids=["f8", "f4", "c16"])
def test_a_worker_that_returns_garbage_is_named_and_corrected(culprit: int, data: np.ndarray) -> None:
    executor = faulty({culprit: Fault("garbage")}, {culprit: 0.9, 3: math.inf})
    result = coded(np.copy, data, executor=executor)
    assert_same(result, cut(data, K), 1e-4 if data.dtype == np.float32 else 1e-11)
    assert_named(result, culprit)


def test_garbage_integers_pass_only_where_the_report_says_so() -> None:
    """The equations of the arikan kernel are sparse: some leave out a result that was decoded from."""
    fates = [fate_of_garbage(seed) for seed in range(80)]
    assert fates.count("named") >= 60
    assert fates.count("passed") <= 1


def fate_of_garbage(seed: int) -> str:
    """What becomes of garbage that arrives first, when arrivals come one by one."""
    TRUSTED.clear()
    order = np.random.default_rng(seed).permutation(20).tolist()
    code, culprit = PolarCode(20, K, "arikan"), order[0]
    executor = FaultyExecutor(arriving(order, 20), {culprit: Fault("garbage")})
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = coded(np.copy, WHOLE, code=code, workers=20, executor=executor)
    except NotLinearError:
        return "refused"
    if "failed" in states(result.report):
        assert_same(result, cut(WHOLE, K))
        assert states(result.report)["failed"] == [culprit]
        return "named"
    expected = cut(WHOLE, K)
    wrong = [index for index in range(K) if not np.array_equal(result[index], expected[index])]
    if wrong in ([], [culprit]):  # its own result and no other: as in a plain map
        return "warned" if caught else "harmless"
    assert culprit in result.report.unchecked
    return "passed"


def test_a_single_odd_block_of_integers_is_seen_wherever_a_check_involves_it() -> None:
    """f is linear but on one block that arrives; decoding from it would be wrong."""
    fates = [fate_of_an_odd_block(seed) for seed in range(80)]
    assert fates.count("seen") + fates.count("warned") >= 30
    assert fates.count("passed") <= 1


def fate_of_an_odd_block(seed: int) -> str:
    TRUSTED.clear()
    order = np.random.default_rng(seed).permutation(N).tolist()
    odd = WHOLE[3 * next(index for index in order if index < K)]

    def f(block: np.ndarray) -> np.ndarray:
        return block + 7 * np.array_equal(block[0], odd)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = coded(f, WHOLE, executor=arriving(order, N))
        except NotLinearError:
            return "seen"
    if all(np.array_equal(one, other) for one, other in zip(result, plain_map(f, WHOLE, K))):
        return "warned" if caught else "harmless"
    assert result.report.unchecked
    return "passed"


def assert_named(result: CodedResult, culprit: int) -> None:
    assert states(result.report)["failed"] == [culprit]
    message = f"GarbageResult: the result of task {culprit} contradicts the parity equations"
    assert result.report.tasks[culprit].failures == (message,)
    assert result.report.verified == "parity"


@pytest.mark.parametrize("culprit", [0, 8])
def test_garbage_with_a_single_surplus_result_is_refused(culprit: int) -> None:
    order = arrivals(PolarCode(N, K), K + 1, np.random.default_rng(3))
    executor = FaultyExecutor(arriving(order, N), {order[culprit]: Fault("garbage")})
    with pytest.raises(NotLinearError):
        coded(np.copy, executor=executor)


def test_garbage_without_surplus_is_refused() -> None:
    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    with pytest.raises(NotLinearError):
        coded(np.copy, executor=FaultyExecutor(arriving(order, N), {order[0]: Fault("garbage")}))


def test_two_garbage_workers_are_corrected_if_the_surplus_suffices() -> None:
    faults = {0: Fault("garbage"), 2: Fault("garbage")}
    with pytest.raises(NotLinearError):
        coded(np.copy, executor=faulty(faults, {3: math.inf, 10: math.inf, 11: math.inf}))
    result = coded(np.copy, workers=24, executor=faulty(faults, {3: math.inf}))
    assert_same(result, cut(DATA, K), 1e-11)


def test_one_block_that_is_not_linear_is_no_garbage() -> None:
    """A worker that returns what f gives is not to blame."""
    data = DATA.copy()
    data[6, 0] = 101
    with pytest.raises(NotLinearError, match="f of block 2 does not fit"):
        coded(lambda block: np.clip(block, -1e9, 100), data, executor=ReplayExecutor({3: math.inf}))


def test_a_function_with_chance_in_it_is_refused() -> None:
    noise = np.random.default_rng(0)
    with pytest.raises(NotLinearError, match="or not deterministic"):
        coded(lambda block: block + noise.standard_normal(), executor=ReplayExecutor({3: math.inf}))


# --- the executor is always stopped ------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda executor: polarmap.coded_map(np.sum, [], executor=executor),
        lambda executor: coded(data=DATA > 0, executor=executor),
        lambda executor: polarmap.coded_map(
            np.sum,
            np.ones((8, 2)),
            blocks=4,
            workers=12,
            degree=2,
            timeout=1.0,
            on_timeout="estimate",
            executor=executor,
        ),
        lambda executor: polarmap.coded_sum(np.sum, [], executor=executor),
        lambda executor: polarmap.hedged_map(np.sum, [np.ones(2)], blocks=3, executor=executor),
    ],
)
def test_nothing_is_opened_for_data_that_is_refused(use: Callable[[Any], Any]) -> None:
    recorder = Recorder(ReplayExecutor())
    with pytest.raises(CodeError):
        use(recorder)
    assert recorder.calls == []


def test_a_run_is_opened_once_and_closed_last() -> None:
    recorder = Recorder(ReplayExecutor(LOST_DATA))
    assert_right(coded(executor=recorder))
    assert recorder.calls[:2] == ["open", ("submit", *range(N))]
    assert recorder.calls[-1] == "close"
    assert recorder.calls.count("open") == recorder.calls.count("close") == len(recorder.submitted()) == 1


def test_seconds_count_from_the_call_although_the_run_is_opened_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(ReplayRun):
        def now(self) -> float:
            return 1000.0 + super().now()

    class Clocked(ReplayExecutor):
        def open(self, payload: Payload) -> ReplayRun:
            return Late({}, payload)

    monkeypatch.setattr("polarmap.run.running_map.time", SimpleNamespace(monotonic=lambda: 990.0))
    assert coded(verify=False, executor=Clocked()).report.seconds == 11.0
    assert coded(verify=False, executor=ReplayExecutor()).report.seconds == 1.0


@pytest.mark.parametrize(
    ("f", "options", "error"),
    [
        (np.abs, {}, NotLinearError),
        (failing_on(*range(K)), {}, ValueError),
        (product, {"timeout": 0.5}, CodedTimeoutError),
        (lambda block: block > 0, {}, CodeError),
    ],
)
def test_the_run_is_closed_after_an_error(f: Any, options: dict[str, Any], error: type[Exception]) -> None:
    recorder = Recorder(ReplayExecutor(LOST_DATA))
    with pytest.raises(error):
        coded(f, executor=recorder, **options)
    assert recorder.calls[-1] == "close"
    assert recorder.calls.count("close") == 1


@pytest.mark.parametrize("verb", ["submit", "wait"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_the_run_is_closed_when_interrupted(verb: str, error: type[BaseException]) -> None:
    recorder = Recorder(ReplayExecutor(LOST_DATA), (verb, 1 if verb == "submit" else 4, error()))
    with pytest.raises(error):
        coded(executor=recorder)
    assert recorder.calls[-1] == "close"
    assert recorder.calls.count("close") == 1
