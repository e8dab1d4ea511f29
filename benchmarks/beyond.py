"""Codes beyond linear f: results needed and digits lost of polynomials, sums and private maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import is_quick, show
from polarmap import coded_map
from polarmap.codes import LagrangeCode, SecretSharing, SecretSharingCode
from polarmap.codes.gradient_coding import GradientCode
from polarmap.testing import ReplayExecutor

# A third more workers than results are needed, and larger ones.
POLYNOMIALS = [(2, 4), (2, 7), (2, 12), (2, 13), (2, 24), (2, 25), (2, 48), (3, 4), (3, 9), (3, 16), (4, 5)]
SUMS = [(12, 1), (12, 2), (12, 3), (10, 3), (24, 5), (23, 5), (23, 2)]
TEN_DIGITS = 1e-10 / np.finfo(float).eps  # errors may be multiplied by, for ten digits to be left
PRIVATE = [(8, 5, 1), (12, 8, 1), (24, 16, 1), (12, 7, 2), (24, 15, 2), (24, 14, 3)]


def polynomials(orders: int) -> Iterator[list[object]]:
    """Errors by decoding when half, and when all, of the spare results are missing."""
    for degree, k in POLYNOMIALS:
        for points in ("circle", "chebyshev"):
            needed = LagrangeCode(2000, k, degree, points).recovery_threshold
            code = LagrangeCode(needed + -(-needed // 3), k, degree, points)
            spare = code.n - needed
            half, full = code.summarize_amplification((spare + 1) // 2), code.summarize_amplification(spare)
            awaited = [first_recovery(code, seed, TEN_DIGITS)[0] for seed in range(orders)]
            yield [
                *[degree, k, points, code.n, needed, _short(code.norm_inf), _short(half.median)],
                *[
                    _short(half.max),
                    _short(full.median),
                    _short(full.max),
                    f"{np.mean(awaited) - needed:.1f}",
                ],
            ]


def first_recovery(code: Any, seed: int, limit: float = np.inf) -> tuple[int, Any]:
    """Results of a random order until errors are multiplied by no more than `limit`, and how they decode."""
    arrived = np.zeros(code.n, bool)
    for index in np.random.default_rng(seed).permutation(code.n):
        arrived[index] = True
        plan = code.recovery(arrived, modular=False)
        if not plan.rank_deficit and plan.amplification <= limit:
            break
    return int(arrived.sum()), plan


def sums(orders: int) -> Iterator[list[object]]:
    """Results needed in a random order, and errors by decoding."""
    for n, tolerate in SUMS:
        code = GradientCode(n, tolerate)
        needed, plans = zip(*(first_recovery(code, seed) for seed in range(orders)))
        worst, sizes = max(plan.amplification for plan in plans), "+".join(map(str, code.group_sizes))
        yield [n, tolerate, sizes, n - tolerate, f"{np.mean(needed):.1f}", _short(worst)]


def private(rows: int) -> Iterator[list[object]]:
    """What t workers learn at most, what one shows in fact, and the digits that decoding loses."""
    for n, k, t in PRIVATE:
        for noise in (10.0, 100.0, 1000.0):
            code = SecretSharingCode(n, k, t, noise)
            yield [
                *[n, k, t, f"{noise:g}", _short(code.leakage()), _short(code.leakage(correlated=True))],
                *[_short(correlation(code)), f"{digits_lost(code, rows):.1f}"],
            ]


def correlation(code: SecretSharingCode) -> float:
    """Of what the worst worker sees with the best linear guess at the data."""
    signal = (code.encoding_matrix[:, : code.k] ** 2).sum(axis=1).max()
    return float(np.sqrt(signal / (signal + code.noise**2)))


def digits_lost(code: SecretSharingCode, rows: int) -> float:
    """Decimal digits of a product with a matrix, the last workers missing, in float64."""
    rng = np.random.default_rng(0)
    A, w = rng.standard_normal((code.k * rows, 20)), rng.standard_normal(20)
    late = dict.fromkeys(range(code.recovery_threshold + 1, code.n), 9.0)
    result = coded_map(
        lambda block: block @ w, A, blocks=code.k, tasks=code.n, code=SecretSharing(code.n_colluders, code.noise),
        executor=ReplayExecutor(late), verify=False, rtol=1e-6,
    )  # fmt: skip
    error = np.abs(result.concatenate() - A @ w).max() / np.abs(A @ w).max()
    return float(np.log10(error / np.finfo(float).eps))


def _short(value: float) -> str:
    return f"{value:.2g}"


def main() -> None:
    quick = is_quick(__doc__)
    header = ["degree", "k", "points", "n", "recovery threshold", "norm inf", "half, median", "half, worst"]
    show([*header, "all, median", "all, worst", "beyond"], polynomials(5 if quick else 100))
    print()
    show(["n", "s", "groups", "n - s", "needed, mean", "amplification"], sums(20 if quick else 1000))
    print()
    header = ["n", "k", "t", "noise", "bits", "correlated", "seen", "digits lost"]
    show(header, private(10 if quick else 1000))


if __name__ == "__main__":
    main()
