"""Check whether the stated errors of estimates match the actual errors, in random orders of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product

import numpy as np

from benchmarks import parse_quick_flag, print_table
from polarmap.codes import PolarCode
from polarmap.codes.block_prediction import make_missing_block_predictor
from polarmap.errors import NotDecodableError
from polarmap.linalg import sketched_gram, sketched_lstsq
from polarmap.linalg.sketch import SketchEstimate
from polarmap.testing import ReplayExecutor

N, K = 32, 24
ARRIVAL_COUNTS = (3, 6, 14, 23)  # Numbers of results that have arrived.
N_ORDERS = 200
MakeResults = Callable[[np.random.Generator], np.ndarray]


def sample_gram_matrices(rng: np.random.Generator) -> np.ndarray:
    rows = rng.standard_normal((K, 50, 4))
    return np.einsum("kri,krj->kij", rows, rows).reshape(K, -1)


RESULTS: dict[str, MakeResults] = {  # Results of the k blocks.
    "500 normal numbers": lambda stream: 5 + stream.standard_normal((K, 500)),
    "one normal number": lambda stream: 2 + stream.standard_normal((K, 1)),
    "multiples of a vector": lambda stream: stream.standard_normal((K, 1)) * stream.standard_normal(40),
    "Gram matrices of 50 rows": sample_gram_matrices,
    "a straight trend": lambda stream: np.linspace(0, 1, K)[:, None] * np.ones(5),
    "sizes log-normal": lambda stream: np.exp(stream.standard_normal((K, 1))) * stream.standard_normal(50),
    "one block 30 times larger": lambda stream: np.append(
        stream.standard_normal((K - 1, 50)), 30 * stream.standard_normal((1, 50)), axis=0
    ),
}


def measure_coverage(n_data_sets: int) -> Iterator[list[object]]:
    """Yield how often the error of each kind of results is within error_p90, and the median ratio."""
    code = PolarCode(N, K)
    for name, make_results in RESULTS.items():
        row: list[object] = [name]
        for n_arrivals in ARRIVAL_COUNTS:
            percentages, ratios = [], list[float]()
            for seed in range(n_data_sets):
                seed_ratios = sample_error_ratios(code, make_results, n_arrivals, np.random.default_rng(seed))
                percentages.append(100 * np.mean([ratio >= 1 for ratio in seed_ratios]))
                ratios += seed_ratios
            row.append(f"{min(percentages):.0f}-{max(percentages):.0f} %, {np.median(ratios):.1f}")
        yield row


def sample_error_ratios(
    code: PolarCode, make_results: MakeResults, n_arrivals: int, rng: np.random.Generator
) -> list[float]:
    """Return the ratio of the stated to the actual error in each of `N_ORDERS` random orders."""
    data = make_results(rng)
    coded_results, ratios = code.encode(data), []
    for _ in range(N_ORDERS):
        arrived_mask = np.isin(np.arange(code.n), rng.permutation(code.n)[:n_arrivals])
        predictor = make_missing_block_predictor(code, arrived_mask, float(np.finfo(float).eps))
        received = coded_results[arrived_mask]
        error = np.linalg.norm(predictor.weights @ received - data[predictor.missing_indices]) / np.sqrt(
            data.shape[1]
        )
        claimed_error = (
            predictor.compute_block_std(received)
            * np.linalg.norm(predictor.error_stds)
            * predictor.estimate_error_to_std_ratio_p90(received)
        )
        ratios.append(float(claimed_error / error))
    return ratios


# BLOCKS has the numbers of mixtures that arrive, out of 24 blocks of 25 rows.
ROWS, COLUMNS, BLOCKS = 600, 8, (1, 2, 6, 12, 23)
Problem = tuple[np.ndarray, np.ndarray]


def make_problems(rng: np.random.Generator) -> dict[str, Problem]:
    """Return named matrices and right-hand sides."""
    A, noise = rng.standard_normal((ROWS, COLUMNS)), rng.standard_normal(ROWS)
    huge = A * np.where(np.arange(ROWS) == 5, 1000, 1)[:, None]
    t = np.linspace(0, 1, ROWS)
    return {
        "normal": (A, A.sum(axis=1) + noise),
        "residuals of heavy tails": (A, A.sum(axis=1) + rng.standard_t(1.5, ROWS)),
        "one residual is huge": (A, A.sum(axis=1) + noise + 100 * (np.arange(ROWS) == 7)),
        "residuals grow with the row": (A, A.sum(axis=1) + 9 * t * noise),
        "one row 1000 times larger": (huge, huge.sum(axis=1) + noise),
        "polynomials of degree 7": (np.vander(t, COLUMNS), np.sin(9 * t)),
    }


def measure_sketches(n_seeds: int) -> Iterator[list[object]]:
    """Yield how often the errors of solution and Gram matrix are within error_p90, and the median error."""
    for name, (A, b) in make_problems(np.random.default_rng(3)).items():
        fitted_values, gram = A @ np.linalg.lstsq(A, b, rcond=None)[0], A.T @ A
        errors_by_count: dict[int, list[tuple[float, float, float]]] = {blocks: [] for blocks in BLOCKS}
        for seed, blocks in product(range(n_seeds), BLOCKS):
            options = {"executor": ReplayExecutor(dict.fromkeys(range(blocks, 24), np.inf)), "seed": seed}
            solution, gram_estimate = (
                last_estimate(sketched_lstsq(A, b, **options)),
                last_estimate(sketched_gram(A, **options)),
            )
            error = float(np.linalg.norm(A @ solution.value - fitted_values) / np.linalg.norm(b))
            gram_error = np.linalg.norm(gram_estimate.value - gram) / np.linalg.norm(gram)
            errors_by_count[blocks].append(
                (error, error <= solution.error_p90, bool(gram_error <= gram_estimate.error_p90))
            )
        row: list[object] = [name]
        for errors in errors_by_count.values():
            error, coverage_fraction, gram_coverage = (
                np.median([error_row[0] for error_row in errors]),
                *np.mean(errors, axis=0)[1:],
            )
            row.append(f"{100 * coverage_fraction:.0f} %, {100 * gram_coverage:.0f} %, {error:.1g}")
        yield row


def last_estimate(estimates: Iterator[SketchEstimate]) -> SketchEstimate:
    """Return the last estimate of a sketch whose remaining tasks never arrive."""
    collected = []
    with suppress(NotDecodableError):
        collected += estimates
    return collected[-1]


def main() -> None:
    quick = parse_quick_flag(__doc__)
    print("Share of orders with an error within error_p90, and median ratio of stated to actual error")
    print_table(
        ["results", *(f"{count} of {K}" for count in ARRIVAL_COUNTS)],
        measure_coverage(1 if quick else 10),
    )
    print("\nShare of mixtures within error_p90 for solution and Gram matrix; median error of the solution")
    print_table(
        ["problem", *(f"{count} of 24" for count in BLOCKS)],
        measure_sketches(4 if quick else 200),
    )


if __name__ == "__main__":
    main()
