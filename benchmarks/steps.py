"""What steps, maps and whole fits take, each beside the least that it could take: one table.

python -m benchmarks.steps [--quick] [subject ...]

All by default: no executor, no option that a user would not set, no environment variable. The two of a row
take turns. Figures are medians of all runs, in brackets what nine in ten of them take at most; a ratio is to
the median of the other. Steps are made in a loop, as iterations make them. "numpy" computes the same products
in this process; "bare sockets" (`bare_sockets`) is polarmap's code on forked workers, with nothing around it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple

import joblib
import numpy as np
from scipy.sparse.linalg import aslinearoperator, svds
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.preprocessing import StandardScaler

import polarmap
from benchmarks import (
    Row,
    coding,
    in_turns,
    iterations,
    kept_workers,
    milliseconds,
    overhead,
    seconds_of,
    show_rows,
)
from benchmarks.bare_sockets import BareSockets
from benchmarks.in_numpy import in_numpy
from benchmarks.kept_workers import BARE, BLOCKS, DEFAULT, FEW, NUMPY, WORKERS
from benchmarks.step_rivals import CORES
from polarmap import CodedOperator, Pool
from polarmap.convex import Lasso, LinearSVC, SparseLogisticRegression
from polarmap.glm import LogisticRegression, Ridge
from polarmap.testing import Fault, FaultyExecutor

Action = Callable[[], Any]
STEPS = 12  # of a turn
KILL_EVERY = 50  # steps
FAMILIAR = {"logistic regression": "1.5", "PageRank": "2.5"}  # iterations, and their targets
IMPORT = "import numpy"
FIRST_MAP = """
import numpy as np, polarmap
polarmap.coded_map(np.sum, np.arange(48.0), blocks=12, tasks=16, progress=False)
"""


class Turns(NamedTuple):
    """How often everything is measured, and how large it is."""

    fast: int
    slow: int
    divide: int  # sizes by

    def row(
        self, what: str, ours: Action, beside: str, theirs: Action, target: str = "", steps: int = STEPS
    ) -> Row:
        """Two actions in turns, of so many steps each; what is no step is run once a turn."""
        turns = self.fast if steps > 1 else self.slow
        mine, other = in_turns([ours, theirs], turns, steps)
        return Row(what, milliseconds(mine), beside, milliseconds(other), target)

    def slow_row(self, what: str, ours: Action, beside: str, theirs: Action, target: str) -> Row:
        return self.row(what, ours, beside, theirs, target, steps=1)


WHOLE, QUICK = Turns(8, 3, 1), Turns(1, 1, 10)


def steps(turns: Turns) -> Iterator[Row]:
    """Those of `kept_workers`, nobody asleep."""
    stream, x = np.random.default_rng(0), np.ones(kept_workers.COLUMNS)
    for rows, target in ((4, "1.8, 2 ms"), (1_000, "")):
        A, what = stream.standard_normal((BLOCKS * rows, len(x))), f"24 blocks of {rows:,} x 1,000"
        with kept_workers.opened(A, x, "nobody", (DEFAULT, BARE, FEW, NUMPY)) as found:
            actions = list(found.values())
            assert all(np.allclose(action(), A @ x) for action in actions)
            ours, bare, few, plain = map(milliseconds, in_turns(actions, turns.fast, STEPS))
            counts = [[python_calls(action) for _ in range(20)] for action in actions[:2]]
        yield Row(f"{what}: Python calls", counts[0], BARE, counts[1], "1,500 calls")
        yield Row(what, ours, BARE, bare, target)
        yield Row(f"the same, {CORES} blocks of {CORES + 1}", few, BARE, bare)
    yield Row(what, ours, "numpy", plain, "1.5 (2)")


def python_calls(action: Action) -> int:
    """How many functions the driver calls."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    threading.setprofile(note)
    sys.setprofile(note)
    action()
    sys.setprofile(None)
    threading.setprofile(None)
    return count


