"""LagrangeCode and coded_map(degree=...): polynomials decoded from any results that suffice."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap import Fault, FaultyExecutor, LagrangeCode, ReplayExecutor, coded_map
from polarmap.code.lagrange import largest_k, largest_reliable_k, recovery_threshold
from polarmap.errors import CodeError, NotLinearError
from tests.plain import arriving, assert_same, plain_map


def coded_blocks(code: LagrangeCode, data: np.ndarray) -> np.ndarray:
    return np.concatenate([data, code.parity(data)])


def polynomial(blocks: np.ndarray, degree: int, rng: np.random.Generator) -> np.ndarray:
    """One with all terms of all monomials in three entries, including the constant."""
    powers = [p for p in np.ndindex(*(degree + 1,) * 3) if sum(p) <= degree]
    weights = rng.standard_normal(len(powers))
    return sum(w * np.prod(blocks ** np.array(p), axis=1) for w, p in zip(weights, powers))[:, None]


POINTS = st.sampled_from(["circle", "chebyshev"])
SMALL = [(6, 2, 2), (8, 3, 2), (9, 4, 2), (8, 4, 2), (11, 4, 3), (12, 5, 2), (10, 3, 4), (7, 5, 1), (4, 1, 3)]


# --- the code, against dense linear algebra and every pattern ----------------------------------


@pytest.mark.parametrize(
    ("n", "k", "degree", "points"),
    [
        (n, k, degree, points)
        for points in ("circle", "chebyshev")
        for n, k, degree in SMALL
        if n > recovery_threshold(k, degree, points)
    ],
)
def test_every_pattern_of_enough_arrivals_gives_every_result(
    n: int, k: int, degree: int, points: str
) -> None:
    code = LagrangeCode(n, k, degree, points)
    rng = np.random.default_rng(n)
    results = polynomial(coded_blocks(code, rng.standard_normal((k, 3))), degree, rng)
    scale = np.abs(results).max()
    for arrived in combinations(range(n), code.recovery_threshold):
        plan = code.plan(np.isin(np.arange(n), arrived), exact=False)
        assert plan.deficit == 0
        decoded = plan.recover({i: results[i] for i in arrived}, np.dtype(float))
        error = np.abs(decoded - results[plan.missing]).max(initial=0)
        assert error <= 64 * np.finfo(float).eps * max(plan.amplification, 1) * scale


@pytest.mark.parametrize(("n", "k", "degree"), SMALL)
def test_amplification_is_that_of_dense_least_squares(n: int, k: int, degree: int) -> None:
    code = LagrangeCode(n, k, degree)
    patterns = [*combinations(range(n), n - code.recovery_threshold)]
    worst = 0.0
    for lost in patterns:
        arrived = np.setdiff1d(np.arange(n), lost)
        missing = [i for i in lost if i < k]
        weights = code.generator[missing] @ np.linalg.pinv(code.generator[arrived])
        dense = np.linalg.norm(weights, axis=1).max(initial=0)
        assert code.plan(np.isin(np.arange(n), arrived), False).amplification == pytest.approx(
            dense, rel=1e-6
        )
        worst = max(worst, dense)
    found = code.amplification(n - code.recovery_threshold)
    assert found.median <= found.ninety <= found.worst <= worst * (1 + 1e-6)
    if len(patterns) <= 64:
        assert found.worst == pytest.approx(worst, rel=1e-6)
    else:  # neighbours are the worst patterns there are, or nearly so
        assert found.worst >= 0.5 * worst


@given(
    k=st.integers(1, 9),
    degree=st.integers(1, 4),
    spare=st.integers(1, 6),
    points=st.sampled_from(["circle", "chebyshev"]),
)
@settings(deadline=None, max_examples=60)
def test_parity_sums_to_one_and_results_satisfy_the_equations(
    k: int, degree: int, spare: int, points: str
) -> None:
    n = max(recovery_threshold(k, degree, points), k) + spare
    code = LagrangeCode(n, k, degree, points)
    rng = np.random.default_rng(n)
    assert np.allclose(code.coefficients.sum(axis=1), 1)
    assert sorted(code.order.tolist()) == list(range(n))
    assert code.norm_inf < 3.5 * np.log2(k + 2)
    results = polynomial(coded_blocks(code, rng.standard_normal((k, 3))), degree, rng)
    equations = code.plan(np.ones(n, bool), False).equations(8)
    assert len(equations) == min(n - code.recovery_threshold, 8)
    assert np.allclose(equations @ equations.T, np.eye(len(equations)))
    assert np.abs(equations @ results).max() <= 1e-11 * np.abs(results).max()


@given(results=st.integers(0, 40), degree=st.integers(1, 5), points=POINTS)
def test_largest_k_is_the_largest(results: int, degree: int, points: str) -> None:
    fits = [k for k in range(1, 42) if recovery_threshold(k, degree, points) <= results]
    assert largest_k(results, degree, points) == max(fits, default=0)


def test_the_amplification_of_large_codes_is_that_of_their_decoder() -> None:
    code = LagrangeCode(90, 30, 2)
    for seed in range(8):
        arrived = np.ones(90, bool)
        arrived[np.random.default_rng(seed).permutation(90)[: 20 + seed]] = False
        plan = code.plan(arrived, exact=False)
        assert plan.deficit == 0
        assert plan.amplification == pytest.approx(np.linalg.norm(plan.weights, axis=1).max(), rel=1e-3)
    assert code.plan(np.arange(90) >= 31, exact=False).deficit == 1


def test_the_circle_beats_chebyshev_where_both_need_as_much() -> None:
    circle, chebyshev = (LagrangeCode(24, 9, 2, points) for points in ("circle", "chebyshev"))
    assert circle.recovery_threshold == chebyshev.recovery_threshold == 17
    for losses in range(2, 8):
        assert circle.amplification(losses).worst < chebyshev.amplification(losses).worst / 2


def test_complex_blocks_and_float32_keep_their_dtype() -> None:
    code = LagrangeCode(12, 4, 2)
    rng = np.random.default_rng(3)
    data = (rng.standard_normal((4, 5)) + 1j * rng.standard_normal((4, 5))).astype("c8")
    coded = coded_blocks(code, data)
    assert coded.dtype == np.complex64
    results = np.abs(coded) ** 2  # of degree 2 in real and imaginary parts, though not analytic
    plan = code.plan(np.arange(12) >= 3, False)
    decoded = plan.recover(dict(enumerate(results)), results.dtype)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, results[:3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, 4, 0), "degree must be a positive integer"),
        ((8, 0, 2), "k must be a positive integer"),
        ((8, 8, 2), "with k = 8 use n > 15, or with n = 8 use k <= 4"),
        ((3, 2, 5), "use n > 6, or with n = 3 use k <= 1"),
        ((1, 1, 2), "use n > 1"),
        ((8, 3, 2, "legendre"), "points must be"),
        ((8, 3, True), "degree must be"),
        ((4096, 3, 2), "at most 2048"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        LagrangeCode(*arguments)


# --- coded_map ---------------------------------------------------------------------------------


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
        result = coded_map(f, A, blocks=5, workers=12, degree=2, executor=executor)
        assert_same(result, plain_map(f, A, 5), rtol=1e-9)
        assert result.report.recovered == lost
        assert result.report.code == "Lagrange, degree 2 on the circle points"
        assert result.report.verified == ("not needed", "parity", "parity", "local")[len(lost)]


def test_all_data_need_no_decoding_though_fewer_arrived_than_an_equation_takes() -> None:
    A = np.random.default_rng(0).standard_normal((30, 4))
    result = coded_map(gram, A, blocks=5, workers=12, degree=2, executor=arriving([3, 2, 0, 1, 4], 12))
    assert result.report.needed == 5
    assert_same(result, plain_map(gram, A, 5))


def test_results_beyond_the_needed_are_awaited_where_decoding_is_inaccurate() -> None:
    A = np.random.default_rng(0).standard_normal((40, 3)).astype("f4")
    code = LagrangeCode(32, 8, 2)
    place = np.argsort(code.order)
    order = place[np.r_[10:32, 0:10]].tolist()  # an arc of the circle comes last
    result = coded_map(gram, A, code=code, executor=arriving(order, 32), verify=False)
    assert result.report.needed > code.recovery_threshold
    assert result.report.error_bound <= 1e-4
    assert_same(result, plain_map(gram, A, 8), rtol=1e-3)


def cube(block: np.ndarray) -> np.ndarray:
    return block**3


@pytest.mark.parametrize("lost", [(0,), (1, 3)])
@pytest.mark.parametrize("surplus", [True, False])
def test_a_degree_too_low_is_noticed(lost: tuple[int, ...], surplus: bool) -> None:
    A = np.random.default_rng(0).standard_normal((30, 4))
    order = [task for task in range(12) if task not in lost][: None if surplus else 9]
    with pytest.raises(NotLinearError, match="not a polynomial of degree 2 or less") as caught:
        coded_map(cube, A, blocks=5, workers=12, degree=2, executor=arriving(order, 12))
    assert "coded_sum" in str(caught.value) and "hedged_map" in str(caught.value)


def test_what_passed_as_a_cube_has_not_passed_as_a_square() -> None:
    A = np.random.default_rng(0).standard_normal((18, 4))
    result = coded_map(cube, A, blocks=3, workers=12, degree=3, executor=arriving(range(1, 12), 12))
    assert_same(result, plain_map(cube, A, 3), rtol=1e-9)
    with pytest.raises(NotLinearError):
        coded_map(cube, A, blocks=3, workers=12, degree=2, executor=arriving(range(1, 6), 12))


def test_garbage_is_found_and_left_out() -> None:
    A = np.random.default_rng(0).standard_normal((30, 4))
    faulty = FaultyExecutor(arriving([*range(1, 12)], 12), {4: Fault("garbage")})
    result = coded_map(gram, A, blocks=5, workers=12, degree=2, executor=faulty)
    assert_same(result, plain_map(gram, A, 5), rtol=1e-9)
    assert "contradicts" in result.report.tasks[4].failures[0]


@pytest.mark.filterwarnings("ignore:the data is NaN")
def test_nan_passes_on_when_every_block_reports_and_is_refused_else() -> None:
    A = np.random.default_rng(0).standard_normal((15, 4))
    A[4, 2] = np.nan
    never = ReplayExecutor({0: 3.0, 1: 2.0})
    result = coded_map(np.square, A, blocks=5, workers=12, degree=2, executor=never)
    assert_same(result, plain_map(np.square, A, 5))


def test_a_real_pool_with_a_dead_worker() -> None:
    A = np.random.default_rng(1).standard_normal((32, 5))
    with ThreadPoolExecutor(8) as pool:
        faulty = FaultyExecutor(pool, {1: Fault("raise", attempts=9), 2: Fault("sleep", seconds=30)})
        result = coded_map(gram, A, blocks=4, workers=12, degree=2, executor=faulty)
    assert_same(result, plain_map(gram, A, 4), rtol=1e-9)
    assert set(result.report.recovered) <= {1, 2}


def test_default_sizes_leave_a_third_to_spare() -> None:
    A = np.ones((60, 2))
    assert coded_map(gram, A, degree=2, executor=ReplayExecutor()).report.n == 54  # k = 20
    assert coded_map(gram, A, workers=16, degree=2, executor=ReplayExecutor()).report.k == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degree": 0}, "degree must be a positive integer"),
        ({"degree": 2.0}, "degree must be a positive integer"),
        ({"degree": 2, "code": "arikan"}, "carries linear f only"),
        ({"degree": 3, "code": LagrangeCode(12, 5, 2)}, "does not carry f of degree 3"),
        ({"degree": 2, "blocks": 8, "workers": 8}, "use k <= 4"),
        (
            {"degree": 2, "blocks": 24, "workers": 60, "rtol": 1e-15},
            r"blocks=\d+ is the most that 60 workers",
        ),
        ({"degree": 2, "rtol": 1e-20}, "raise rtol"),
    ],
)
def test_bad_choices_are_refused_before_anything_starts(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        coded_map(gram, np.ones((48, 2)), executor=ReplayExecutor({0: math.inf}), **options)


def test_the_k_a_refusal_names_works() -> None:
    limit = 1e-15 / np.finfo(float).eps
    fits = largest_reliable_k(60, 2, limit)
    assert LagrangeCode(60, fits, 2).is_reliable(limit)
    assert not LagrangeCode(60, fits + 1, 2).is_reliable(limit)


def test_integers_are_refused_with_the_way_out() -> None:
    with pytest.raises(CodeError, match=r"astype\(float\)"):
        coded_map(gram, np.ones((12, 2), int), blocks=4, degree=2, executor=ReplayExecutor())
