"""Time steps, maps and whole fits, each against a baseline that is hard to beat, in one table.

python -m benchmarks.steps [--quick] [subject ...]

Everything runs with defaults: no executor, no option that a user would not set, no environment variable. The
two actions of a row take turns. Figures are medians of all runs, with the 90 % quantile in brackets. Ratios
are relative to the median of the baseline. Steps run in a loop, as in iterations. "numpy" computes the same
products in this process. "bare sockets" (`bare_sockets`) is polarmap's coding on forked workers and sockets,
with nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple

import joblib
import numpy as np
from scipy.sparse.linalg import aslinearoperator, svds
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_blobs
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

import polarmap
import polarmap.joblib
from benchmarks import (
    Row,
    coding,
    count_python_calls,
    iterations,
    overhead,
    persistent_workers,
    print_rows,
    time_call,
    time_in_turns,
    to_milliseconds,
)
from benchmarks.bare_sockets import SocketPool
from benchmarks.numpy_estimators import with_numpy_products
from benchmarks.persistent_workers import (
    BARE_SOCKETS,
    BLOCKS,
    FEW_BLOCKS,
    NUMPY_ONLY,
    POLARMAP_DEFAULT,
    WORKERS,
)
from benchmarks.step_rivals import CORES
from polarmap import CodedOperator, Pool
from polarmap.convex import Lasso, LinearSVC, SparseLogisticRegression
from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor
from polarmap.glm import LogisticRegression, Ridge
from polarmap.testing import Fault, FaultyExecutor

Action = Callable[[], Any]
N_STEPS = 12  # Steps in a turn.
KILL_EVERY = 50  # Steps from one killed worker to the next.
# Targets of iterations, as ratios to numpy.
ITERATION_TARGETS = {"logistic regression": "1.5", "PageRank": "2.5"}
IMPORT_PROGRAM = "import numpy"
FIRST_MAP_PROGRAM = """
import numpy as np, polarmap
polarmap.coded_map(np.sum, np.arange(48.0), blocks=12, tasks=16, progress=False)
"""


class Effort(NamedTuple):
    """How often each action is measured, and a divisor of the sizes."""

    n_fast_turns: int
    n_slow_turns: int
    size_divisor: int  # Divides all sizes.

    def measure_row(
        self,
        label: str,
        action: Action,
        baseline: str,
        baseline_action: Action,
        target: str = "",
        n_steps: int = N_STEPS,
    ) -> Row:
        """Time two actions in turns of `n_steps` steps. With n_steps=1, each runs once in a slow turn."""
        n_turns = self.n_fast_turns if n_steps > 1 else self.n_slow_turns
        action_times, baseline_times = time_in_turns([action, baseline_action], n_turns, n_steps)
        return Row(label, to_milliseconds(action_times), baseline, to_milliseconds(baseline_times), target)

    def measure_slow_row(
        self, label: str, action: Action, baseline: str, baseline_action: Action, target: str
    ) -> Row:
        return self.measure_row(label, action, baseline, baseline_action, target, n_steps=1)


WHOLE, QUICK = Effort(8, 3, 1), Effort(1, 1, 10)


def steps(effort: Effort) -> Iterator[Row]:
    """Yield steps of `persistent_workers` without faults."""
    rng, x = np.random.default_rng(0), np.ones(persistent_workers.COLUMNS)
    for block_rows, target in ((4, "1.8, 2 ms"), (1_000, "")):
        A, label = rng.standard_normal((BLOCKS * block_rows, len(x))), f"24 blocks of {block_rows:,} x 1,000"
        with persistent_workers.open_steps(
            A, x, "none", (POLARMAP_DEFAULT, BARE_SOCKETS, FEW_BLOCKS, NUMPY_ONLY)
        ) as open_actions:
            actions = list(open_actions.values())
            assert all(np.allclose(action(), A @ x) for action in actions)
            polarmap_times, socket_times, few_block_times, numpy_times = map(
                to_milliseconds, time_in_turns(actions, effort.n_fast_turns, N_STEPS)
            )
            call_counts = [[count_python_calls(action) for _ in range(20)] for action in actions[:2]]
        yield Row(f"{label}: Python calls", call_counts[0], BARE_SOCKETS, call_counts[1], "1,500 calls")
        yield Row(label, polarmap_times, BARE_SOCKETS, socket_times, target)
        yield Row(f"{label}, {CORES} of {CORES + 1} tasks", few_block_times, BARE_SOCKETS, socket_times)
    yield Row(label, polarmap_times, "numpy", numpy_times, "1.5 (2)")


def operators(effort: Effort) -> Iterator[Row]:
    """Yield products with a matrix, as a user writes them."""
    n_rows = 24_000 // effort.size_divisor
    A = np.random.default_rng(0).standard_normal((n_rows, 1_000))
    x, b, columns = np.ones(1_000), np.ones(n_rows), np.ones((1_000, 64))
    products: dict[str, tuple[Callable[[Any], Any], str]] = {
        f"CodedOperator @ x, {n_rows:,} x 1,000": (lambda operand: operand @ x, "1.3"),
        "CodedOperator.T @ y": (lambda operand: operand.T @ b, "1.4"),
        "CodedOperator @ 64 columns": (lambda operand: operand @ columns, "1.2"),
        "a gradient step with CodedOperator": (
            lambda operand: x - 1e-5 * (operand.T @ (operand @ x - b)),
            "1.4",
        ),
    }
    with CodedOperator(A) as operator:
        for label, (step, target) in products.items():
            assert np.allclose(step(operator), step(A))
            yield effort.measure_row(label, partial(step, operator), "numpy", partial(step, A), target)


def maps(effort: Effort) -> Iterator[Row]:
    """Yield small maps, the map of a thread pool, and the first map of a process."""
    small_matrix, f = np.random.default_rng(0).standard_normal((240, 4)), methodcaller("dot", np.ones(4))
    coded_map = partial(polarmap.coded_map, f, small_matrix, progress=False)
    with SocketPool(np.reshape(small_matrix, (6, 40, 4)), 8, CORES + 1) as socket_pool:
        polarmap_map = partial(coded_map, blocks=6, tasks=8)
        yield effort.measure_row(
            "small map, 6 of 8", polarmap_map, BARE_SOCKETS, partial(socket_pool.map, f), "2 ms"
        )
    with ThreadPoolExecutor(4) as pool:
        polarmap_map = partial(coded_map, blocks=BLOCKS, tasks=WORKERS, executor=pool)
        pool_map = partial(list_results, pool.map, f, np.split(small_matrix, BLOCKS))
        yield effort.measure_row("thread pool, 24 of 32, tiny f", polarmap_map, "pool.map", pool_map, "2 ms")
    first_map_process, import_process = (
        partial(subprocess.run, [sys.executable, "-c", program], check=True)
        for program in (FIRST_MAP_PROGRAM, IMPORT_PROGRAM)
    )
    yield effort.measure_slow_row(
        "a process with a first map", first_map_process, IMPORT_PROGRAM, import_process, "300 ms"
    )


def buffered_calls(effort: Effort) -> Iterator[Row]:
    """Yield the time of maps of an Executor that read their inputs as results are used."""
    n_calls, buffersize = 10_000 // effort.size_divisor, 100
    with polarmap.Executor() as executor:
        unbuffered_map = partial(list_results, executor.map, float, range(n_calls))
        buffered_map = partial(unbuffered_map, buffersize=buffersize)
        assert buffered_map() == unbuffered_map() == list(map(float, range(n_calls)))
        label = f"Executor.map(buffersize={buffersize}), {n_calls:,} calls"
        yield effort.measure_row(label, buffered_map, "without buffersize", unbuffered_map, "2", n_steps=4)


def searches(effort: Effort) -> Iterator[Row]:
    """Yield the time of a search of scikit-learn on the joblib backend, beside joblib's default backend."""
    X, y = load_digits(return_X_y=True)
    grid = {"C": [0.1, 1.0, 10.0], "gamma": [1e-4, 1e-3, 1e-2]}
    search = GridSearchCV(SVC(), grid, cv=5, refit=False)
    X, y = X[:: effort.size_divisor], y[:: effort.size_divisor]

    def search_on(backend: str) -> Any:
        with joblib.parallel_config(backend=backend, n_jobs=CORES):
            return search.fit(X, y).cv_results_["mean_test_score"]

    assert np.allclose(search_on("polarmap"), search_on("loky"))
    label = f"GridSearchCV, SVC on digits, {9 * 5} fits"
    yield effort.measure_slow_row(
        label, partial(search_on, "polarmap"), "loky", partial(search_on, "loky"), "1"
    )


