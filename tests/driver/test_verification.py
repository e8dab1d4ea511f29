"""Garbage is named or refused, and f that is not linear is found out: by equations, or by f on the driver."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from coded_maps import DATA, FLOATS, WHOLE, K, N, coded, faulty, losing
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import AlteringReplay, arrivals, arriving, assert_same, cut, plain_map, states

from polarmap import coded_map
from polarmap.codes import PolarCode, SecretSharing
from polarmap.driver.function_properties import LINEAR_OR_AFFINE, VERIFIED_PROPERTIES, FunctionProperty
from polarmap.driver.verification import Verifier
from polarmap.errors import CodedTimeoutError, NotDecodableError, NotLinearError
from polarmap.executors.interface import Outcome
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import CodedResult

# --- garbage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", [0, 5, 8, 11])
@pytest.mark.parametrize("data", [DATA, DATA.astype("f4"), DATA * (1 - 2j)], ids=["f8", "f4", "c16"])
def test_a_worker_that_returns_garbage_is_named_and_corrected(culprit: int, data: np.ndarray) -> None:
    executor = faulty({culprit: Fault("garbage")}, {culprit: 0.9, 3: math.inf})
    result = coded(np.copy, data, executor=executor)
    assert_same(result, cut(data, K), 1e-4 if data.dtype == np.float32 else 1e-11)
    assert_named(result, culprit)


def assert_named(result: CodedResult, culprit: int) -> None:
    assert states(result.report)["failed"] == [culprit]
    message = f"GarbageResult: the result of task {culprit} contradicts the parity equations"
    assert result.report.tasks[culprit].failures == (message,)
    assert result.report.verified == "parity"


def test_garbage_is_named_on_a_later_use_too_where_results_are_over() -> None:
    """Integers need as many arrivals as their pattern says: a few are over, to be checked against."""
    order = np.random.default_rng(0).permutation(64).tolist()
    whole, options = np.arange(144).reshape(48, 3), {"blocks": 48, "tasks": 64}
    assert coded(np.copy, whole, **options, executor=arriving(order, 64)).report.verified == "parity"
    executor = FaultyExecutor(arriving(order, 64), {order[0]: Fault("garbage")})
    result = coded(np.copy, whole, **options, executor=executor)
    assert np.array_equal(result.concatenate(), whole)
    assert_named(result, order[0])


def test_garbage_among_all_data_is_named_when_the_equations_tell_it() -> None:
    seconds = dict.fromkeys(range(10, N), 1.15) | {3: 1.1}
    result = coded(np.copy, executor=faulty({0: Fault("garbage")}, seconds))
    assert_same(result, cut(DATA, K), 1e-11)
    assert_named(result, 0)


@pytest.mark.parametrize(("culprit", "count"), [(0, K + 1), (8, K + 1), (0, K)])
def test_garbage_with_one_surplus_result_or_none_is_refused(culprit: int, count: int) -> None:
    order = arrivals(PolarCode(N, K), count, np.random.default_rng(3))
    with pytest.raises(NotLinearError):
        coded(np.copy, executor=FaultyExecutor(arriving(order, N), {order[culprit]: Fault("garbage")}))


def test_two_garbage_workers_are_corrected_if_the_surplus_suffices() -> None:
    faults = {0: Fault("garbage"), 2: Fault("garbage")}
    with pytest.raises(NotLinearError):
        coded(np.copy, executor=faulty(faults, {3: math.inf, 10: math.inf, 11: math.inf}))
    result = coded(np.copy, tasks=24, executor=faulty(faults, {3: math.inf}))
    assert_same(result, cut(DATA, K), 1e-11)


def fate(f: Callable[[Any], Any], executor: Any, **options: Any) -> tuple[str, CodedResult | None]:
    """What became of a map of WHOLE: "refused", "warned" or "harmless", and what it returned."""
    VERIFIED_PROPERTIES.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = coded(f, WHOLE, executor=executor, **options)
        except NotLinearError:
            return "refused", None
    return "warned" if caught else "harmless", result


def wrong_blocks(result: CodedResult, expected: Sequence[np.ndarray]) -> list[int]:
    return [index for index, block in enumerate(result) if not np.array_equal(block, expected[index])]


def test_garbage_integers_pass_only_where_the_report_says_so() -> None:
    """The equations of the arikan kernel are sparse: some leave out a result that was decoded from."""
    fates = Counter[str]()
    for seed in range(80):  # garbage arrives first, and the others one by one
        order = np.random.default_rng(seed).permutation(20).tolist()
        executor = FaultyExecutor(arriving(order, 20), {order[0]: Fault("garbage")})
        what, result = fate(np.copy, executor, code=PolarCode(20, K, "arikan"), tasks=20)
        wrong = [] if result is None else wrong_blocks(result, cut(WHOLE, K))
        if result is not None and "failed" in states(result.report):
            what = "named"
            assert (wrong, states(result.report)["failed"]) == ([], order[:1])
        elif result is not None and wrong not in ([], order[:1]):  # more than its own, as in a plain map
            what = "passed"
            assert order[0] in result.report.unchecked
        fates[what] += 1
    assert fates["named"] >= 60
    assert fates["passed"] <= 1


def test_while_several_workers_are_suspected_another_result_is_awaited() -> None:
    """Two broken equations that two workers could have broken alike; the next result tells which."""
    code = PolarCode(N, K, "arikan")
    order, culprit = [3, 7, 8, 6, 5, 2, 11, 10, 9, 0, 1], 7
    assert explanations(code, order[:9], culprit) == []
    assert explanations(code, order[:10], culprit) == [7, 0]
    assert explanations(code, order, culprit) == [7]
    options = {"executor": FaultyExecutor(arriving(order, N, step=0.05), {culprit: Fault("garbage")})}
    result = coded(np.copy, code=code, verify=True, **options)
    assert states(result.report)["failed"] == [culprit]
    assert_same(result, cut(DATA, K), 1e-11)
    # Nobody else comes: refused, rather than one of the two named.
    options = {"executor": FaultyExecutor(arriving(order[:10], N, step=0.05), {culprit: Fault("garbage")})}
    with pytest.raises(NotLinearError):
        coded(np.copy, code=code, verify=True, **options)


def explanations(code: PolarCode, arrived: list[int], culprit: int) -> list[int]:
    """The tasks whose columns in the equations between arrived blocks are parallel to the culprit's."""
    missing = sorted(set(range(N)) - set(arrived))
    equations = scipy.linalg.null_space(code.parity_check_matrix[:, missing].T).T @ code.parity_check_matrix
    if np.linalg.norm(equations[:, culprit]) < 1e-9:
        return []
    return [
        index
        for index in arrived
        if np.linalg.matrix_rank(equations[:, [culprit, index]], tol=1e-9) == 1
        and np.linalg.norm(equations[:, index]) > 1e-9
    ]


