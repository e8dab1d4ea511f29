"""LagrangeCode and coded_map(degree=...): values of polynomials are decoded from any sufficient results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polarmap import coded_map
from polarmap.codes import LagrangeCode
from polarmap.codes.lagrange import compute_max_well_conditioned_k
from polarmap.errors import CodeError, NotLinearError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from tests.plain import arriving, assert_same, plain_map


def gram(block: np.ndarray) -> np.ndarray:
    return block.T @ block


def energy(block: np.ndarray) -> dict[str, Any]:
    return {"energy": float((block**2).sum()), "shifted": (block + 1) ** 2 - block}


@pytest.mark.parametrize("lost", [(), (0,), (1, 3, 4), (0, 2)])
def test_squares_survive_lost_workers(lost: tuple[int, ...]) -> None:
    A = np.random.default_rng(0).standard_normal((30, 4))
    order = [task for task in range(12) if task not in lost]
    for f in (gram, energy):
        executor = arriving(order, 12, step=0.0)
        result = coded_map(f, A, blocks=5, tasks=12, degree=2, executor=executor)
        assert_same(result, plain_map(f, A, 5), rtol=1e-9)
        assert result.report.recovered == lost
        assert result.report.code == "Lagrange, degree 2 on the circle points"
        assert result.report.verified == ("not needed", "parity", "parity", "local")[len(lost)]


def test_all_data_results_need_no_decoding() -> None:
    A = np.random.default_rng(0).standard_normal((30, 4))
    result = coded_map(gram, A, blocks=5, tasks=12, degree=2, executor=arriving([3, 2, 0, 1, 4], 12))
    assert result.report.needed == 5
    assert_same(result, plain_map(gram, A, 5))


def test_inaccurate_decoding_waits_for_further_results() -> None:
    A = np.random.default_rng(0).standard_normal((40, 3)).astype("f4")
    code = LagrangeCode(32, 8, 2)
    place = np.argsort(code.node_indices)
    order = place[np.r_[10:32, 0:10]].tolist()  # the tasks of an arc of the circle arrive last
    result = coded_map(gram, A, code=code, executor=arriving(order, 32), verify=False)
    assert result.report.needed > code.recovery_threshold
    assert result.report.error_bound <= 1e-4
    assert_same(result, plain_map(gram, A, 8), rtol=1e-3)


def cube(block: np.ndarray) -> np.ndarray:
    return block**3


@pytest.mark.parametrize(("blocks", "degree", "f"), [(4, 3, cube), (6, 2, np.square)])
@pytest.mark.parametrize("lost", [(3, 11, 14, 15), (0, 1, 2, 3), (1, 3, 8, 13)])
def test_any_degree_times_k_results_are_enough_for_an_even_number_of_blocks(
    blocks: int, degree: int, f: Callable[[np.ndarray], np.ndarray], lost: tuple[int, ...]
) -> None:
    A = np.random.default_rng(0).standard_normal((24, 4))
    killing = FaultyExecutor(ReplayExecutor(), {task: Fault("kill") for task in lost})
    result = coded_map(f, A, blocks=blocks, tasks=16, degree=degree, retries=0, executor=killing)
    assert_same(result, plain_map(f, A, blocks), rtol=1e-9)
    assert result.report.recovered == tuple(task for task in lost if task < blocks)


@pytest.mark.parametrize("lost", [(0,), (1, 3)])
@pytest.mark.parametrize("surplus", [True, False])
def test_too_low_degree_is_detected(lost: tuple[int, ...], surplus: bool) -> None:
    A = np.random.default_rng(0).standard_normal((30, 4))
    order = [task for task in range(12) if task not in lost][: None if surplus else 9]
    with pytest.raises(NotLinearError, match="not a polynomial of degree 2 or less") as caught:
        coded_map(cube, A, blocks=5, tasks=12, degree=2, executor=arriving(order, 12))
    assert "coded_sum" in str(caught.value) and "hedged_map" in str(caught.value)


def test_f_verified_as_a_cube_is_not_verified_as_a_square() -> None:
    A = np.random.default_rng(0).standard_normal((18, 4))
    result = coded_map(cube, A, blocks=3, tasks=12, degree=3, executor=arriving(range(1, 12), 12))
    assert_same(result, plain_map(cube, A, 3), rtol=1e-9)
    with pytest.raises(NotLinearError):
        coded_map(cube, A, blocks=3, tasks=12, degree=2, executor=arriving(range(1, 6), 12))


def test_wrong_results_are_located_and_left_out() -> None:
    A = np.random.default_rng(0).standard_normal((30, 4))
    faulty = FaultyExecutor(arriving([*range(1, 12)], 12), {4: Fault("garbage")})
    result = coded_map(gram, A, blocks=5, tasks=12, degree=2, executor=faulty)
    assert_same(result, plain_map(gram, A, 5), rtol=1e-9)
    assert "contradicts" in result.report.tasks[4].failures[0]


@pytest.mark.filterwarnings("ignore:the data contains NaN")
def test_nan_is_returned_if_all_data_report_and_refused_otherwise() -> None:
    A = np.random.default_rng(0).standard_normal((15, 4))
    A[4, 2] = np.nan
    never = ReplayExecutor({0: 3.0, 1: 2.0})
    result = coded_map(np.square, A, blocks=5, tasks=12, degree=2, executor=never)
    assert_same(result, plain_map(np.square, A, 5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degree": 0}, "degree must be a positive integer"),
        ({"degree": 2.0}, "degree must be a positive integer"),
        ({"degree": 2, "code": "arikan"}, "supports only linear f"),
        ({"degree": 3, "code": LagrangeCode(12, 5, 2)}, "does not support f of degree 3"),
        ({"degree": 2, "blocks": 8, "tasks": 8}, "use k <= 4"),
        (
            {"degree": 2, "blocks": 24, "tasks": 60, "rtol": 1e-15},
            r"use at most blocks=\d+ with 60 tasks",
        ),
        ({"degree": 2, "rtol": 1e-20}, "raise rtol"),
    ],
)
def test_bad_choices_are_refused_before_anything_starts(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        coded_map(gram, np.ones((48, 2)), executor=ReplayExecutor({0: math.inf}), **options)


def test_suggested_k_is_well_conditioned() -> None:
    limit = 1e-15 / np.finfo(float).eps
    fits = compute_max_well_conditioned_k(60, 2, limit)
    assert LagrangeCode(60, fits, 2).is_well_conditioned(limit)
    assert not LagrangeCode(60, fits + 1, 2).is_well_conditioned(limit)


def test_integers_are_refused_with_a_suggestion() -> None:
    with pytest.raises(CodeError, match=r"astype\(float\)"):
        coded_map(gram, np.ones((12, 2), int), blocks=4, degree=2, executor=ReplayExecutor())
