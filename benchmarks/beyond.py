"""Measure codes for polynomials, sums and private maps: the results needed, and the digits lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import parse_quick_flag, print_table
from polarmap import coded_map
from polarmap.codes import LagrangeCode, SecretSharing, SecretSharingCode
from polarmap.codes.gradient_coding import GradientCode
from polarmap.testing import ReplayExecutor

# Degrees and numbers of blocks. Each code has a third more workers than it needs results.
POLYNOMIAL_CODES = [
    (2, 4),
    (2, 7),
    (2, 12),
    (2, 13),
    (2, 24),
    (2, 25),
    (2, 48),
    (3, 4),
    (3, 9),
    (3, 16),
    (4, 5),
]
GRADIENT_CODES = [(12, 1), (12, 2), (12, 3), (10, 3), (24, 5), (23, 5), (23, 2)]
# The largest error amplification that leaves ten correct digits.
TEN_DIGIT_AMPLIFICATION = 1e-10 / np.finfo(float).eps
SECRET_SHARING_CODES = [(8, 5, 1), (12, 8, 1), (24, 16, 1), (12, 7, 2), (24, 15, 2), (24, 14, 3)]


def compare_polynomial_codes(n_orders: int) -> Iterator[list[object]]:
    """Yield each code's error amplification when half, and when all, of its spare results are missing."""
    for degree, k in POLYNOMIAL_CODES:
        for points in ("circle", "chebyshev"):
            n_needed = LagrangeCode(2000, k, degree, points).recovery_threshold
            code = LagrangeCode(n_needed + -(-n_needed // 3), k, degree, points)
            n_spare = code.n - n_needed
            half_missing, all_missing = (
                code.summarize_amplification((n_spare + 1) // 2),
                code.summarize_amplification(n_spare),
            )
            arrival_counts = [
                count_arrivals(code, seed, TEN_DIGIT_AMPLIFICATION)[0] for seed in range(n_orders)
            ]
            yield [
                *[
                    degree,
                    k,
                    points,
                    code.n,
                    n_needed,
                    _format_short(code.norm_inf),
                    _format_short(half_missing.median),
                ],
                *[
                    _format_short(half_missing.max),
                    _format_short(all_missing.median),
                    _format_short(all_missing.max),
                    f"{np.mean(arrival_counts) - n_needed:.1f}",
                ],
            ]


def count_arrivals(code: Any, seed: int, max_amplification: float = np.inf) -> tuple[int, Any]:
    """Return how many results in random order decode with at most `max_amplification`, and their decoder."""
    arrived_mask = np.zeros(code.n, bool)
    for index in np.random.default_rng(seed).permutation(code.n):
        arrived_mask[index] = True
        decoder = code.make_decoder(arrived_mask, modular=False)
        if not decoder.rank_deficit and decoder.amplification <= max_amplification:
            break
    return int(arrived_mask.sum()), decoder


def compare_gradient_codes(n_orders: int) -> Iterator[list[object]]:
    """Yield the mean number of results that each code needs in random order, and its error amplification."""
    for n, tolerate in GRADIENT_CODES:
        code = GradientCode(n, tolerate)
        arrival_counts, decoders = zip(*(count_arrivals(code, seed) for seed in range(n_orders)))
        max_amplification, group_sizes = (
            max(decoder.amplification for decoder in decoders),
            "+".join(map(str, code.group_sizes)),
        )
        yield [
            n,
            tolerate,
            group_sizes,
            n - tolerate,
            f"{np.mean(arrival_counts):.1f}",
            _format_short(max_amplification),
        ]


def compare_secret_sharing(n_rows: int) -> Iterator[list[object]]:
    """Yield what t workers can learn at most, what one worker learns, and the digits that decoding loses."""
    for n, k, t in SECRET_SHARING_CODES:
        for noise in (10.0, 100.0, 1000.0):
            code = SecretSharingCode(n, k, t, noise)
            yield [
                *[
                    n,
                    k,
                    t,
                    f"{noise:g}",
                    _format_short(code.leakage()),
                    _format_short(code.leakage(correlated=True)),
                ],
                *[_format_short(worst_correlation(code)), f"{measure_digits_lost(code, n_rows):.1f}"],
            ]


def worst_correlation(code: SecretSharingCode) -> float:
    """Return the correlation of the most informed worker's block with its best linear guess at the data."""
    signal = (code.encoding_matrix[:, : code.k] ** 2).sum(axis=1).max()
    return float(np.sqrt(signal / (signal + code.noise**2)))


def measure_digits_lost(code: SecretSharingCode, block_rows: int) -> float:
    """Return the decimal digits that a float64 matrix product loses when the last workers are missing."""
    rng = np.random.default_rng(0)
    A, w = rng.standard_normal((code.k * block_rows, 20)), rng.standard_normal(20)
    arrival_times = dict.fromkeys(range(code.recovery_threshold + 1, code.n), 9.0)
    code_option = SecretSharing(code.n_colluders, code.noise)
    result = coded_map(
        lambda block: block @ w, A, blocks=code.k, tasks=code.n, code=code_option,
        executor=ReplayExecutor(arrival_times), verify=False, rtol=1e-6,
    )  # fmt: skip
    error = np.abs(result.concatenate() - A @ w).max() / np.abs(A @ w).max()
    return float(np.log10(error / np.finfo(float).eps))


def _format_short(value: float) -> str:
    return f"{value:.2g}"


def main() -> None:
    quick = parse_quick_flag(__doc__)
    print("Polynomials: error amplification when half, and when all, of the spare results are missing;")
    print("extra: mean number of results beyond the recovery threshold until ten digits are right")
    header = ["degree", "k", "points", "n", "threshold", "norm inf", "half, median", "half, worst"]
    print_table(
        [*header, "all, median", "all, worst", "extra"], compare_polynomial_codes(5 if quick else 100)
    )
    print("\nSums: results needed in random order when s workers may be late, and error amplification")
    print_table(
        ["n", "s", "groups", "n - s", "mean needed", "amplification"],
        compare_gradient_codes(20 if quick else 1000),
    )
    print("\nPrivate maps: bits per entry that t workers can learn, for uncorrelated and correlated entries;")
    print("correlation: of one worker's block with the data")
    header = ["n", "k", "t", "noise", "bits", "bits, corr.", "correlation", "digits lost"]
    print_table(header, compare_secret_sharing(10 if quick else 1000))


if __name__ == "__main__":
    main()
