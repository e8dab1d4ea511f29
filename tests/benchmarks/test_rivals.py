"""The rival codes of the comparison decode what dense linear algebra decodes, when it does."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rivals import Rival, fermat, fountain, mds, polar, staircase
from benchmarks.rivals.peeling import Graph, Peeling
from polarmap import PolarCode

N, K = 24, 16


def floating() -> list[Rival]:
    return [
        fountain.LT(40, K, 0.1, 0.5),
        staircase.Staircase(N, K),
        staircase.Staircase(N, K, 0.2, 6),
        mds.gaussian(N, K),
        mds.chebyshev(N, K).dense(),
        polar.Polar(PolarCode(N, K)),
        polar.Polar(PolarCode(N, K, "arikan", "sequential")),
        polar.Polar(PolarCode(N, K, "arikan")),
    ]


def orders(n: int, count: int = 20) -> np.ndarray:
    return np.random.default_rng(n).permuted(np.tile(np.arange(n), (count, 1)), axis=1)


@pytest.mark.parametrize("code", floating(), ids=lambda code: code.name)
def test_decodes_at_the_arrival_it_says_and_not_before(code: Rival) -> None:
    data = np.random.default_rng(0).standard_normal((code.k, 5))
    coded = code.encode(data)
    generator = code.encode(np.eye(code.k))
    np.testing.assert_allclose(coded, generator @ data, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(code.norms, np.linalg.norm(generator, axis=1))
    for order, needed in zip(orders(code.n), code.needed(orders(code.n))):
        if needed > code.n:
            continue
        arrived = order[:needed]
        assert np.linalg.matrix_rank(generator[arrived]) == code.k
        garbled = np.full_like(coded, np.nan)
        garbled[arrived] = coded[arrived]
        np.testing.assert_allclose(code.plan(arrived).recover(garbled), data, atol=1e-5)


@pytest.mark.parametrize("code", [fountain.LT(40, K, 0.1, 0.5), staircase.Staircase(N, K)])
def test_peeling_stops_where_brute_force_stops(code: fountain.LT | staircase.Staircase) -> None:
    sent = K if isinstance(code, fountain.LT) else 0
    equations = [set(np.flatnonzero(row)) for row in code.decoder.graph.dense()]
    for order, needed in zip(orders(code.n), code.needed(orders(code.n))):
        complete = [done(equations, set(sent + order[:m]), K) for m in range(code.n + 1)]
        assert (complete.index(True) if complete[-1] else code.n + 1) == needed


def done(equations: list[set[int]], known: set[int], wanted: int) -> bool:
    """Whether blocks 0..wanted-1 follow, by going over all equations until nothing changes."""
    while True:
        single = [next(iter(members - known)) for members in equations if len(members - known) == 1]
        if not single:
            return set(range(wanted)) <= known
        known |= set(single)


def test_a_schedule_solves_weighted_equations() -> None:
    graph = Graph.of([np.array([0, 1, 2]), np.array([1, 2])], [np.array([2.0, -1, 3]), np.array([4.0, 1])], 3)
    values = np.array([[np.nan], [np.nan], [8.0]])
    decoder = Peeling(graph, 2)
    decoder.replay(decoder.schedule(np.array([2])), values)
    assert values.ravel().tolist() == [-13.0, -2.0, 8.0]


def test_the_robust_soliton_is_the_ideal_one_but_for_its_ripple() -> None:
    distribution = fountain.robust_soliton(1000, 1e-9, 0.5)
    assert distribution[0] == pytest.approx(1e-3, rel=1e-3)
    assert distribution[1:50] == pytest.approx(1 / (np.arange(2, 51) * np.arange(1, 50)), rel=1e-3)


def test_polynomial_weights_in_logarithms_equal_a_dense_solve() -> None:
    code = mds.chebyshev(14, 9)
    basis = np.polynomial.chebyshev.chebvander(code.points, 8)
    generator = basis @ np.linalg.inv(basis[:9])
    np.testing.assert_allclose(code.dense().coefficients, generator[9:], rtol=1e-9, atol=1e-12)
    arrived = np.arange(5, 14)
    weights = np.linalg.solve(generator[arrived].T, generator[:5].T).T
    worst = np.linalg.norm(weights * np.linalg.norm(generator[arrived], axis=1), axis=1).max()
    assert code.log10_amplification(arrived) == pytest.approx(np.log10(worst), abs=1e-6)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (6, 4), (24, 16), (40, 33)])
def test_fermat_codes_decode_any_k_blocks_exactly(n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    code, data = fermat.Fermat(n, k), rng.integers(0, fermat.P, (k, 7))
    coded = code.encode(data)
    assert (coded[:k] == data).all()
    for _ in range(5):
        arrived = rng.permutation(n)[:k]
        assert (code.plan(arrived).recover(coded) == data).all()
    # Values of one polynomial of degree below k: differences by exact interpolation vanish.
    lagrange = [
        interpolated(code.points[:k].tolist(), coded[:k, 0].tolist(), x) for x in code.points.tolist()
    ]
    assert lagrange == coded[:, 0].tolist()


def interpolated(xs: list[int], ys: list[int], x: int) -> int:
    """Lagrange's formula in Python integers."""
    total = 0
    for i, y in enumerate(ys):
        above = below = 1
        for j, other in enumerate(xs):
            if i != j:
                above, below = above * (x - other) % fermat.P, below * (xs[i] - other) % fermat.P
        total += y * above * pow(below, -1, fermat.P)
    return total % fermat.P


def test_a_fermat_code_commutes_with_integer_matrices() -> None:
    rng = np.random.default_rng(0)
    code, data, f = fermat.Fermat(12, 8), rng.integers(0, fermat.P, (8, 6)), rng.integers(0, fermat.P, (6, 3))
    results = code.encode(data) @ f % fermat.P
    assert (code.plan(rng.permutation(12)[:8]).recover(results) == data @ f % fermat.P).all()


def test_transforms_are_the_sums_they_stand_for() -> None:
    values = np.random.default_rng(0).integers(0, fermat.P, (8, 3))
    root = pow(3, (fermat.P - 1) // 8, fermat.P)
    matrix = [[pow(root, i * j, fermat.P) for j in range(8)] for i in range(8)]
    assert (fermat.transform(values, 8) == np.array(matrix) @ values % fermat.P).all()
    back = fermat.transform(fermat.transform(values, 8), 8, backwards=True)
    assert (back == 8 * values % fermat.P).all()


def test_quantization_fits_the_field_and_costs_accuracy() -> None:
    errors = [fermat.quantization_error(terms) for terms in (10, 100, 1000)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.1
