"""Compare every scheme, write docs/comparison*.md and their figures: `python -m benchmarks.compare`.

With --quick, sizes and numbers of trials are smaller, and the output goes to build/comparison/.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter

from benchmarks import pages, parse_quick_flag
from benchmarks.compare import codes, elastic, figures, page
from benchmarks.compare.codes import Size
from benchmarks.compare.jobs import DISTRIBUTIONS, simulate_schemes

SIZES = [
    Size(32, 24, 5000, 2000, 200),
    Size(256, 192, 1000, 200, 50),
    Size(1024, 768, 400, 60, 20),
    Size(10_000, 7_500, 500, 3, 1),
]
QUICK = [Size(32, 24, 500, 200, 20), Size(256, 192, 100, 20, 5)]
N_TUNING_ARRIVALS = 100_000  # Arrivals simulated to choose the parameters of a sparse code.
N_PATTERNS = 20
N_RUN_TIMES = 200_000  # Run times simulated for the p99 of a scheme without a formula.
MAX_DENSE_N = 1024


def main() -> None:
    quick = parse_quick_flag(__doc__)
    sizes, megabytes = (QUICK, 8) if quick else (SIZES, 128)
    started_at = perf_counter()
    codes.compile_loops()
    measurements = {
        size: list(codes.measure_codes(size, choose_tuning_trials(size), megabytes)) for size in sizes
    }
    load_average = os.getloadavg()[1]
    print_elapsed("codes", started_at)
    extra_rows = {size: list(measure_other_codes(size)) for size in sizes if size.n <= MAX_DENSE_N}
    jobs = {
        (size, name): {
            job.scheme: job
            for job in simulate_schemes(size, run_times, measurements[size], choose_trials(size, quick))
        }
        for size in sizes
        for name, run_times in DISTRIBUTIONS.items()
    }
    print_elapsed("jobs", started_at)
    elastic_jobs = [
        elastic_job
        for rate in elastic.VANISHING_RATES
        for elastic_job in elastic.simulate_elastic_jobs(rate, 20 if quick else 200)
    ]
    print_elapsed("elastic", started_at)
    for name, parts in page.make_page_parts(
        measurements, extra_rows, jobs, elastic_jobs, megabytes, load_average
    ).items():
        pages.write_page(name, parts, quick)
    figures.draw_figures(pages.output_folder(quick) / "figures", measurements, jobs, elastic_jobs)
    print_elapsed("pages and figures", started_at)


def choose_tuning_trials(size: Size) -> int:
    return max(10, min(300, N_TUNING_ARRIVALS // size.n))


def choose_trials(size: Size, quick: bool) -> int:
    return max(200, min(20_000, 20 * N_RUN_TIMES // size.n)) // (10 if quick else 1)


def measure_other_codes(size: Size) -> Iterator[list[str]]:
    """Yield rows of codes for which only some columns are measured."""
    for code in codes.measure_partly_polarized(size):
        yield page.format_row_without_seconds(code)
    for name, factors in codes.measure_polynomial_codes(size, N_PATTERNS):
        yield page.format_amplification_row(name, factors)


def print_elapsed(label: str, started_at: float) -> None:
    print(f"{label}: {perf_counter() - started_at:.0f} s", flush=True)


if __name__ == "__main__":
    main()
