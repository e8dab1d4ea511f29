"""Tests that parity checks find wrong results, or the report lists the tasks that no check involves."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from coded_maps import DATA, WHOLE, K, N, coded, faulty
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import AlteringReplay, arrivals, arriving, assert_same, cut, plain_map, states

from polarmap.codes import PolarCode
from polarmap.driver.function_properties import VERIFIED_PROPERTIES
from polarmap.errors import CodedTimeoutError, NotDecodableError, NotLinearError
from polarmap.executors.interface import Outcome
from polarmap.testing import Fault, FaultyExecutor
from polarmap.types import CodedResult


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


def test_garbage_is_reported_in_a_later_map_with_redundant_results() -> None:
    # Integers need as many arrivals as their pattern requires. The remaining few serve as checks.
    order = np.random.default_rng(0).permutation(64).tolist()
    whole, options = np.arange(144).reshape(48, 3), {"blocks": 48, "tasks": 64}
    assert coded(np.copy, whole, **options, executor=arriving(order, 64)).report.verified == "parity"
    executor = FaultyExecutor(arriving(order, 64), {order[0]: Fault("garbage")})
    result = coded(np.copy, whole, **options, executor=executor)
    assert np.array_equal(result.concatenate(), whole)
    assert_named(result, order[0])


def test_garbage_among_all_data_is_reported_if_the_checks_locate_it() -> None:
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


def run_and_classify(
    f: Callable[[Any], Any], executor: Any, **options: Any
) -> tuple[str, CodedResult | None]:
    """Return the outcome of a map of WHOLE ("refused", "warned" or "harmless") and its result, or None."""
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


def test_garbage_integers_pass_only_if_the_report_lists_them_as_unchecked() -> None:
    # The equations of the Arikan kernel are sparse: some omit a result that was used for decoding.
    outcomes = Counter[str]()
    for seed in range(80):  # Garbage arrives first, then the correct results one by one.
        order = np.random.default_rng(seed).permutation(20).tolist()
        executor = FaultyExecutor(arriving(order, 20), {order[0]: Fault("garbage")})
        outcome, result = run_and_classify(np.copy, executor, code=PolarCode(20, K, "arikan"), tasks=20)
        wrong = [] if result is None else wrong_blocks(result, cut(WHOLE, K))
        if result is not None and "failed" in states(result.report):
            outcome = "named"
            assert (wrong, states(result.report)["failed"]) == ([], order[:1])
        # A plain map would return only its own block wrong.
        elif result is not None and wrong not in ([], order[:1]):
            outcome = "passed"
            assert order[0] in result.report.unchecked
        outcomes[outcome] += 1
    assert outcomes["named"] >= 60
    assert outcomes["passed"] <= 1


def test_while_several_workers_are_suspected_another_result_is_awaited() -> None:
    # Two equations fail, and either of two workers could be the cause. The next result shows which one.
    code = PolarCode(N, K, "arikan", erasure=1 / 12)
    order, culprit = [3, 7, 8, 6, 5, 2, 11, 10, 9, 0, 1], 7
    assert find_suspects(code, order[:9], culprit) == []
    assert find_suspects(code, order[:10], culprit) == [7, 0]
    assert find_suspects(code, order, culprit) == [7]
    options = {"executor": FaultyExecutor(arriving(order, N, step=0.05), {culprit: Fault("garbage")})}
    result = coded(np.copy, code=code, verify=True, **options)
    assert states(result.report)["failed"] == [culprit]
    assert_same(result, cut(DATA, K), 1e-11)
    # No further result arrives: the map is refused instead of blaming one of the two.
    options = {"executor": FaultyExecutor(arriving(order[:10], N, step=0.05), {culprit: Fault("garbage")})}
    with pytest.raises(NotLinearError):
        coded(np.copy, code=code, verify=True, **options)


def find_suspects(code: PolarCode, arrived: list[int], culprit: int) -> list[int]:
    """Return the tasks whose columns in the equations of arrived blocks are parallel to the culprit's."""
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


