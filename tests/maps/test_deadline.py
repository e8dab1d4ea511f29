"""coded_map(on_timeout="estimate"): results that cannot be decoded in time are estimated, with an error.

The oracle of the estimates is the conditional expectation of the missing blocks.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from coded_maps import FLOATS, losing
from plain import arriving

from polarmap import coded_map
from polarmap.arrays import Stored
from polarmap.codes import LagrangeCode, PolarCode, SecretSharing
from polarmap.codes.block_prediction import make_missing_block_predictor
from polarmap.driver.local_evaluation import LocalEvaluation
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import CodedResult

EPS = float(np.finfo(float).eps)


def scattered(k: int, width: int, seed: int = 0) -> np.ndarray:
    """Return k blocks that scatter around a common mean, which is ten times larger than the scatter."""
    rng = np.random.default_rng(seed)
    return 10 * rng.standard_normal(width) + rng.standard_normal((k, width))


def estimated(data: Any, executor: Any, f: Any = np.copy, **options: Any) -> CodedResult:
    defaults = {"tasks": 8, "timeout": 5, "on_timeout": "estimate"}
    return coded_map(f, data, executor=executor, **defaults | options)


# --- the estimator, against the conditional mean of a normal distribution ----------------------


@pytest.mark.parametrize(("n", "k", "kernel"), [(5, 3, "rotation"), (6, 4, "rotation"), (6, 4, "arikan")])
def test_predictor_is_the_conditional_expectation_for_a_known_mean(n: int, k: int, kernel: str) -> None:
    code = PolarCode(n, k, kernel=kernel)
    generator = np.concatenate([np.eye(k), code.encoding_matrix])
    for count in range(1, n):
        for arrived in combinations(range(n), count):
            how = make_missing_block_predictor(code, np.isin(np.arange(n), arrived), EPS)
            np.testing.assert_allclose(how.weights.sum(axis=1), 1, atol=1e-9)
            rows, cross = generator[list(arrived)], generator[how.missing_indices]
            gain = cross @ np.linalg.pinv(rows, rcond=1e-9)  # E[missing | received] for zero mean
            centred = np.eye(count) - 1 / count
            expected = gain @ centred + 1 / count
            np.testing.assert_allclose(how.weights @ rows, expected @ rows, atol=1e-7)
            deviations = np.eye(k)[how.missing_indices] - how.weights @ rows
            variance = (deviations**2).sum(axis=1)
            np.testing.assert_allclose(how.error_stds[variance < 1e-12], 0)


# --- coded_map ---------------------------------------------------------------------------------


def test_estimates_at_the_deadline_come_with_their_error() -> None:
    blocks = list(scattered(12, 4000))
    arrived = [0, 1, 2, 3, 4, 5, 6, 13, 15]  # nine results, but decoding takes twelve
    result = estimated(blocks, arriving(arrived, 16, step=0.01), tasks=16)
    report = result.report
    assert report.seconds == 5
    assert report.verified == "no"
    assert report.estimated_blocks == (7, 8, 9, 10, 11)
    assert report.recovered == ()
    assert report.errors[:7] == (0.0,) * 7
    scale = np.sqrt(np.mean(np.square(blocks)))
    for index, (estimate, block) in enumerate(zip(result, blocks)):
        off = np.sqrt(np.mean((estimate - block) ** 2)) / scale
        if index < 7:
            assert off == 0
        else:
            assert off == pytest.approx(report.errors[index], rel=0.25)
    assert "estimated blocks: 7, 8, 9, 10, 11" in str(report)
    together = np.sqrt(np.mean(np.square(np.stack(list(result)) - blocks))) / scale
    assert together < report.error_p90 < 1.5 * together


def test_results_in_time_equal_those_without_a_deadline() -> None:
    blocks = list(scattered(6, 5))
    result = estimated(blocks, arriving(range(1, 8), 8), timeout=50)
    assert result.report.errors == result.report.estimated_blocks == ()
    assert result.report.recovered == (0,)
    assert result.report.verified == "parity"
    np.testing.assert_allclose(list(result), blocks, rtol=1e-9)


def test_results_that_are_determined_but_not_yet_verified_are_exact() -> None:
    blocks = list(scattered(6, 5))
    result = estimated(blocks, ReplayExecutor({0: math.inf, 7: 9.0}), timeout=1.05, verify=True)
    assert result.report.estimated_blocks == ()
    np.testing.assert_allclose(list(result), blocks, rtol=1e-9)


def test_deadline_before_any_parity_returns_the_plain_results() -> None:
    report = estimated(np.eye(4), losing(4, 5), np.negative, tasks=6, timeout=1.05).report
    assert (report.verified, report.seconds, report.errors) == ("not needed", 1.05, ())


def test_evaluation_on_the_driver_does_not_delay_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only parity results arrive, so the driver evaluates f on a data block to learn the dtype of the results.
    waits, within = list[float](), LocalEvaluation.wait_for_result_arrays
    monkeypatch.setattr(
        LocalEvaluation,
        "wait_for_result_arrays",
        lambda run, timeout: waits.append(timeout) or within(run, timeout),
    )
    estimated(np.arange(8).reshape(4, 2), losing(0, 1, 2, 3), np.negative, timeout=1.25)
    assert waits
    assert max(waits) <= 0.25


def test_estimates_from_parity_alone_have_the_dtype_of_f() -> None:
    # The driver learns the dtype after the deadline, by evaluating f on a data block, which is fast here.
    data = np.arange(12, dtype=np.int16).reshape(4, 3)
    result = estimated(data, losing(0, 1, 2, 3, 4, 5), np.negative, blocks=4)
    assert [block.dtype for block in result] == [np.dtype(np.int16)] * 4


def test_failed_tasks_are_estimated() -> None:
    blocks = list(scattered(6, 50))
    faults = {i: Fault("raise", attempts=99) for i in range(3)}
    executor = FaultyExecutor(ReplayExecutor(dict.fromkeys(range(3), 2.0)), faults)
    result = estimated(blocks, executor)
    assert result.report.estimated_blocks == (0, 1, 2)
    assert result.report.tasks_in_state("failed") == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["i4", "f4", "c16"])
def test_structures_and_dtypes_are_kept(dtype: str) -> None:
    blocks = [(100 * block).astype(dtype) for block in scattered(6, 8)]

    def f(block: np.ndarray) -> dict[str, Any]:
        return {"twice": 2 * block, "sum": block.sum()}

    result = estimated(blocks, arriving([0, 1, 2, 7], 8), f)
    exact = f(blocks[5])
    assert result[5]["twice"].dtype == exact["twice"].dtype
    assert type(result[5]["sum"]) is type(exact["sum"])
    assert np.abs(result[5]["twice"] - exact["twice"]).mean() < 0.5 * np.abs(exact["twice"]).mean()


def test_no_result_before_the_deadline_is_an_error() -> None:
    with pytest.raises(CodedTimeoutError, match="no result arrived within the timeout of 2 s"):
        estimated(np.eye(6), arriving([], 8), blocks=6, timeout=2)


@pytest.mark.filterwarnings("ignore:the data contains NaN")
def test_nan_is_an_error() -> None:
    blocks = scattered(6, 5)
    blocks[3] = blocks[0] = np.nan
    for arrived in (range(1, 8), [0, 1, 2, 7]):  # enough results to decode, then too few
        with pytest.raises(NotDecodableError, match="NaN or inf"):
            estimated(list(blocks), arriving(arrived, 8), timeout=9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degree": 2}, "supports only linear f, and not degree=, SecretSharing"),
        ({"code": SecretSharing()}, "supports only linear f, and not degree=, SecretSharing"),
        ({"code": LagrangeCode(12, 4, 2), "blocks": 4}, "supports only linear f, and not degree"),
        ({"out": Stored("y")}, "on_timeout='estimate' cannot be combined with out="),
    ],
)
def test_bad_choices_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        estimated(np.eye(24), ReplayExecutor(), tasks=None, **options)


# --- gradient descent on estimates -------------------------------------------------------------


def test_wrong_block_is_reported_by_a_local_check() -> None:
    # Exactly as many results arrive as decoding needs, so no redundant equation could show the error.
    late = ReplayExecutor({0: math.inf, 5: math.inf})
    data = np.arange(24.0).reshape(12, 2)
    with pytest.warns(RuntimeWarning, match="f of block 0 differs .* what is decoded or .* may be far off"):
        result = estimated(data, late, lambda block: block.max(axis=0) ** 2, blocks=4, tasks=6, timeout=50)
    assert result.report.errors == (math.inf, 0.0, 0.0, 0.0)


# --- unknown errors and exact results ----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c16", "i8"])
@pytest.mark.parametrize("places", [0, 1])
def test_rounding_errors_are_not_used_as_scatter(dtype: str, places: int) -> None:
    # Blocks that are equal up to rounding give no estimate of how far a missing block may be off.
    for seed in range(20):
        stream = np.random.default_rng(seed)
        data = np.repeat(stream.normal(1000, 300, (1, 3)), 6, axis=0).astype(dtype)
        if dtype != "i8":
            data = (data * (1 + places * stream.integers(-1, 2, data.shape) * np.finfo(dtype).eps)).astype(
                dtype
            )
        data[5] *= 2
        result = estimated(data, losing(*range(4, 8)), np.negative, blocks=6)
        assert result.report.errors[4:] == (math.inf, math.inf)
        assert "by how much they are off is unknown" in str(result.report)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_errors_of_estimates_scale_with_the_unit(size: float) -> None:
    # The squares of these values underflow to 0 or overflow to infinity.
    data = np.random.default_rng(5).normal(3.0, 1.0, (24, 2))
    late = losing(*range(4, 8))
    reports = [estimated(unit * data, late, np.negative, blocks=6).report for unit in (1.0, size)]
    np.testing.assert_allclose(reports[1].errors, reports[0].errors, rtol=1e-9)
    np.testing.assert_allclose(reports[1].error_p90, reports[0].error_p90, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["i8", "u8", "i4"])
def test_determined_integers_are_exact_at_a_deadline(dtype: str) -> None:
    # For every undecodable pattern of arrivals, each block not reported as an estimate must be bitwise exact.
    top = 2**31 if dtype == "i4" else 2**60
    data = np.random.default_rng(1).integers(top // 2, top, (8, 2)).astype(dtype)
    code = PolarCode(7, 4, "arikan")
    determined = 0
    for count in range(1, 7):
        for arrived in combinations(range(7), count):
            lost = set(range(7)) - set(arrived)
            if code.is_decodable(np.isin(np.arange(7), arrived)):
                continue
            result = estimated(data, losing(*lost), tasks=None, code=code, verify=False)
            for index, block in enumerate(data.reshape(4, 2, 2)):
                if index not in result.report.estimated_blocks:
                    assert np.array_equal(result[index], block)
                    determined += index in lost
                elif dtype == "i4":
                    assert (result[index].astype(float) > 0).all()  # clipped, not wrapped
    assert determined > 5


def test_inconsistent_results_at_a_deadline_are_not_exact() -> None:
    # A further result could still show which one is wrong, so the map waits until the deadline.
    with pytest.warns(RuntimeWarning, match="the parity equations are off by"):
        result = estimated(FLOATS, losing(0, 4), np.abs, blocks=6, tasks=9, timeout=1.5)
    assert result.report.recovered == ()
    assert result.report.estimated_blocks == (0, 4)