# --- lies --------------------------------------------------------------------------------------


class Lying(AlteringReplay):
    """Adds to one entry of what one worker returns."""

    def __init__(self, seconds: dict[int, float], liar: int, entry: int, lie: Any) -> None:
        super().__init__(seconds)
        self._liar, self._entry, self._lie = liar, entry, lie

    def altered(self, outcome: Outcome) -> Outcome:
        if outcome.task != self._liar or outcome.failure is not None:
            return outcome
        changed = outcome.leaves[0].copy()
        changed.reshape(-1)[self._entry] += np.asarray(self._lie, changed.dtype)
        return outcome._replace(leaves=[changed])


def lied_to(
    f: Callable[[Any], Any], data: np.ndarray, sizes: tuple[int, int], late: int, lie: float, seed: int
) -> tuple[CodedResult | None, int]:
    """A map of n tasks for k blocks, of which some are late and one lies, and who; None if it is refused."""
    VERIFIED_PROPERTIES.clear()
    (n, k), stream = sizes, np.random.default_rng(seed)
    order, liar = stream.permutation(n).tolist(), int(stream.integers(n))
    seconds = {task: 1 + 0.01 * turn for turn, task in enumerate(order)}
    executor = Lying(seconds | dict.fromkeys(order[n - late :], math.inf), liar, int(stream.integers(2)), lie)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return coded(f, data, blocks=k, tasks=n, executor=executor, timeout=60), liar
        except (NotLinearError, NotDecodableError, CodedTimeoutError):
            return None, liar


