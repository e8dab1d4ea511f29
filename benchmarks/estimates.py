"""Whether errors that are said of estimates are those that come, in random orders of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product

import numpy as np

from benchmarks import is_quick, show
from polarmap.codes import PolarCode
from polarmap.codes.block_prediction import make_block_predictor
from polarmap.errors import NotDecodableError
from polarmap.linalg import sketched_gram, sketched_lstsq
from polarmap.linalg.sketch import SketchEstimate
from polarmap.testing import ReplayExecutor

N, K = 32, 24
COUNTS = (3, 6, 14, 23)  # results that have arrived
ORDERS = 200
Make = Callable[[np.random.Generator], np.ndarray]


def gram_matrices(stream: np.random.Generator) -> np.ndarray:
    rows = stream.standard_normal((K, 50, 4))
    return np.einsum("kri,krj->kij", rows, rows).reshape(K, -1)


RESULTS: dict[str, Make] = {  # of the k blocks
    "500 normal numbers": lambda stream: 5 + stream.standard_normal((K, 500)),
    "one normal number": lambda stream: 2 + stream.standard_normal((K, 1)),
    "multiples of a vector": lambda stream: stream.standard_normal((K, 1)) * stream.standard_normal(40),
    "Gram matrices of 50 rows": gram_matrices,
    "a straight trend": lambda stream: np.linspace(0, 1, K)[:, None] * np.ones(5),
    "sizes log-normal": lambda stream: np.exp(stream.standard_normal((K, 1))) * stream.standard_normal(50),
    "one block 30 times larger": lambda stream: np.append(
        stream.standard_normal((K - 1, 50)), 30 * stream.standard_normal((1, 50)), axis=0
    ),
}


def coverage(data_sets: int) -> Iterator[list[object]]:
    """In how many of 200 orders the error is within error_p90, and by how much that is too large."""
    code = PolarCode(N, K)
    for name, make in RESULTS.items():
        row: list[object] = [name]
        for count in COUNTS:
            shares, ratios = [], list[float]()
            for seed in range(data_sets):
                some = ratios_of(code, make, count, np.random.default_rng(seed))
                shares.append(100 * np.mean([ratio >= 1 for ratio in some]))
                ratios += some
            row.append(f"{min(shares):.0f}-{max(shares):.0f} %, {np.median(ratios):.1f}")
        yield row


def ratios_of(code: PolarCode, make: Make, count: int, stream: np.random.Generator) -> list[float]:
    """The error that is said over the one that comes, in each of so many random orders."""
    data = make(stream)
    coded, ratios = code.encode(data), []
    for _ in range(ORDERS):
        arrived = np.isin(np.arange(code.n), stream.permutation(code.n)[:count])
        how = make_block_predictor(code, arrived, float(np.finfo(float).eps))
        received = coded[arrived]
        error = np.linalg.norm(how.weights @ received - data[how.missing_indices]) / np.sqrt(data.shape[1])
        said = (
            how.compute_block_std(received)
            * np.linalg.norm(how.error_stds)
            * how.compute_error_ratio_p90(received)
        )
        ratios.append(float(said / error))
    return ratios


ROWS, COLUMNS, BLOCKS = 600, 8, (1, 2, 6, 12, 23)  # of 24 blocks of 25 rows
Problem = tuple[np.ndarray, np.ndarray]


def problems(stream: np.random.Generator) -> dict[str, Problem]:
    """Matrices and right-hand sides."""
    A, noise = stream.standard_normal((ROWS, COLUMNS)), stream.standard_normal(ROWS)
    huge = A * np.where(np.arange(ROWS) == 5, 1000, 1)[:, None]
    t = np.linspace(0, 1, ROWS)
    return {
        "normal": (A, A.sum(axis=1) + noise),
        "residuals of heavy tails": (A, A.sum(axis=1) + stream.standard_t(1.5, ROWS)),
        "one residual is huge": (A, A.sum(axis=1) + noise + 100 * (np.arange(ROWS) == 7)),
        "residuals grow with the row": (A, A.sum(axis=1) + 9 * t * noise),
        "one row 1000 times larger": (huge, huge.sum(axis=1) + noise),
        "polynomials of degree 7": (np.vander(t, COLUMNS), np.sin(9 * t)),
    }


def sketched(mixtures: int) -> Iterator[list[object]]:
    """In how many mixtures the errors of solution and Gram matrix are within error_p90; the median error."""
    for name, (A, b) in problems(np.random.default_rng(3)).items():
        fitted, gram = A @ np.linalg.lstsq(A, b, rcond=None)[0], A.T @ A
        found: dict[int, list[tuple[float, float, float]]] = {blocks: [] for blocks in BLOCKS}
        for seed, blocks in product(range(mixtures), BLOCKS):
            options = {"executor": ReplayExecutor(dict.fromkeys(range(blocks, 24), np.inf)), "seed": seed}
            solution, square = last(sketched_lstsq(A, b, **options)), last(sketched_gram(A, **options))
            error = float(np.linalg.norm(A @ solution.value - fitted) / np.linalg.norm(b))
            off = np.linalg.norm(square.value - gram) / np.linalg.norm(gram)
            found[blocks].append((error, error <= solution.error_p90, bool(off <= square.error_p90)))
        row: list[object] = [name]
        for some in found.values():
            error, within, gram_within = np.median([one[0] for one in some]), *np.mean(some, axis=0)[1:]
            row.append(f"{100 * within:.0f} %, {100 * gram_within:.0f} %, {error:.1g}")
        yield row


def last(estimates: Iterator[SketchEstimate]) -> SketchEstimate:
    """The estimate from all that arrive, of tasks of which others never do."""
    found = []
    with suppress(NotDecodableError):
        found += estimates
    return found[-1]


def main() -> None:
    quick = is_quick(__doc__)
    show(["results of blocks", *(f"{count} of {K}" for count in COUNTS)], coverage(1 if quick else 10))
    print()
    show(["least squares, Gram", *(f"{count} of 24" for count in BLOCKS)], sketched(4 if quick else 200))


if __name__ == "__main__":
    main()