def list_results(function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    return list(function(*arguments, **options))


def items(effort: Effort) -> Iterator[Row]:
    """Yield maps of many small items, and of few items with a large function."""
    n_items, table = 10_000 // effort.size_divisor, np.ones(9_000_000 // effort.size_divisor)

    def halve(item: int) -> float:
        return item / 2

    def get_entry(item: int) -> float:
        return float(table[item])

    hedged_map = partial(polarmap.hedged_map, progress=False)
    with polarmap.Executor() as executor, joblib.Parallel(CORES) as parallel:
        for f, inputs, label in (
            (halve, range(n_items), f"{n_items:,} items"),
            (get_entry, range(20), f"20 items, f of {table.nbytes / 1e6:.0f} MB"),
        ):
            joblib_map = partial(map_with_joblib, parallel, f, inputs)
            for function_name, map_function in (("hedged_map", hedged_map), ("Executor.map", executor.map)):
                polarmap_map = partial(list_results, map_function, f, inputs)
                assert polarmap_map() == joblib_map()
                yield effort.measure_slow_row(
                    f"{function_name}, {label}", polarmap_map, "joblib", joblib_map, "1"
                )


def map_with_joblib(parallel: Any, f: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
    return list(parallel(joblib.delayed(f)(item) for item in inputs))


def fits(effort: Effort) -> Iterator[Row]:
    """Yield fits of estimators on small and large data. Ridge's first fit also starts the workers."""
    X, y = load_diabetes(return_X_y=True)
    fit_ridge, fit_in_numpy = partial(Ridge().fit, X, y), partial(with_numpy_products(Ridge()).fit, X, y)
    fit_in_numpy()
    first_seconds, numpy_seconds = [], []
    for _ in range(effort.n_slow_turns):
        polarmap.shutdown()
        first_seconds.append(time_call(fit_ridge))
        numpy_seconds.append(time_call(fit_in_numpy))
    yield Row(
        "Ridge on diabetes, first fit",
        to_milliseconds(first_seconds),
        "numpy",
        to_milliseconds(numpy_seconds),
        "200 ms",
    )
    yield effort.measure_slow_row("Ridge on diabetes, later fits", fit_ridge, "numpy", fit_in_numpy, "20 ms")
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    for model, target in (
        (LinearSVC(), "100 products, 400 ms"),
        (SparseLogisticRegression(), "60 products, 300 ms"),
        (LogisticRegression(), "30 products, 150 ms"),
    ):
        yield measure_fit(effort, model, X, y, target)
    rng, n_rows = np.random.default_rng(0), 20_000 // effort.size_divisor
    X = rng.standard_normal((n_rows, 500 // effort.size_divisor))
    y = X[:, :20].sum(axis=1) + rng.standard_normal(n_rows)
    yield measure_fit(effort, Lasso(0.1), X, y, "1.5")
    yield measure_fit(effort, LinearSVC(), X, y > 0, "1.5")


def measure_fit(effort: Effort, model: Any, X: np.ndarray, y: np.ndarray, target: str) -> Row:
    numpy_model = with_numpy_products(model)
    polarmap_times, numpy_times = time_in_turns(
        [partial(estimator.fit, X, y) for estimator in (model, numpy_model)], effort.n_slow_turns
    )
    assert np.allclose(model.coef_, numpy_model.coef_, atol=1e-3)
    label = f"{type(model).__name__}, {len(X):,} x {X.shape[1]}: {numpy_model.operator.n_products} products"
    return Row(label, to_milliseconds(polarmap_times), "numpy", to_milliseconds(numpy_times), target)


def networks(effort: Effort) -> Iterator[Row]:
    """Time convex networks on the few samples of scikit-learn's checks, and all of these checks."""
    X, y = make_blobs(n_samples=21, centers=3, random_state=0)
    for activation in ("gated_relu", "relu"):
        model = ConvexMLPClassifier(activation=activation)
        numpy_model = with_numpy_products(model)
        fits = [partial(estimator.fit, X, y) for estimator in (model, numpy_model)]
        polarmap_times, numpy_times = time_in_turns(fits, effort.n_slow_turns)
        label = f"{activation} network, 21 x 2, 3 classes: {numpy_model.operator.n_products} products"
        yield Row(label, to_milliseconds(polarmap_times), "numpy", to_milliseconds(numpy_times), "2 s")
    for network, rival in ((ConvexMLPClassifier(), MLPClassifier()), (ConvexMLPRegressor(), MLPRegressor())):
        checks = [partial(check_estimator, estimator, on_skip=None) for estimator in (network, rival)]
        seconds, rival_seconds = time_in_turns(checks, 1)
        label = f"check_estimator({type(network).__name__}())"
        baseline = f"scikit-learn's {type(rival).__name__}"
        yield Row(label, to_milliseconds(seconds), baseline, to_milliseconds(rival_seconds), "60 s")


def solvers(effort: Effort) -> Iterator[Row]:
    """Yield svds, encoding included, and familiar iterations without slow workers."""
    A = np.random.default_rng(0).standard_normal((20_000 // effort.size_divisor, 500))
    options = {"k": 6, "return_singular_vectors": False, "random_state": 0}

    def coded_svds() -> Any:
        with CodedOperator(A) as operator:
            return svds(operator, **options)

    plain_svds = partial(svds, aslinearoperator(A), **options)
    yield effort.measure_slow_row(f"svds, k = 6 of {len(A):,} x 500", coded_svds, "numpy", plain_svds, "2")
    size = iterations.WHOLE if effort.size_divisor == 1 else iterations.QUICK
    for label, make_iteration in size.make_iterations.items():
        target = next((ratio for name, ratio in ITERATION_TARGETS.items() if label.startswith(name)), None)
        if target is None:
            continue
        iteration, sleep_sampler = make_iteration(), iterations.SleepSampler(0.0)
        with (
            iterations.polarmap_step(iteration, sleep_sampler) as polarmap_iteration,
            iterations.numpy_step(iteration, sleep_sampler) as numpy_iteration,
        ):
            actions = [partial(step, iteration.start) for step in (polarmap_iteration, numpy_iteration)]
            yield effort.measure_row(label, actions[0], "numpy", actions[1], target)


def codes(effort: Effort) -> Iterator[Row]:
    """Yield encoding and recovery against copies of the blocks, and the planning of recoveries."""
    for case in coding.CASES:
        yield from coding.measure_case(
            case._replace(block_bytes=case.block_bytes // effort.size_divisor), effort.n_fast_turns
        )
    for planning_case in coding.PLANNING_CASES[: 2 if effort.size_divisor > 1 else None]:
        yield from coding.measure_planning(*planning_case, effort.n_slow_turns)


def lithops(effort: Effort) -> Iterator[Row]:
    """Yield maps of tasks that compute, with new workers for each map."""
    return overhead.measure_overhead(effort.n_slow_turns)


def killed_workers(effort: Effort) -> Iterator[Row]:
    """Yield the slowest of many steps during which workers are killed."""
    A, x, n_steps = np.random.default_rng(0).standard_normal((2_400, 1_000)), np.ones(1_000), 1_000
    with (
        Pool() as pool,
        CodedOperator(A, executor=pool) as healthy_operator,
        CodedOperator(A, executor=FaultyExecutor(pool, {5: Fault("kill")})) as faulty_operator,
    ):
        for operator in (healthy_operator, faulty_operator):
            operator @ x
        operators_in_turn = itertools.cycle([faulty_operator, *[healthy_operator] * (KILL_EVERY - 1)])
        step_times = to_milliseconds(
            [time_call(lambda: next(operators_in_turn) @ x) for _ in range(n_steps // effort.size_divisor)]
        )
    label = f"slowest of {len(step_times):,}, a worker killed every {KILL_EVERY}"
    yield Row(label, [max(step_times)], "all steps", step_times)


SUBJECTS: dict[str, Callable[[Effort], Iterator[Row]]] = {
    one.__name__: one
    for one in (
        steps,
        operators,
        maps,
        items,
        buffered_calls,
        searches,
        fits,
        networks,
        solvers,
        codes,
        lithops,
        killed_workers,
    )
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions")
    parser.add_argument(
        "subjects", nargs="*", metavar="subject", help=f"any of {', '.join(SUBJECTS)}; default: all"
    )
    arguments = parser.parse_args()
    unknown_subjects = set(arguments.subjects) - set(SUBJECTS)
    if unknown_subjects:
        parser.error(f"unknown: {', '.join(sorted(unknown_subjects))}; choose from {', '.join(SUBJECTS)}")
    effort = QUICK if arguments.quick else WHOLE
    print(f"load {'/'.join(f'{load_average:.1f}' for load_average in os.getloadavg())}, {CORES} cores")
    print_rows(row for subject in arguments.subjects or SUBJECTS for row in SUBJECTS[subject](effort))


if __name__ == "__main__":
    main()