@settings(derandomize=True, max_examples=300)
@given(
    k=st.integers(1, 8),
    parity=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    lie=st.integers(1, 50),
    late=st.integers(0, 6),
)
def test_a_lie_among_integers_is_found_or_its_worker_listed(
    k: int, parity: int, seed: int, lie: int, late: int
) -> None:
    data = np.random.default_rng(seed).integers(-99, 99, (2 * k, 3))
    f = lambda block: block @ np.array([1, 2, 3])  # noqa: E731
    result, liar = lied_to(f, data, (k + parity, k), min(late, parity), lie, seed)
    if result is not None and result.report.verified != "not needed":  # else they are a plain map's
        right = [np.array_equal(block, other) for block, other in zip(result, plain_map(f, data, k))]
        assert all(right) or liar in result.report.unchecked


@settings(derandomize=True, max_examples=300)
@given(
    k=st.integers(2, 24),
    parity=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    size=st.floats(-8, 1),
    late=st.integers(0, 8),
    dtype=st.sampled_from(["f4", "f8"]),
)
def test_a_lie_among_floats_is_found_or_within_the_bound(
    k: int, parity: int, seed: int, size: float, late: int, dtype: str
) -> None:
    data = np.random.default_rng(seed).standard_normal((2 * k, 3)).astype(dtype)
    f = lambda block: block @ np.array([1, 2, 3], dtype)  # noqa: E731
    result, liar = lied_to(f, data, (k + parity, k), min(late, parity), 9 * 10.0**size, seed)
    if result is None or result.report.verified == "not needed" or liar in result.report.unchecked:
        return
    truth = np.stack(plain_map(f, data.astype(float), k))
    off = np.abs(np.stack(list(result)) - truth).max() / np.abs(truth).max()
    assert off <= 1.01 * result.report.error_bound + 4 * np.finfo(dtype).eps


# --- f that is not linear ----------------------------------------------------------------------


def test_a_single_odd_block_of_integers_is_seen_wherever_a_check_involves_it() -> None:
    """f is linear but on one block that arrives; decoding from it would be wrong."""
    fates = Counter[str]()
    for seed in range(80):
        order = np.random.default_rng(seed).permutation(N).tolist()
        odd = WHOLE[3 * next(index for index in order if index < K)]

        def f(block: np.ndarray, odd: np.ndarray = odd) -> np.ndarray:
            return block + 7 * np.array_equal(block[0], odd)

        what, result = fate(f, arriving(order, N))
        if result is not None and wrong_blocks(result, plain_map(f, WHOLE, K)):
            what = "passed"
            assert result.report.unchecked
        fates[what] += 1
    assert fates["refused"] + fates["warned"] >= 30
    assert fates["passed"] <= 1


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


@pytest.mark.parametrize("verify", ["auto", True])
def test_noise_that_saturates_f_does_not_make_it_linear(verify: Any) -> None:
    """Under noise f is as good as constant, which is affine: only f of data itself tells."""
    clip = lambda block: np.clip(block, -1, 1)  # noqa: E731
    options = {"blocks": 8, "tasks": 12, "code": SecretSharing(), "timeout": 100, "verify": verify}
    with pytest.raises(NotLinearError):
        coded_map(clip, FLOATS, executor=losing(), **options)
    result = coded_map(np.negative, FLOATS, executor=losing(2), **options)
    np.testing.assert_allclose(result.concatenate(), -FLOATS, atol=1e-9)


