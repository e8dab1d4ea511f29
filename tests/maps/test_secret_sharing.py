"""SecretSharingCode and code=SecretSharing(n_colluders=t): maps of masked blocks return the plain results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import arriving, assert_same, cut_rows, plain_map

from polarmap import CodedOperator, coded_map, coded_matmul
from polarmap.codes import IntegerSecretSharingCode, SecretSharing, SecretSharingCode
from polarmap.errors import CodeError, NotDecodableError, NotLinearError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

DATA = np.random.default_rng(0).standard_normal((30, 4))


W = np.random.default_rng(1).standard_normal((4, 3))


def affine(block: np.ndarray) -> dict[str, Any]:
    return {"product": block @ W + 3, "sum": float(block.sum() - 2)}


def test_retried_task_receives_the_same_masked_block() -> None:
    seen: list[np.ndarray] = []

    def f(block: np.ndarray) -> np.ndarray:
        seen.append(block.copy())
        return block @ W

    faulty = FaultyExecutor(arriving(range(5), 6), {i: Fault("kill") for i in range(5)})
    result = coded_map(
        f, DATA, blocks=4, tasks=6, code=SecretSharing(n_colluders=1), executor=faulty, verify=False
    )
    expected = plain_map(lambda block: block @ W, DATA, 4)
    assert_same(result, expected, rtol=1e-8)
    blocks = np.split(DATA[:28], 4)
    assert not any(np.array_equal(mixture, block) for mixture in seen for block in blocks)


@pytest.mark.parametrize("lost", [(), (0,), (2, 7)])
@pytest.mark.parametrize("verify", [False, True, "auto"])
def test_results_are_those_of_the_plain_map(lost: tuple[int, ...], verify: bool | str) -> None:
    order = [i for i in range(8) if i not in lost]
    executor = arriving(order, 8)
    result = coded_map(
        affine,
        DATA,
        blocks=5,
        tasks=8,
        code=SecretSharing(n_colluders=1, noise=30),
        executor=executor,
        verify=verify,
    )
    assert_same(result, plain_map(affine, DATA, 5), rtol=1e-9)
    report = result.report
    assert report.recovered == (0, 1, 2, 3, 4)
    assert report.code == "masked against 1, noise 30"
    assert report.error_bound < 1e-9  # depends on the random noise: usually 5e-11, rarely 2e-10


def over_rows(block: np.ndarray) -> np.ndarray:
    return block.cumsum(axis=0)


@given(k=st.integers(2, 6), t=st.integers(1, 3), more=st.integers(1, 3), rows=st.integers(1, 20))
@settings(max_examples=25)
def test_results_for_any_sizes_are_those_of_the_plain_map(k: int, t: int, more: int, rows: int) -> None:
    data = np.random.default_rng(rows).standard_normal((k + rows, 2))
    k = len(cut_rows(data, k))  # fewer rows than blocks would leave empty blocks
    n = k + t + more
    options = {"blocks": k, "tasks": n, "code": SecretSharing(t, 5), "rtol": 1e-8}
    result = coded_map(over_rows, data, executor=ReplayExecutor(), **options)
    assert_same(result, plain_map(over_rows, data, k), rtol=1e-7)


@pytest.mark.parametrize("dtype", ["f4", "c8", "c16"])
def test_dtypes_are_kept(dtype: str) -> None:
    data = (DATA + (1j * DATA[::-1] if dtype.startswith("c") else 0)).astype(dtype)
    result = coded_map(
        np.negative,
        data,
        blocks=3,
        tasks=7,
        code=SecretSharing(n_colluders=1, noise=3),
        executor=ReplayExecutor(),
    )
    assert result[0].dtype == np.dtype(dtype)
    np.testing.assert_allclose(result.concatenate(), -data, atol=1e-3 if dtype != "c16" else 1e-11)


WORDS = np.random.default_rng(2).integers(-(2**63), 2**63, (30, 4))
WEIGHTS = np.array([[3, -1], [2, 0], [7, 5], [-(2**62), 11]])


def product_and_sum(block: np.ndarray) -> dict[str, Any]:
    return {"product": block @ WEIGHTS, "sum": block.sum(), "narrow": block.astype(np.int16)}


@pytest.mark.parametrize("dtype", ["i8", "i4", "u1"])
@pytest.mark.parametrize("lost", [(), (0, 3), (1, 6, 11)])
@pytest.mark.parametrize("verify", [False, True, "auto"])
def test_integers_are_those_of_the_plain_map(dtype: str, lost: Any, verify: bool | str) -> None:
    data = WORDS.astype(dtype)
    executor = arriving([i for i in range(18) if i not in lost], 18)
    result = coded_map(
        product_and_sum, data, blocks=5, tasks=18, code=SecretSharing(2), executor=executor, verify=verify
    )
    for result_block, block in zip(result, np.split(data, 5)):
        expected = product_and_sum(block)
        for name in expected:
            assert (result_block[name] == expected[name]).all()
            assert result_block[name].dtype == expected[name].dtype
    assert result.report.code == "masked against 2, uniform noise"
    assert result.report.error_bound == 0


@pytest.mark.parametrize(
    ("f", "error", "words"),
    [
        (lambda block: block + 1, NotLinearError, r"not linear over the integers, with f\(0\) = 0"),
        (lambda block: block * block, NotLinearError, "not linear over the integers"),
        (lambda block: block * 0.5, CodeError, r"astype\(float\)"),
        (lambda block: (block, block * 0.5), CodeError, r"astype\(float\)"),
    ],
)
@pytest.mark.parametrize("lost", [0, 2])
def test_functions_not_linear_over_the_integers_are_refused(
    f: Any, error: Any, words: str, lost: int
) -> None:
    with pytest.raises(error, match=words):
        coded_map(f, WORDS, blocks=5, tasks=12, code=SecretSharing(1), executor=arriving(range(lost, 12), 12))


def test_integers_and_floats_of_one_block_are_refused() -> None:
    words = r"cannot mask blocks that contain both integers and floats.*astype\(float\)"
    with pytest.raises(CodeError, match=words):
        coded_map(np.shape, [(WORDS, DATA)] * 3, code=SecretSharing(1), executor=ReplayExecutor())


@pytest.mark.parametrize("data", [WORDS, DATA])
def test_operators_do_not_mask_their_matrix(data: np.ndarray) -> None:
    for code in (SecretSharing(1), SecretSharingCode(9, 6, 1), IntegerSecretSharingCode(10, 6, 1)):
        with pytest.raises(CodeError, match=r"SecretSharing.*\(.*use coded_map\(lambda block"):
            coded_matmul(data, data.T, code=code)
        with pytest.raises(CodeError, match=r"SecretSharing.*\(.*use coded_map\(lambda block"):
            CodedOperator(data, code=code)


def test_wrong_results_and_nonlinear_functions_are_detected() -> None:
    faulty = FaultyExecutor(ReplayExecutor(), {3: Fault("garbage")})
    result = coded_map(
        affine, DATA[:28], blocks=4, tasks=9, code=SecretSharing(n_colluders=1), executor=faulty
    )
    assert_same(result, plain_map(affine, DATA[:28], 4), rtol=1e-8)
    for order in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]):
        with pytest.raises(NotLinearError):
            coded_map(
                np.square,
                DATA,
                blocks=4,
                tasks=9,
                code=SecretSharing(n_colluders=1),
                executor=arriving(order, 9),
            )


@pytest.mark.parametrize("noise", [5, 100])
def test_kink_that_no_masked_block_crosses_is_detected(noise: float) -> None:
    # In 1 of 12 of these maps, the noise leaves all 8 masked blocks on one side of 0, where |x| is linear.
    # With less noise, some masked blocks are so close to the data that their mirror images are on the same
    # side.
    data = np.array([[1.0], [-1.2], [0.2]])
    executor = ReplayExecutor(dict.fromkeys((3, 7, 10), math.inf))
    options: dict[str, Any] = {"blocks": 3, "tasks": 11, "code": SecretSharingCode(11, 3, 2, noise=noise)}
    for _ in range(60):
        with pytest.raises(NotLinearError):
            coded_map(lambda block: np.abs(block), data, **options, executor=executor, timeout=1000.0)
        result = coded_map(lambda block: 3 * block + 1, data, **options, executor=executor, timeout=1000.0)
        assert_same(result, [np.array([[4.0]]), np.array([[-2.6]]), np.array([[1.6]])], 1e-6)


def test_numpy_does_not_warn_of_masked_data_that_is_not_finite() -> None:
    with pytest.warns(RuntimeWarning) as caught:
        result = coded_map(
            lambda block: 7.0,
            [np.inf, 1.0],
            blocks=2,
            tasks=7,
            code=SecretSharing(),
            executor=ReplayExecutor(),
        )
    assert list(result) == pytest.approx([7.0, 7.0])
    assert [str(warning.message) for warning in caught if "encountered in" in str(warning.message)] == []


@pytest.mark.filterwarnings("ignore:the data contains NaN")
def test_nan_is_an_error_at_once() -> None:
    data = DATA.copy()
    data[3, 1] = np.nan
    with pytest.raises(NotDecodableError, match="NaN or inf"):
        coded_map(
            np.negative, data, blocks=4, tasks=7, code=SecretSharing(n_colluders=1), executor=ReplayExecutor()
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"code": SecretSharing(5), "blocks": 4, "tasks": 8}, "use n > 9"),
        ({"blocks": 1}, "k must be at least 2 for secret sharing"),
        ({"degree": 2}, "supports only linear f"),
        ({"code": SecretSharing(noise=1e9)}, "lower noise"),
        ({"code": SecretSharing(3), "blocks": 6, "tasks": 12, "rtol": 1e-15}, "raise rtol"),
    ],
)
def test_bad_choices_are_refused_before_anything_starts(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        coded_map(
            np.negative,
            DATA,
            **{"code": SecretSharing(), "executor": ReplayExecutor({0: math.inf})} | options,
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_colluders": 0}, "must be an integer >= 1, not"),
        ({"n_colluders": -1}, "must be an integer >= 1, not"),
        ({"n_colluders": 1.0}, "must be an integer >= 1, not"),
        ({"noise": 0}, "noise must be a positive number"),
        ({"noise": math.inf}, "noise must be a positive number"),
        ({"noise": "loud"}, "noise must be a positive number"),
    ],
)
def test_invalid_options_are_refused_by_the_constructor(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        SecretSharing(**options)
