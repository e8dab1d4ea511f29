"""The numbers of a plain map, or one clear word: cases that once gave neither."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import AlteringReplay, arriving, assert_same, plain_map

from polarmap import (
    CodedOperator,
    Fault,
    FaultyExecutor,
    Masked,
    PolarCode,
    ReplayExecutor,
    coded_gram,
    coded_map,
    coded_matmul,
    hedged_map,
)
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, NotLinearError
from polarmap.executors.base import Outcome
from polarmap.run.trusted import LINEAR, TRUSTED, Trust

STREAM = np.random.default_rng(0)
FLOATS = STREAM.standard_normal((48, 3))


def losing(*lost: int) -> ReplayExecutor:
    return ReplayExecutor(dict.fromkeys(lost, math.inf))


class Lying(AlteringReplay):
    """Adds to one entry of what one worker returns."""

    def __init__(self, seconds: dict[int, float], liar: int, entry: int, lie: Any) -> None:
        super().__init__(seconds)
        self._liar, self._entry, self._lie = liar, entry, lie

    def altered(self, outcome: Outcome) -> Outcome:
        if outcome.task != self._liar or outcome.leaves is None:
            return outcome
        changed = outcome.leaves[0].copy()
        changed.reshape(-1)[self._entry] += np.asarray(self._lie, changed.dtype)
        return outcome._replace(leaves=[changed])


# --- integers ----------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=60)
@given(lost=st.sets(st.integers(0, 6), max_size=3), seed=st.integers(0, 99), top=st.sampled_from([8, 60, 64]))
def test_unsigned_products_of_64_bits_are_exact(lost: set[int], seed: int, top: int) -> None:
    stream = np.random.default_rng(seed)
    data = stream.integers(0, 2**top, (6, 3), dtype="u8")
    x = stream.integers(0, 9, 3, dtype="u8")
    if not PolarCode(7, 3, "arikan").decodable(~np.isin(np.arange(7), list(lost))):
        return
    result = coded_map(lambda block: block @ x, data, blocks=3, workers=7, executor=losing(*lost))
    assert_same(result, plain_map(lambda block: block @ x, data, 3))


def test_unsigned_blocks_are_encoded_as_unsigned() -> None:
    data = np.array([[2**63 + 5], [7]], "u8")
    coded = PolarCode(4, 2, "arikan").encode(data)
    assert coded.dtype == np.uint64
    assert PolarCode(4, 2, "arikan").decode({0: coded[0], 3: coded[3]}).tolist() == data.tolist()


def test_results_of_parity_of_another_kind_overrule_no_data() -> None:
    """int64 parity of uint32 data times uint64 is float64 in numpy."""
    data, x = np.arange(18, dtype="u4").reshape(6, 3), np.array([1, 2, 3], "u8")
    options = {"blocks": 3, "workers": 7, "verify": False}
    result = coded_map(lambda block: block @ x, data, executor=losing(), **options)
    assert_same(result, plain_map(lambda block: block @ x, data, 3))
    with pytest.raises(NotDecodableError, match=r"returned float64.2., others uint64.2.: .*convert the data"):
        coded_map(lambda block: block @ x, data, executor=losing(0), **options)


def test_an_operator_of_unsigned_integers_takes_real_vectors() -> None:
    A = STREAM.integers(0, 1000, (24, 5), dtype="u8")
    x = STREAM.standard_normal(5)
    for lost in [(), (0, 3), (1, 7), (5,)]:
        assert PolarCode(9, 6, "arikan").decodable(~np.isin(np.arange(9), lost))
        with CodedOperator(A, blocks=6, workers=9, executor=losing(*lost)) as operator:
            np.testing.assert_allclose(operator @ x, A @ x, rtol=1e-10)


def test_what_f_was_found_to_be_is_remembered_for_its_dtype() -> None:
    def f(block: np.ndarray) -> np.ndarray:
        return block // 2 if block.dtype.kind in "iu" else block / 2  # linear for floats only

    options = {"blocks": 8, "workers": 12, "timeout": 100}
    coded_map(f, FLOATS, executor=losing(0), **options)
    with pytest.raises(NotLinearError):
        coded_map(
            f, (1000 * FLOATS).astype(int), executor=arriving([1, 2, 3, 4, 5, 6, 7, 9, 10, 11], 12), **options
        )


@settings(derandomize=True, max_examples=40)
@given(lost=st.sets(st.integers(0, 31), min_size=1, max_size=8), scale=st.sampled_from([1e6, 1e9]))
def test_integers_made_of_floats_come_with_a_bound(lost: set[int], scale: float) -> None:
    f = lambda block: np.rint(block * scale).astype(np.int64)  # noqa: E731
    result = coded_map(f, FLOATS, blocks=24, workers=32, executor=losing(*lost), verify=False)
    off = np.abs(result.concatenate() - f(FLOATS)).max()
    assert off <= result.report.error_bound * np.abs(f(FLOATS)).max()
    assert (result.report.error_bound == 0) == (not result.report.recovered)


def in_some_order(stream: np.random.Generator, n: int, late: int) -> dict[int, float]:
    """When each task returns; so many never do."""
    order = stream.permutation(n).tolist()
    seconds = {task: 1 + 0.01 * turn for turn, task in enumerate(order)}
    return seconds | dict.fromkeys(order[n - late :], math.inf)


# --- liars -------------------------------------------------------------------------------------


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
    TRUSTED.clear()
    n, stream = k + parity, np.random.default_rng(seed)
    seconds = in_some_order(stream, n, min(late, parity))
    data = stream.integers(-99, 99, (2 * k, 3))
    f = lambda block: block @ np.array([1, 2, 3])  # noqa: E731
    liar = int(stream.integers(n))
    executor = Lying(seconds, liar, int(stream.integers(2)), lie)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = coded_map(f, data, blocks=k, workers=n, executor=executor, timeout=1000)
        except (NotLinearError, NotDecodableError, CodedTimeoutError):
            return
    right = [np.array_equal(one, other) for one, other in zip(result, plain_map(f, data, k))]
    if result.report.verified != "not needed":  # else they are a plain map's
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
    TRUSTED.clear()
    n, stream = k + parity, np.random.default_rng(seed)
    seconds = in_some_order(stream, n, min(late, parity))
    data = stream.standard_normal((2 * k, 3)).astype(dtype)
    f = lambda block: block @ np.array([1, 2, 3], dtype)  # noqa: E731
    liar = int(stream.integers(n))
    executor = Lying(seconds, liar, int(stream.integers(2)), 9 * 10.0**size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = coded_map(f, data, blocks=k, workers=n, executor=executor, timeout=1000)
        except (NotLinearError, NotDecodableError, CodedTimeoutError):
            return
    if result.report.verified == "not needed" or liar in result.report.unchecked:
        return
    truth = np.stack(plain_map(f, data.astype(float), k))
    off = np.abs(np.stack(list(result)) - truth).max() / np.abs(truth).max()
    assert off <= 1.01 * result.report.error_bound + 4 * np.finfo(dtype).eps


# --- is f linear? ------------------------------------------------------------------------------


def test_f_that_fails_on_parity_is_said_although_nothing_fails() -> None:
    """Parity of positive numbers may be negative."""

    def f(block: np.ndarray) -> np.ndarray:
        if (block < 0).any():
            raise ValueError("negative")
        return block

    with pytest.warns(RuntimeWarning, match="but f fails on parity blocks, here with ValueError"):
        result = coded_map(f, np.exp(FLOATS), blocks=4, workers=6, executor=losing(), retries=0)
    assert_same(result, plain_map(f, np.exp(FLOATS), 4))


def test_on_demand_a_parity_block_is_evaluated_here() -> None:
    with pytest.warns(RuntimeWarning, match="f of a parity block is off by"):
        coded_map(np.exp, FLOATS, blocks=24, workers=32, executor=losing(), schedule="on_demand")
    assert coded_map(np.negative, FLOATS, blocks=24, executor=losing(), schedule="on_demand").report.k == 24
    assert Trust(np.negative, LINEAR, [np.dtype(float)]).known


def test_f_that_cannot_be_checked_does_not_hold_up_a_map_unless_it_is_asked_for() -> None:
    here = threading.main_thread()

    def f(block: np.ndarray) -> np.ndarray:
        if threading.current_thread() is not here:
            raise RuntimeError("no accelerator here")
        return block

    options = {"blocks": 24, "workers": 32, "executor": losing(*range(24, 32))}
    assert coded_map(f, FLOATS, **options).report.seconds < 2.1
    with pytest.warns(RuntimeWarning, match="could not be verified: all data tasks.*no accelerator here"):
        coded_map(f, FLOATS, **options, verify=True)


# --- NaN, overflow -----------------------------------------------------------------------------


def test_nan_is_named_when_it_is_encoded() -> None:
    data = FLOATS.copy()
    data[17, 2] = data[30, 0] = np.nan
    with pytest.warns(RuntimeWarning, match=r"at 2 places, the first of them in row 17, entry \(2,\)"):
        result = coded_map(np.negative, data, blocks=24, workers=32, executor=losing())
    np.testing.assert_array_equal(result.concatenate(), -data)
    with pytest.warns(RuntimeWarning, match="sums of the data overflow float64"):
        coded_map(np.negative, 1.7e308 * np.sign(FLOATS), blocks=24, workers=32, executor=losing())


@pytest.mark.parametrize("verify", ["auto", False])
@pytest.mark.filterwarnings("ignore:the data is NaN")
def test_nan_with_a_lost_worker_ends_with_one_clear_error(verify: Any) -> None:
    data = FLOATS.copy()
    data[17, 2] = np.nan
    options = {"blocks": 24, "workers": 32, "verify": verify}
    with pytest.raises(NotDecodableError, match=r"NaN or inf, .* not all data tasks reported: 23 of 24"):
        coded_map(np.negative, data, executor=losing(3), **options)
    with pytest.raises(CodedTimeoutError, match="1 task still runs; results contain NaN or inf"):
        coded_map(np.negative, data, executor=losing(3), timeout=50, **options)


# --- what never ends, what is not accurate ------------------------------------------------------


@pytest.mark.parametrize("schedule", ["upfront", "on_demand"])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_map_in_which_nothing_can_arrive_says_so(schedule: str, retries: int) -> None:
    faulty = FaultyExecutor(losing(1, 2, 4), {5: Fault("kill", attempts=9)})
    with pytest.raises(NotDecodableError, match=r"5 of 6 .*, and no more can come; failed 3 tasks: .*3600 s"):
        coded_map(
            np.negative, FLOATS, blocks=6, workers=9, executor=faulty, retries=retries, schedule=schedule
        )


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("how", ["kill", "never"])
def test_an_inaccurate_pattern_is_returned_with_its_bound(dtype: str, how: str) -> None:
    data, code = FLOATS.astype(dtype), PolarCode(32, 24)
    limit = 0.1 if dtype == "f2" else 1e-4
    found = 0
    for seed in range(400):
        lost = np.random.default_rng(seed).permutation(32)[:8].tolist()
        arrived = ~np.isin(np.arange(32), lost)
        amplification = code.recovery(arrived, exact=False).amplification
        if amplification * np.finfo(dtype).eps <= limit:
            continue
        found += 1
        faults = dict.fromkeys(lost, Fault("kill", attempts=9)) if how == "kill" else {}
        executor = FaultyExecutor(ReplayExecutor() if faults else losing(*lost), faults)
        options = {"blocks": 24, "workers": 32, "verify": False}
        with pytest.warns(RuntimeWarning, match=r"no more accurately than to .* which is more than rtol"):
            result = coded_map(np.negative, data, executor=executor, **options)
        truth = -data.astype(float)
        off = np.abs(result.concatenate().astype(float) - truth).max() / np.abs(truth).max()
        assert off <= result.report.error_bound
        assert result.report.seconds < 30.0  # no result that would help is waited for any longer
        if found == 3:
            break
    assert found >= 2


# --- deadlines ---------------------------------------------------------------------------------


def test_equal_arrivals_tell_nothing_of_the_others() -> None:
    data = np.zeros((12, 3))
    data[11] = 7
    options = {"blocks": 6, "workers": 8, "timeout": 2, "on_timeout": "estimate"}
    result = coded_map(lambda block: block.sum(axis=0), data, executor=losing(3, 4, 5, 6, 7), **options)
    assert result.report.recovered == ()
    assert result.report.estimated == (3, 4, 5)
    assert result.report.errors == (0, 0, 0, math.inf, math.inf, math.inf)
    assert "by how much they are off is unknown" in str(result.report)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c16", "i8"])
@pytest.mark.parametrize("places", [0, 1])
def test_rounding_is_not_scatter(dtype: str, places: int) -> None:
    """Blocks that are equal, or equal up to their last digit, tell nothing of one that is not there."""
    for seed in range(20):
        stream = np.random.default_rng(seed)
        data = np.repeat(stream.normal(1000, 300, (1, 3)), 6, axis=0).astype(dtype)
        if dtype != "i8":
            data = (data * (1 + places * stream.integers(-1, 2, data.shape) * np.finfo(dtype).eps)).astype(
                dtype
            )
        data[5] *= 2
        options = {"blocks": 6, "workers": 8, "timeout": 2, "on_timeout": "estimate"}
        result = coded_map(np.negative, data, executor=losing(*range(4, 8)), **options)
        assert result.report.errors[4:] == (math.inf, math.inf)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_what_is_told_of_an_estimate_does_not_depend_on_the_unit(size: float) -> None:
    """The squares of such numbers are no numbers any more."""
    data = np.random.default_rng(5).normal(3.0, 1.0, (24, 2))
    options = {"blocks": 6, "workers": 8, "timeout": 2, "on_timeout": "estimate"}
    reports = [
        coded_map(np.negative, unit * data, executor=losing(*range(4, 8)), **options).report
        for unit in (1.0, size)
    ]
    np.testing.assert_allclose(reports[1].errors, reports[0].errors, rtol=1e-9)
    np.testing.assert_allclose(reports[1].error_p90, reports[0].error_p90, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["i8", "u8", "i4"])
def test_determined_integers_are_exact_at_a_deadline(dtype: str) -> None:
    """All patterns of arrivals: what is not called an estimate is right to the last bit."""
    top = 2**31 if dtype == "i4" else 2**60
    data = np.random.default_rng(1).integers(top // 2, top, (8, 2)).astype(dtype)
    code = PolarCode(7, 4, "arikan")
    determined = 0
    for count in range(1, 7):
        for arrived in combinations(range(7), count):
            lost = set(range(7)) - set(arrived)
            options = {"code": code, "timeout": 2, "on_timeout": "estimate", "verify": False}
            if code.decodable(np.isin(np.arange(7), arrived)):
                continue
            result = coded_map(np.copy, data, executor=losing(*lost), **options)
            for index, block in enumerate(data.reshape(4, 2, 2)):
                if index not in result.report.estimated:
                    assert np.array_equal(result[index], block)
                    determined += index in lost
                elif dtype == "i4":
                    assert (result[index].astype(float) > 0).all()  # clipped, not wrapped
    assert determined > 5


# --- padding ------------------------------------------------------------------------------------


def test_results_with_as_many_rows_as_a_block_by_chance_are_whole() -> None:
    data = np.arange(33.0).reshape(11, 3)
    with pytest.warns(RuntimeWarning, match=r"divide into 4 blocks: f saw 1 rows of zeros .* blocks=11"):
        result = coded_map(lambda block: block.sum(axis=0), data, blocks=4, executor=losing())
    assert result.concatenate().sum() == data.sum()


@pytest.mark.parametrize("lost", [(), (0,), (83,)])
def test_rows_of_filler_are_cut_off_everywhere(lost: tuple[int, ...]) -> None:
    data = STREAM.standard_normal((2003, 3))
    f = lambda block: (block @ np.ones(3), {"twice": 2 * block})  # noqa: E731
    result = coded_map(f, data, blocks=24, executor=losing(*lost))
    assert sum(len(one) for one, _ in result) == sum(len(other["twice"]) for _, other in result) == 2003
    np.testing.assert_allclose(np.concatenate([other["twice"] for _, other in result]), 2 * data, atol=1e-12)


def test_of_a_function_whose_rows_see_each_other_filler_is_said() -> None:
    data = STREAM.standard_normal((11, 3))
    with pytest.warns(RuntimeWarning, match="f saw 1 rows of zeros"):
        result = coded_map(lambda block: block - block.mean(axis=0), data, blocks=4, executor=losing())
    assert [len(one) for one in result] == [3, 3, 3, 3]
    with pytest.warns(RuntimeWarning, match="f saw 1 rows of zeros"):  # and not only the first time
        coded_map(lambda block: block - block.mean(axis=0), data, blocks=4, executor=losing())


def test_f_is_evaluated_here_once_for_padding(capsys: pytest.CaptureFixture[str]) -> None:
    def f(block: np.ndarray) -> np.ndarray:
        if threading.current_thread() is not threading.main_thread():
            print(len(block))
        return block

    for _ in range(3):
        coded_map(f, STREAM.standard_normal((11, 3)), blocks=4, executor=losing(), verify=False)
    assert capsys.readouterr().out.split() == ["2", "3"]


def test_data_changed_in_place_between_two_maps_is_new_data() -> None:
    """Workers that stay keep blocks; on this machine they have mapped them."""
    data, x = STREAM.standard_normal((240, 300)), np.ones(300)
    late = {3: Fault("sleep", seconds=600), 7: Fault("sleep", seconds=600)}
    changes = [(), (120, 150), (239, 299), (slice(100, 110),), (slice(None),)]
    for place in changes:
        data[place] += 1.0
        result = coded_map(
            lambda block: block @ x, data, blocks=6, workers=9, executor=FaultyExecutor(None, late)
        )
        np.testing.assert_allclose(result.concatenate(), data @ x, rtol=1e-9, atol=1e-9)


# --- what the soak found -----------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["auto", True])
def test_noise_that_saturates_f_does_not_make_it_linear(verify: Any) -> None:
    """Under noise f is as good as constant, which is affine: only f of data itself tells."""
    clip = lambda block: np.clip(block, -1, 1)  # noqa: E731
    options = {"blocks": 8, "workers": 12, "code": Masked(), "timeout": 100, "verify": verify}
    with pytest.raises(NotLinearError):
        coded_map(clip, FLOATS, executor=losing(), **options)
    result = coded_map(np.negative, FLOATS, executor=losing(2), **options)
    np.testing.assert_allclose(result.concatenate(), -FLOATS, atol=1e-9)


@pytest.mark.parametrize("f", [np.abs, np.square, lambda block: block.clip(0, 1)])
def test_equal_blocks_vouch_for_nothing(f: Callable[[Any], Any]) -> None:
    options = {"blocks": 8, "workers": 12, "timeout": 100}
    coded_map(f, np.ones((48, 3)), executor=losing(0), **options)
    with pytest.raises(NotLinearError):
        coded_map(f, FLOATS, executor=losing(0), **options)


def test_integers_made_of_floats_come_with_a_bound_under_the_exact_code_too() -> None:
    f = lambda block: np.rint(block * 1e9).astype(np.int64)  # noqa: E731
    options = {"blocks": 8, "workers": 12, "code": "arikan", "verify": False}
    result = coded_map(f, FLOATS, executor=losing(0, 8), **options)
    off = np.abs(result.concatenate() - f(FLOATS)).max()
    assert off <= result.report.error_bound * np.abs(f(FLOATS)).max()
    assert result.report.error_bound > 0


def test_broken_equations_at_a_deadline_make_no_exact_results() -> None:
    # While another result may tell who is to blame.
    options = {"blocks": 6, "workers": 9, "timeout": 1.5, "on_timeout": "estimate"}
    with pytest.warns(RuntimeWarning, match="the parity equations are off by"):
        result = coded_map(np.abs, FLOATS, executor=losing(0, 4), **options)
    assert result.report.recovered == ()
    assert result.report.estimated == (0, 4)


def test_products_of_other_byte_orders() -> None:
    A, B = FLOATS.astype(">f8"), STREAM.standard_normal((3, 5)).astype(">f8")
    wide = STREAM.integers(0, 99, (12, 4)).astype(">i4")
    never = {"executor": losing(0)}
    for method in ("rows", "columns", "grid"):
        np.testing.assert_allclose(coded_matmul(A, B, method=method, **never).array, A @ B, atol=1e-10)
    np.testing.assert_allclose(coded_gram(A, blocks=3, **never).array, A.T @ A, atol=1e-9)
    assert np.array_equal(coded_gram(wide, blocks=2, workers=4, **never).array, wide.T @ wide)
    with CodedOperator(A, blocks=6, **never) as operator:
        np.testing.assert_allclose(operator @ B[:, 0], A @ B[:, 0], atol=1e-10)


class Longer(AlteringReplay):
    """Some workers return something of another shape, and alike."""

    def altered(self, outcome: Outcome) -> Outcome:
        if outcome.task > 1 or outcome.leaves is None:
            return outcome
        return outcome._replace(leaves=[np.zeros(99, outcome.leaves[0].dtype)])


def test_what_has_not_the_shape_of_a_product_is_no_part_of_it() -> None:
    A, B = FLOATS[:8], STREAM.standard_normal((3, 5))
    product = coded_matmul(A, B, method="rows", blocks=2, workers=5, executor=Longer({4: 9.0}))
    np.testing.assert_allclose(product.array, A @ B, atol=1e-10)
    assert product.report.indices("failed") == [0, 1]
    with CodedOperator(A, blocks=2, workers=5, executor=Longer()) as operator:
        np.testing.assert_allclose(operator @ B[:, 0], A @ B[:, 0], atol=1e-10)


def test_equal_results_do_not_make_f_linear() -> None:
    """Signs of positive numbers are equal, and that of the block that is lost is another."""
    data = np.array([[-1.0], [2.0], [3.0], [4.0]])
    arrived = [task for task in range(12) if task and (PolarCode(12, 4).encode(data)[task] > 0).all()]
    assert len(arrived) >= 5
    with pytest.raises(NotLinearError):
        coded_map(np.sign, data, blocks=4, workers=12, executor=arriving(arrived, 12), timeout=100)


# --- one rule for f that is not linear -----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"timeout": 100}, {"schedule": "on_demand"}])
@pytest.mark.parametrize("code", ["rotation", "arikan"])
def test_whatever_arrives_first_f_that_is_not_linear_is_warned_of(code: str, options: dict[str, Any]) -> None:
    for seed in range(12):
        order = np.random.default_rng(seed).permutation(12).tolist()
        with pytest.warns(RuntimeWarning, match="those of a plain map, but .* f is not linear") as told:
            result = coded_map(
                np.exp, FLOATS, blocks=8, workers=12, code=code, executor=arriving(order, 12), **options
            )
        assert len(told) == 1
        assert_same(result, plain_map(np.exp, FLOATS, 8))


@pytest.mark.parametrize("options", [{}, {"timeout": 100}, {"schedule": "on_demand"}])
@pytest.mark.parametrize("verify", ["auto", True])
def test_whatever_arrives_first_it_is_refused_where_a_result_is_lost(
    verify: Any, options: dict[str, Any]
) -> None:
    for seed in range(8):
        order = [task for task in np.random.default_rng(seed).permutation(12).tolist() if task != 2]
        with pytest.raises(NotLinearError, match="f is not linear"):
            coded_map(
                np.exp, FLOATS, blocks=8, workers=12, verify=verify, executor=arriving(order, 12), **options
            )


def test_a_failed_task_of_it_is_tried_again() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {0: Fault("raise")})
    with pytest.warns(RuntimeWarning, match="those of a plain map"):
        result = coded_map(np.exp, FLOATS, blocks=8, workers=12, executor=faulty)
    assert_same(result, plain_map(np.exp, FLOATS, 8))


def test_copies_of_blocks_make_no_function_linear() -> None:
    """Three of the parity blocks of (8, 3) are copies of a data block each, of which any f is the same."""
    data = STREAM.integers(-99, 99, (9, 2))
    for order in ([1, 5, 4, 2], [1, 4, 5, 2, 6], [3, 7, 0, 1, 2], range(8)):
        executor = arriving([*order, *(task for task in range(8) if task not in order)], 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coded_map(np.square, data, blocks=3, workers=8, executor=executor)
        assert Trust(np.square, LINEAR, [data.dtype]).known is None


# --- 64-bit integers that f makes Python integers or floats of ---------------------------------


# --- results that are no numbers of one shape ----------------------------------------------------


@pytest.mark.parametrize("lost", [(), (5,), (0,)])
def test_results_that_are_no_numbers_are_refused_with_what_to_use(lost: tuple[int, ...]) -> None:
    for f in (lambda block: block > 0, lambda block: block.astype(np.longdouble), lambda _: "text"):
        with pytest.raises(CodeError, match=r"the result of f has dtype .*, or use hedged_map"):
            coded_map(f, FLOATS, blocks=8, workers=12, executor=losing(*lost))
        assert len(hedged_map(f, FLOATS, blocks=8, executor=losing())) == 8


@pytest.mark.parametrize("lost", [(), (5,), (2,)])
def test_ragged_results_are_not_taken_for_garbage(lost: tuple[int, ...]) -> None:
    """One block alone gives another shape: f's own doing, not its worker's."""
    data = np.arange(24.0).reshape(12, 2)
    with pytest.raises((NotLinearError, NotDecodableError), match="hedged_map"):
        coded_map(lambda block: block[block > 5], data, blocks=4, workers=6, executor=losing(*lost))


@pytest.mark.parametrize("other", [0, 1])
def test_equal_results_tell_nothing_of_lost_blocks(other: int) -> None:
    """Equations of equal results hold, whatever f gives of a block that is lost: each is evaluated here."""
    data = np.arange(24.0).reshape(12, 2)

    def f(block: np.ndarray) -> np.ndarray:
        return np.where(block[0, 0] == 6 * other, 5.0, 1.0)

    with pytest.raises(NotLinearError, match=f"f of block {other} differs"):
        coded_map(f, data, blocks=4, workers=7, executor=losing(0, 1))


@pytest.mark.parametrize("lost", [(), (5,)])
def test_a_structure_that_one_block_alone_has_is_not_taken_for_garbage(lost: tuple[int, ...]) -> None:
    data = np.arange(24.0).reshape(12, 2)

    def f(block: np.ndarray) -> Any:
        return (block,) if block[0, 0] == 6 else block

    with pytest.raises(NotLinearError, match="f of block 1 differs"):
        coded_map(f, data, blocks=4, workers=6, executor=losing(*lost))
