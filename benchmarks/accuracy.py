"""Count the arrival patterns, in per cent, that would amplify rounding errors beyond the default rtol.

The patterns are the first k, k + 1 and k + 2 results in random order. A map waits for one extra result when
the first k would amplify errors too much.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import parse_quick_flag, print_table
from polarmap.codes import PolarCode
from polarmap.dtypes import get_default_rtol, machine_epsilon

PATTERNS_BY_SIZE = {(8, 6): 4000, (16, 12): 20_000, (32, 24): 20_000, (64, 48): 20_000, (128, 96): 8000}
FLOAT_DTYPES = ("float64", "float32", "float16")


def sample_amplifications(code: PolarCode, n_arrivals: int, n_patterns: int) -> np.ndarray:
    """Return the error amplification of random patterns of `n_arrivals` results; inf if undecodable."""
    rng = np.random.default_rng(0)
    factors = np.full(n_patterns, np.inf)
    for trial in range(n_patterns):
        arrived_mask = np.isin(np.arange(code.n), rng.permutation(code.n)[:n_arrivals])
        decoder = code.make_decoder(arrived_mask, modular=False)
        if decoder.rank_deficit == 0:
            factors[trial] = decoder.amplification
    return factors


def measure_beyond_rtol(n: int, k: int, n_patterns: int) -> Iterator[list[object]]:
    """Yield a row for k, k + 1 and k + 2 results: the percentage of bad patterns for each dtype."""
    code = PolarCode(n, k)
    limits = [get_default_rtol(np.dtype(name)) / machine_epsilon(np.dtype(name)) for name in FLOAT_DTYPES]
    for n_extra in range(3):
        factors = sample_amplifications(code, k + n_extra, n_patterns)
        percentages = [f"{100 * np.mean(factors > limit):.2f}" for limit in limits]
        yield [
            f"({n}, {k})",
            f"k + {n_extra}",
            n_patterns,
            *percentages,
            float(np.median(factors)),
            float(factors.max()),
        ]


def main() -> None:
    quick = parse_quick_flag(__doc__)
    print("Patterns beyond the default rtol of each dtype, in per cent; median and worst error amplification")
    print_table(
        ["code", "results", "patterns", *(f"% {name}" for name in FLOAT_DTYPES), "median", "worst"],
        (
            row
            for size, count in PATTERNS_BY_SIZE.items()
            for row in measure_beyond_rtol(*size, 100 if quick else count)
        ),
    )


if __name__ == "__main__":
    main()