class AlteredReplay(AlteringReplay):
    """A replay executor that adds `change` to one entry of the result of one worker."""

    def __init__(self, seconds: dict[int, float], culprit: int, entry: int, change: Any) -> None:
        super().__init__(seconds)
        self._culprit, self._entry, self._change = culprit, entry, change

    def altered(self, outcome: Outcome) -> Outcome:
        if outcome.task != self._culprit or outcome.failure is not None:
            return outcome
        changed = outcome.leaves[0].copy()
        changed.reshape(-1)[self._entry] += np.asarray(self._change, changed.dtype)
        return outcome._replace(leaves=[changed])


def run_with_altered_result(
    f: Callable[[Any], Any], data: np.ndarray, sizes: tuple[int, int], late: int, change: float, seed: int
) -> tuple[CodedResult | None, int]:
    """Return the result of a map with late tasks and one wrong task (None if refused), and the wrong task."""
    VERIFIED_PROPERTIES.clear()
    (n, k), stream = sizes, np.random.default_rng(seed)
    order, culprit = stream.permutation(n).tolist(), int(stream.integers(n))
    seconds = {task: 1 + 0.01 * turn for turn, task in enumerate(order)}
    executor = AlteredReplay(
        seconds | dict.fromkeys(order[n - late :], math.inf), culprit, int(stream.integers(2)), change
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return coded(f, data, blocks=k, tasks=n, executor=executor, timeout=60), culprit
        except (NotLinearError, NotDecodableError, CodedTimeoutError):
            return None, culprit


@settings(derandomize=True, max_examples=300)
@given(
    k=st.integers(1, 8),
    parity=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    change=st.integers(1, 50),
    late=st.integers(0, 6),
)
def test_an_altered_integer_result_is_detected_or_listed_as_unchecked(
    k: int, parity: int, seed: int, change: int, late: int
) -> None:
    data = np.random.default_rng(seed).integers(-99, 99, (2 * k, 3))
    f = lambda block: block @ np.array([1, 2, 3])  # noqa: E731
    result, culprit = run_with_altered_result(f, data, (k + parity, k), min(late, parity), change, seed)
    # Otherwise the results equal a plain map.
    if result is not None and result.report.verified != "not needed":
        right = [np.array_equal(block, other) for block, other in zip(result, plain_map(f, data, k))]
        assert all(right) or culprit in result.report.unchecked


@settings(derandomize=True, max_examples=300)
@given(
    k=st.integers(2, 24),
    parity=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    size=st.floats(-8, 1),
    late=st.integers(0, 8),
    dtype=st.sampled_from(["f4", "f8"]),
)
def test_an_altered_float_result_is_detected_or_within_the_bound(
    k: int, parity: int, seed: int, size: float, late: int, dtype: str
) -> None:
    data = np.random.default_rng(seed).standard_normal((2 * k, 3)).astype(dtype)
    f = lambda block: block @ np.array([1, 2, 3], dtype)  # noqa: E731
    result, culprit = run_with_altered_result(
        f, data, (k + parity, k), min(late, parity), 9 * 10.0**size, seed
    )
    if result is None or result.report.verified == "not needed" or culprit in result.report.unchecked:
        return
    truth = np.stack(plain_map(f, data.astype(float), k))
    off = np.abs(np.stack(list(result)) - truth).max() / np.abs(truth).max()
    assert off <= 1.01 * result.report.error_bound + 4 * np.finfo(dtype).eps


def test_a_single_nonlinear_block_of_integers_is_detected_if_a_check_involves_it() -> None:
    # f is linear except on one block that arrives, so decoding from this block would give wrong results.
    outcomes = Counter[str]()
    for seed in range(80):
        order = np.random.default_rng(seed).permutation(N).tolist()
        odd = WHOLE[3 * next(index for index in order if index < K)]

        def f(block: np.ndarray, odd: np.ndarray = odd) -> np.ndarray:
            return block + 7 * np.array_equal(block[0], odd)

        outcome, result = run_and_classify(f, arriving(order, N))
        if result is not None and wrong_blocks(result, plain_map(f, WHOLE, K)):
            outcome = "passed"
            assert result.report.unchecked
        outcomes[outcome] += 1
    assert outcomes["refused"] + outcomes["warned"] >= 30
    assert outcomes["passed"] <= 1
