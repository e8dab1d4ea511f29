"""Patterns of arrivals that would multiply rounding beyond the default rtol of a dtype, in per cent.

Of exactly k results in random order, and of one and two more: a map awaits one result more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import is_quick, show
from polarmap.codes import PolarCode
from polarmap.dtypes import default_rtol, machine_epsilon

SIZES = {(8, 6): 4000, (16, 12): 20_000, (32, 24): 20_000, (64, 48): 20_000, (128, 96): 8000}
FLOATS = ("float64", "float32", "float16")


def amplifications(code: PolarCode, arrivals: int, count: int) -> np.ndarray:
    """Of random patterns of so many arrivals; inf where they do not determine the data."""
    stream = np.random.default_rng(0)
    found = np.full(count, np.inf)
    for turn in range(count):
        arrived = np.isin(np.arange(code.n), stream.permutation(code.n)[:arrivals])
        plan = code.make_decoder(arrived, modular=False)
        if plan.rank_deficit == 0:
            found[turn] = plan.amplification
    return found


def beyond_rtol(n: int, k: int, count: int) -> Iterator[list[object]]:
    """Per cent of patterns for each dtype, of k results and of one and two more."""
    code = PolarCode(n, k)
    limits = [default_rtol(np.dtype(name)) / machine_epsilon(np.dtype(name)) for name in FLOATS]
    for more in range(3):
        found = amplifications(code, k + more, count)
        shares = [f"{100 * np.mean(found > limit):.2f}" for limit in limits]
        yield [f"({n}, {k})", f"k + {more}", count, *shares, float(np.median(found)), float(found.max())]


def main() -> None:
    quick = is_quick(__doc__)
    show(
        ["code", "results", "patterns", *(f"% {name}" for name in FLOATS), "median", "worst"],
        (row for size, count in SIZES.items() for row in beyond_rtol(*size, 100 if quick else count)),
    )


if __name__ == "__main__":
    main()
