"""Compare every scheme, write docs/comparison*.md and their figures: `python -m benchmarks.compare`.

With --quick everything is smaller and goes to build/comparison/.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter

from benchmarks import is_quick, pages
from benchmarks.compare import codes, elastic, figures, page
from benchmarks.compare.codes import Size
from benchmarks.compare.jobs import DISTRIBUTIONS, schemes

SIZES = [
    Size(32, 24, 5000, 2000, 200),
    Size(256, 192, 1000, 200, 50),
    Size(1024, 768, 400, 60, 20),
    Size(10_000, 7_500, 500, 3, 1),
]
QUICK = [Size(32, 24, 500, 200, 20), Size(256, 192, 100, 20, 5)]
TUNING = 100_000  # arrivals simulated to choose parameters of a sparse code
PATTERNS = 20
TRIALS = 200_000  # run times simulated for p99 of a scheme without a formula
DENSE_UP_TO = 1024


def main() -> None:
    quick = is_quick(__doc__)
    sizes, megabytes = (QUICK, 8) if quick else (SIZES, 128)
    began = perf_counter()
    codes.compile_loops()
    measured = {size: list(codes.measured(size, tuning(size), megabytes)) for size in sizes}
    load = os.getloadavg()[1]
    log("codes", began)
    extra = {size: list(others(size)) for size in sizes if size.n <= DENSE_UP_TO}
    jobs = {
        (size, name): {
            job.scheme: job for job in schemes(size, runtimes, measured[size], trials(size, quick))
        }
        for size in sizes
        for name, runtimes in DISTRIBUTIONS.items()
    }
    log("jobs", began)
    crowd = [one for rate in elastic.RATES for one in elastic.elastic(rate, 20 if quick else 200)]
    log("elastic", began)
    for name, parts in page.pages(measured, extra, jobs, crowd, megabytes, load).items():
        pages.write(name, parts, quick)
    figures.draw(pages.folder(quick) / "figures", measured, jobs, crowd)
    log("pages and figures", began)


def tuning(size: Size) -> int:
    return max(10, min(300, TUNING // size.n))


def trials(size: Size, quick: bool) -> int:
    return max(200, min(20_000, 20 * TRIALS // size.n)) // (10 if quick else 1)


def others(size: Size) -> Iterator[list[str]]:
    """Rows of codes of which only some columns are measured."""
    for code in codes.partly_polarized(size):
        yield page.row_without_seconds(code)
    for name, factors in codes.polynomial_codes(size, PATTERNS):
        yield page.row_of_amplification(name, factors)


def log(what: str, began: float) -> None:
    print(f"{what}: {perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