def operators(turns: Turns) -> Iterator[Row]:
    """Products with a matrix, as a user makes them."""
    rows = 24_000 // turns.divide
    A = np.random.default_rng(0).standard_normal((rows, 1_000))
    x, b, columns = np.ones(1_000), np.ones(rows), np.ones((1_000, 64))
    products: dict[str, tuple[Callable[[Any], Any], str]] = {
        f"CodedOperator @ x, {rows:,} x 1,000": (lambda one: one @ x, "1.3"),
        "its transpose": (lambda one: one.T @ b, "1.4"),
        "64 columns at once": (lambda one: one @ columns, "1.2"),
        "a gradient step": (lambda one: x - 1e-5 * (one.T @ (one @ x - b)), "1.4"),
    }
    with CodedOperator(A) as operator:
        for what, (step, target) in products.items():
            assert np.allclose(step(operator), step(A))
            yield turns.row(what, partial(step, operator), "numpy", partial(step, A), target)


def maps(turns: Turns) -> Iterator[Row]:
    """Small maps, the loop alone, and the first map of a process."""
    small, f = np.random.default_rng(0).standard_normal((240, 4)), methodcaller("dot", np.ones(4))
    coded_map = partial(polarmap.coded_map, f, small, progress=False)
    with BareSockets(np.reshape(small, (6, 40, 4)), 8, CORES + 1) as bare:
        ours = partial(coded_map, blocks=6, tasks=8)
        yield turns.row("small map, 6 of 8", ours, BARE, partial(bare.map, f), "2 ms")
    with ThreadPoolExecutor(4) as pool:
        ours = partial(coded_map, blocks=BLOCKS, tasks=WORKERS, executor=pool)
        theirs = partial(listed, pool.map, f, np.split(small, BLOCKS))
        yield turns.row("thread pool, 24 of 32, tiny f", ours, "its own map", theirs, "2 ms")
    first, imported = (
        partial(subprocess.run, [sys.executable, "-c", program], check=True)
        for program in (FIRST_MAP, IMPORT)
    )
    yield turns.slow_row("a process with a first map", first, IMPORT, imported, "300 ms")


def listed(way: Callable[..., Any], *arguments: Any) -> list[Any]:
    return list(way(*arguments))


def items(turns: Turns) -> Iterator[Row]:
    """Many small items, and few with a large function."""
    count, table = 10_000 // turns.divide, np.ones(9_000_000 // turns.divide)

    def half(item: int) -> float:
        return item / 2

    def entry(item: int) -> float:
        return float(table[item])

    hedged_map = partial(polarmap.hedged_map, progress=False)
    with polarmap.Executor() as executor, joblib.Parallel(CORES) as parallel:
        for f, numbers, what in (
            (half, range(count), f"{count:,} items"),
            (entry, range(20), f"20 items, f of {table.nbytes / 1e6:.0f} MB"),
        ):
            theirs = partial(by_joblib, parallel, f, numbers)
            for verb, way in (("hedged_map", hedged_map), ("Executor.map", executor.map)):
                ours = partial(listed, way, f, numbers)
                assert ours() == theirs()
                yield turns.slow_row(f"{verb}, {what}", ours, "joblib", theirs, "1")


def by_joblib(parallel: Any, f: Callable[[Any], Any], numbers: Sequence[Any]) -> list[Any]:
    return list(parallel(joblib.delayed(f)(one) for one in numbers))