@pytest.mark.parametrize("f", [np.abs, np.square, lambda block: block.clip(0, 1)])
def test_equal_blocks_vouch_for_nothing(f: Callable[[Any], Any]) -> None:
    options = {"blocks": 8, "tasks": 12, "timeout": 100}
    coded_map(f, np.ones((48, 3)), executor=losing(0), **options)
    with pytest.raises(NotLinearError):
        coded_map(f, FLOATS, executor=losing(0), **options)


def test_equal_results_do_not_make_f_linear() -> None:
    """Signs of positive numbers are equal, and that of the block that is lost is another."""
    data = np.array([[-1.0], [2.0], [3.0], [4.0]])
    arrived = [task for task in range(12) if task and (PolarCode(12, 4).encode(data)[task] > 0).all()]
    assert len(arrived) >= 5
    with pytest.raises(NotLinearError):
        coded_map(np.sign, data, blocks=4, tasks=12, executor=arriving(arrived, 12), timeout=100)


def test_copies_of_blocks_make_no_function_linear() -> None:
    """Three of the parity blocks of (8, 3) are copies of a data block each, of which any f is the same."""
    data = np.random.default_rng(0).integers(-99, 99, (9, 2))
    for order in ([1, 5, 4, 2], [1, 4, 5, 2, 6], [3, 7, 0, 1, 2], range(8)):
        executor = arriving([*order, *(task for task in range(8) if task not in order)], 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coded_map(np.square, data, blocks=3, tasks=8, executor=executor)
        assert FunctionProperty(np.square, LINEAR_OR_AFFINE, [data.dtype]).value is None


@pytest.mark.parametrize("lost", [(), (5,), (2,)])
def test_ragged_results_are_not_taken_for_garbage(lost: tuple[int, ...]) -> None:
    """One block alone gives another shape: f's own doing, not its worker's."""
    data = np.arange(24.0).reshape(12, 2)
    with pytest.raises((NotLinearError, NotDecodableError), match="hedged_map"):
        coded_map(lambda block: block[block > 5], data, blocks=4, tasks=6, executor=losing(*lost))


@pytest.mark.parametrize("other", [0, 1])
def test_equal_results_tell_nothing_of_lost_blocks(other: int) -> None:
    """Equations of equal results hold, whatever f gives of a block that is lost: each is evaluated here."""
    data = np.arange(24.0).reshape(12, 2)

    def f(block: np.ndarray) -> np.ndarray:
        return np.where(block[0, 0] == 6 * other, 5.0, 1.0)

    with pytest.raises(NotLinearError, match=f"f of block {other} differs"):
        coded_map(f, data, blocks=4, tasks=7, executor=losing(0, 1))


@pytest.mark.parametrize("lost", [(), (5,)])
def test_a_structure_that_one_block_alone_has_is_not_taken_for_garbage(lost: tuple[int, ...]) -> None:
    data = np.arange(24.0).reshape(12, 2)

    def f(block: np.ndarray) -> Any:
        return (block,) if block[0, 0] == 6 else block

    with pytest.raises(NotLinearError, match="f of block 1 differs"):
        coded_map(f, data, blocks=4, tasks=6, executor=losing(*lost))


def test_whether_checks_mix_blocks_is_asked_only_while_nothing_is_known_of_f(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[object]()
    is_mixing = Verifier.has_check_of_block_sum.fget
    assert is_mixing is not None
    monkeypatch.setattr(
        Verifier,
        "has_check_of_block_sum",
        property(lambda verifier: asked.append(verifier) or is_mixing(verifier)),
    )
    # Integers need as many arrivals as their pattern says: a few are over, to be checked against.
    order = np.random.default_rng(0).permutation(64).tolist()
    executor = ReplayExecutor({task: 1.0 + turn / 10 for turn, task in enumerate(order)})
    whole, options = np.arange(144).reshape(48, 3), {"blocks": 48, "tasks": 64, "executor": executor}
    assert coded_map(np.negative, whole, **options).report.verified == "parity"
    assert asked
    asked.clear()
    assert coded_map(np.negative, whole, **options).report.verified == "parity"
    assert not asked
