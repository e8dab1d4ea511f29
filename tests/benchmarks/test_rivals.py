"""Check that the rival codes decode exactly when, and what, dense linear algebra decodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rivals import (
    RivalCode,
    embedding,
    fermat,
    fountain,
    local_product,
    mds,
    polar,
    raptor,
    sample_arrival_orders,
    staircase,
)
from benchmarks.rivals.sparse import GraphDecoder, SparseCode
from polarmap.codes import PolarCode

N, K = 24, 16


def tuned_raptor(n: int, k: int) -> raptor.RaptorCode:
    return raptor.RaptorCode(*raptor.tune_raptor(n, k))


# Codes are constructed on demand, since tuning takes seconds.
BY_INACTIVATION: dict[str, Callable[[], SparseCode]] = {
    "LT, inactivation": partial(fountain.LTCode, 40, K, 0.1, 0.5, uses_inactivation=True),
    "staircase, inactivation": partial(staircase.StaircaseCode, N, K, uses_inactivation=True),
    "long mixed staircase, inactivation": partial(
        staircase.StaircaseCode, 90, 60, 0.2, 6, uses_inactivation=True
    ),
    "Raptor": partial(tuned_raptor, N, K),
    "long Raptor": partial(tuned_raptor, 150, 120),
}
FLOATING: dict[str, Callable[[], RivalCode]] = {
    "LT": partial(fountain.LTCode, 40, K, 0.1, 0.5),
    "staircase": partial(staircase.StaircaseCode, N, K),
    "mixed staircase": partial(staircase.StaircaseCode, N, K, 0.2, 6),
    "local product": partial(local_product.LocalProductCode, K, 3, 3),
    "Gaussian": partial(mds.GaussianMDSCode, N, K),
    "rotation": lambda: polar.PolarRival(PolarCode(N, K)),
    "sequential": lambda: polar.PolarRival(PolarCode(N, K, "arikan", "sequential")),
    "optimal": lambda: polar.PolarRival(PolarCode(N, K, "arikan")),
    **BY_INACTIVATION,
}


@cache
def get_code(name: str) -> Any:
    return FLOATING[name]()


def orders(n: int) -> np.ndarray:
    return sample_arrival_orders(n, 20, seed=n)


@pytest.mark.parametrize("name", FLOATING)
def test_codes_decode_after_the_counted_arrivals(name: str) -> None:
    code: RivalCode = get_code(name)
    data = np.random.default_rng(0).standard_normal((code.k, 5))
    coded = code.encode(data)
    generator = code.encode(np.eye(code.k))
    np.testing.assert_allclose(coded, generator @ data, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(code.norms, np.linalg.norm(generator, axis=1))
    for order, needed in zip(orders(code.n), code.count_arrivals(orders(code.n))):
        if needed > code.n:
            continue
        arrived = order[:needed]
        assert np.linalg.matrix_rank(generator[arrived]) == code.k
        garbled = np.full_like(coded, np.nan)
        garbled[arrived] = coded[arrived]
        np.testing.assert_allclose(code.make_plan(arrived).decode(garbled), data, atol=1e-5)


@pytest.mark.parametrize("name", BY_INACTIVATION)
def test_inactivation_decodes_as_soon_as_the_rank_is_full(name: str) -> None:
    code: SparseCode = get_code(name)
    generator = code.encode(np.eye(code.k))
    for order, needed in zip(orders(code.n), code.count_arrivals(orders(code.n))):
        assert needed > code.n or np.linalg.matrix_rank(generator[order[:needed]]) == code.k
        assert np.linalg.matrix_rank(generator[order[: needed - 1]]) < code.k


def test_inactivation_needs_no_more_than_peeling_and_raptor_codes_hardly_more_than_k() -> None:
    for make in (fountain.LTCode(40, K, 0.1, 0.5), staircase.StaircaseCode(N, K)):
        solved = GraphDecoder(make.decoder.graph, K, uses_inactivation=True)
        for order in orders(make.n):
            assert (
                K
                <= solved.count_arrivals(make.coded_indices[order], K)
                <= make.decoder.count_arrivals(make.coded_indices[order], K)
            )
    code = get_code("long Raptor")
    generator = code.encode(np.eye(120))
    np.testing.assert_allclose(generator[:120], np.eye(120), atol=1e-9)
    assert code.count_arrivals(orders(150)).mean() < 121


def test_local_product_codes_close_the_rows_and_columns_of_every_grid() -> None:
    code = local_product.LocalProductCode(11, 2, 3)  # two grids, of 6 and of 5 blocks
    data = np.random.default_rng(0).standard_normal((11, 2))
    parity = code.encode(data)[11:]
    whole, short = data[:6].reshape(2, 3, 2), np.concatenate([data[6:], np.zeros((1, 2))]).reshape(2, 3, 2)
    for grid, grid_parity in ((whole, parity[:6]), (short, parity[6:])):
        np.testing.assert_allclose(grid_parity[:2], grid.sum(axis=1))
        np.testing.assert_allclose(grid_parity[2:5], grid.sum(axis=0))
        np.testing.assert_allclose(grid_parity[5], grid.sum(axis=(0, 1)))
    # one row of two blocks: the row's parity, two column parities, and the corner
    assert local_product.LocalProductCode(2, 2, 3).n == 2 + 2 + 2


def test_embeddings_decode_any_k_and_commute_with_products() -> None:
    code, rng = embedding.EmbeddingCode(12, 9), np.random.default_rng(0)
    data, f = rng.standard_normal((9, 10)), rng.standard_normal((5, 3))
    halves = np.concatenate([data[:, :5] @ f, data[:, 5:] @ f], axis=1)
    coded = code.encode(data)
    results = np.concatenate([coded[:, :5] @ f, coded[:, 5:] @ f], axis=1)
    turn = 2 * np.pi / 13 * 7 * np.arange(9)  # Block 7 by rotations, as in the paper.
    np.testing.assert_allclose(coded[7, :5], np.cos(turn) @ data[:, :5] + np.sin(turn) @ data[:, 5:])
    np.testing.assert_allclose(coded[7, 5:], -np.sin(turn) @ data[:, :5] + np.cos(turn) @ data[:, 5:])
    for order in orders(12):
        garbled = np.full_like(results, np.nan)
        garbled[order[:9]] = results[order[:9]]
        np.testing.assert_allclose(code.make_plan(order[:9]).decode(garbled), halves, atol=1e-9)


def test_embeddings_of_256_blocks_keep_the_digits_that_the_page_names() -> None:
    # Ten samples of 20 arrival orders each. Digits are those of the relative error in the 2-norm.
    code = embedding.EmbeddingCode(256, 192)
    data = np.random.default_rng(0).standard_normal((192, 16))
    coded = code.encode(data)

    def digits(order: np.ndarray) -> float:
        decoded = code.make_plan(order[:192]).decode(coded)
        return float(-np.log10(np.linalg.norm(decoded - data) / np.linalg.norm(data)))

    samples = [[digits(order) for order in sample_arrival_orders(256, 20, seed)] for seed in range(10)]
    page = " ".join((Path(__file__).parents[2] / "docs" / "comparison-codes.md").read_text().split())
    stated = re.search(
        r"256 blocks keep (\d) to (\d) digits in the median and (\d) to (\d) in the worst of 20", page
    )
    assert stated is not None
    low, high, worst_low, worst_high = map(int, stated.groups())
    assert low <= np.median(samples) <= high + 1
    assert worst_low - 1 <= np.median(np.min(samples, axis=1)) <= worst_high + 1


@pytest.mark.parametrize("code", [fountain.LTCode(40, K, 0.1, 0.5), staircase.StaircaseCode(N, K)])
def test_peeling_stops_where_brute_force_stops(code: fountain.LTCode | staircase.StaircaseCode) -> None:
    sent = K if isinstance(code, fountain.LTCode) else 0
    graph = code.decoder.graph
    equations = [
        set(equation_members.tolist()) for equation_members in np.split(graph.members, graph.starts[1:-1])
    ]
    for order, needed in zip(orders(code.n), code.count_arrivals(orders(code.n))):
        complete = [done(equations, set(sent + order[:m]), K) for m in range(code.n + 1)]
        assert (complete.index(True) if complete[-1] else code.n + 1) == needed


def done(equations: list[set[int]], known: set[int], wanted: int) -> bool:
    """Return whether blocks 0..wanted-1 follow, by visiting all equations until nothing changes."""
    while True:
        single = [next(iter(members - known)) for members in equations if len(members - known) == 1]
        if not single:
            return set(range(wanted)) <= known
        known |= set(single)


def test_the_robust_soliton_is_close_to_the_ideal_one() -> None:
    distribution = fountain.robust_soliton(1000, 1e-9, 0.5)
    assert distribution[0] == pytest.approx(1e-3, rel=1e-3)
    assert distribution[1:50] == pytest.approx(1 / (np.arange(2, 51) * np.arange(1, 50)), rel=1e-3)


def test_polynomial_weights_in_logarithms_equal_a_dense_solve() -> None:
    points = mds.EVALUATION_POINTS["Chebyshev"](14)
    arrived = np.arange(5, 14)
    placed = np.random.default_rng(0).permutation(points)
    basis = np.polynomial.chebyshev.chebvander(placed, 8)
    generator = basis @ np.linalg.inv(basis[:9])
    lagrange_weights = np.exp(mds.log_lagrange_weights(placed[:9], placed[9:]))
    np.testing.assert_allclose(lagrange_weights, np.abs(generator[9:]), rtol=1e-9, atol=1e-12)
    weights = np.linalg.solve(generator[arrived].T, generator[:5].T).T
    worst = np.linalg.norm(weights * np.linalg.norm(generator[arrived], axis=1), axis=1).max()
    assert mds.compute_log10_amplification(points, arrived) == pytest.approx(np.log10(worst), abs=1e-6)
    assert mds.compute_log10_amplification(points, np.arange(9)) == 0  # all data blocks have arrived


@pytest.mark.parametrize(("n", "k"), [(2, 1), (6, 4), (24, 16), (40, 33)])
def test_fermat_codes_decode_any_k_blocks_exactly(n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    code, data = fermat.FermatCode(n, k), rng.integers(0, fermat.PRIME, (k, 7))
    coded = code.encode(data)
    assert (coded[:k] == data).all()
    for _ in range(5):
        arrived = rng.permutation(n)[:k]
        assert (code.make_plan(arrived).decode(coded) == data).all()
    # The coded blocks are values of one polynomial of degree below k, as exact interpolation shows.
    lagrange = [
        interpolated(code.points[:k].tolist(), coded[:k, 0].tolist(), x) for x in code.points.tolist()
    ]
    assert lagrange == coded[:, 0].tolist()


def interpolated(xs: list[int], ys: list[int], x: int) -> int:
    """Return Lagrange's interpolation at x in Python integers."""
    total = 0
    for i, y in enumerate(ys):
        above = below = 1
        for j, other in enumerate(xs):
            if i != j:
                above, below = above * (x - other) % fermat.PRIME, below * (xs[i] - other) % fermat.PRIME
        total += y * above * pow(below, -1, fermat.PRIME)
    return total % fermat.PRIME


def test_quantization_fits_the_field_and_costs_accuracy() -> None:
    errors = [fermat.measure_quantization_error(terms) for terms in (10, 100, 1000)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.1