def fits(turns: Turns) -> Iterator[Row]:
    """Estimators on small and on large data; of Ridge the first fit, which starts workers, too."""
    X, y = load_diabetes(return_X_y=True)
    ridge, plain = partial(Ridge().fit, X, y), partial(in_numpy(Ridge()).fit, X, y)
    plain()
    first, theirs = [], []
    for _ in range(turns.slow):
        polarmap.shutdown()
        first.append(seconds_of(ridge))
        theirs.append(seconds_of(plain))
    yield Row("Ridge on diabetes, the first", milliseconds(first), "numpy", milliseconds(theirs), "200 ms")
    yield turns.slow_row("later ones", ridge, "numpy", plain, "20 ms")
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    for model, target in (
        (LinearSVC(), "100 products, 400 ms"),
        (SparseLogisticRegression(), "60 products, 300 ms"),
        (LogisticRegression(), "30 products, 150 ms"),
    ):
        yield fit(turns, model, X, y, target)
    stream, rows = np.random.default_rng(0), 20_000 // turns.divide
    X = stream.standard_normal((rows, 500 // turns.divide))
    y = X[:, :20].sum(axis=1) + stream.standard_normal(rows)
    yield fit(turns, Lasso(0.1), X, y, "1.5")
    yield fit(turns, LinearSVC(), X, y > 0, "1.5")


def fit(turns: Turns, model: Any, X: np.ndarray, y: np.ndarray, target: str) -> Row:
    plain = in_numpy(model)
    mine, other = in_turns([partial(one.fit, X, y) for one in (model, plain)], turns.slow)
    assert np.allclose(model.coef_, plain.coef_, atol=1e-3)
    what = f"{type(model).__name__}, {len(X):,} x {X.shape[1]}: {plain.operator.n_products} products"
    return Row(what, milliseconds(mine), "numpy", milliseconds(other), target)


def solvers(turns: Turns) -> Iterator[Row]:
    """svds, encoding included, and iterations that people know, nobody slow."""
    A = np.random.default_rng(0).standard_normal((20_000 // turns.divide, 500))
    options = {"k": 6, "return_singular_vectors": False, "random_state": 0}

    def coded() -> Any:
        with CodedOperator(A) as operator:
            return svds(operator, **options)

    plain = partial(svds, aslinearoperator(A), **options)
    yield turns.slow_row(f"svds, k = 6 of {len(A):,} x 500", coded, "numpy", plain, "2")
    size = iterations.WHOLE if turns.divide == 1 else iterations.QUICK
    for what, make in size.iterations.items():
        target = next((ratio for name, ratio in FAMILIAR.items() if what.startswith(name)), None)
        if target is None:
            continue
        iteration, draws = make(), iterations.Draws(0.0)
        with (
            iterations.with_polarmap(iteration, draws) as ours,
            iterations.with_numpy(iteration, draws) as theirs,
        ):
            actions = [partial(step, iteration.start) for step in (ours, theirs)]
            yield turns.row(what, actions[0], "numpy", actions[1], target)


def codes(turns: Turns) -> Iterator[Row]:
    """Encoding and recovery beside copies, and the plans of these."""
    for case in coding.CASES:
        yield from coding.rows(case._replace(size=case.size // turns.divide), turns.fast)
    for plan in coding.PLANS[: 2 if turns.divide > 1 else None]:
        yield from coding.planning(*plan, turns.slow)


def lithops(turns: Turns) -> Iterator[Row]:
    """Tasks that compute, by new workers for each map."""
    return overhead.rows(turns.slow)


def killed_workers(turns: Turns) -> Iterator[Row]:
    """The slowest of many steps."""
    A, x, count = np.random.default_rng(0).standard_normal((2_400, 1_000)), np.ones(1_000), 1_000
    with (
        Pool() as pool,
        CodedOperator(A, executor=pool) as lucky,
        CodedOperator(A, executor=FaultyExecutor(pool, {5: Fault("kill")})) as unlucky,
    ):
        for operator in (lucky, unlucky):
            operator @ x
        turn = itertools.cycle([unlucky, *[lucky] * (KILL_EVERY - 1)])
        taken = milliseconds([seconds_of(lambda: next(turn) @ x) for _ in range(count // turns.divide)])
    what = f"slowest of {len(taken):,}, a worker killed every {KILL_EVERY}"
    yield Row(what, [max(taken)], "all steps", taken)


SUBJECTS: dict[str, Callable[[Turns], Iterator[Row]]] = {
    one.__name__: one
    for one in (steps, operators, maps, items, fits, solvers, codes, lithops, killed_workers)
}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer")
    parser.add_argument("subjects", nargs="*", metavar="subject", help=f"of {', '.join(SUBJECTS)}; all")
    chosen = parser.parse_args()
    unknown = set(chosen.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(SUBJECTS)}")
    turns = QUICK if chosen.quick else WHOLE
    print(f"load {'/'.join(f'{number:.1f}' for number in os.getloadavg())}, {CORES} cores")
    show_rows(row for name in chosen.subjects or SUBJECTS for row in SUBJECTS[name](turns))


if __name__ == "__main__":
    main()
