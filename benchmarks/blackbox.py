"""Compare coded gradients with uncoded ones in black-box optimization with stragglers.

32 workers with a virtual clock minimize a logistic loss in 96 coordinates from function values only, all
methods for the same time. A query takes 1 s. A worker takes 1 + Exp(0.1) times as long and, with probability
5 %, ten times longer. The random numbers are the same for all sources of gradients:

* coded: coded_gradient, whose slopes are known at the k-th arrival;
* differences: finite differences along all coordinates, which wait for all workers;
* backups: finite differences, where a worker that takes 1.5 times the median gets a backup copy, repeatedly;
  the first copy to finish counts;
* orthogonal: new random orthonormal directions (Choromanski et al. 2018); those measured by the first k
  workers give a projection of the gradient.

All methods take steps of length 1 / L along their gradients, except L-BFGS, which needs exact gradients and
therefore uses coded ones. Queries are counted when they start, also on late workers. The program draws
docs/figures/black-box.svg, or with --quick a figure in build/comparison/.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from scipy.fft import dct
from scipy.optimize import minimize
from scipy.special import expit

from benchmarks import pages, parse_quick_flag, print_table
from polarmap import coded_gradient
from polarmap.maps.gradients import DEFAULT_STEP
from polarmap.plot import figure_style
from polarmap.testing import ReplayExecutor

N, K, DIMENSION = 32, 24, 96
END_SECONDS = 1600.0  # Virtual seconds of a run.


class LogisticProblem:
    """A penalized logistic loss with its minimum and its smoothness constant."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._A = rng.standard_normal((400, DIMENSION)) * np.geomspace(1, 0.2, DIMENSION)
        self._y = rng.random(400) < expit(self._A @ rng.standard_normal(DIMENSION))
        self.smoothness = 0.25 * np.linalg.norm(self._A, 2) ** 2 / 400 + 1e-3
        self.minimum = minimize(self, np.zeros(DIMENSION), jac=self.gradient, tol=1e-12).fun

    def __call__(self, x: Any) -> Any:
        eta = x @ self._A.T
        return np.mean(np.logaddexp(0, eta) - self._y * eta, axis=-1) + 5e-4 * (x * x).sum(axis=-1)

    def gradient(self, x: Any) -> Any:
        return self._A.T @ (expit(self._A @ x) - self._y) / 400 + 1e-3 * x


class VirtualClock:
    """A clock that draws the virtual seconds of the workers, independently of what they compute."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def sample_answer_times(self, n_queries: int) -> Any:
        """Return the seconds after which each worker has answered `n_queries` queries."""
        factors = np.where(self._rng.random(N) < 0.05, 10.0, 1.0)
        return n_queries * (1 + self._rng.exponential(0.1, N)) * factors

    def wait_for_all(self, n_queries: int, with_backups: bool) -> tuple[float, int]:
        """Return the seconds until all workers have answered, and the number of queries started."""
        end_times, n_started = self.sample_answer_times(n_queries), N
        backup_interval = backup_at = 1.5 * float(np.median(end_times))
        while with_backups and (running_mask := end_times > backup_at).any():
            end_times = np.minimum(
                end_times, np.where(running_mask, backup_at + self.sample_answer_times(n_queries), np.inf)
            )
            n_started += int(running_mask.sum())
            backup_at += backup_interval
        return float(end_times.max()), n_started * n_queries


class GradientSource:
    """A source of gradients that counts its calls, queries and virtual seconds.

    Parameters
    ----------
    f : Callable[[Any], Any]
        Function of one point or of an array of points, one per row.
    """

    def __init__(self, method: str, f: Callable[[Any], Any], seed: int) -> None:
        self.method, self._f = method, f
        self._clock, self._rng = VirtualClock(seed), np.random.default_rng(seed)
        self.n_calls, self.n_queries, self.elapsed_seconds = 0, 0, 0.0

    def __call__(self, x: Any) -> Any:
        self.n_calls += 1
        if self.method == "coded":
            return self._coded_gradient(x)
        n_worker_queries = 2 * x.size // N  # Each point of a central difference is a query.
        if self.method == "orthogonal":
            return self._projected_gradient(x, n_worker_queries)
        seconds, n_started = self._clock.wait_for_all(n_worker_queries, with_backups=self.method == "backups")
        self.elapsed_seconds += seconds
        self.n_queries += n_started
        return self._directional_derivatives(x, np.eye(x.size))

    def _coded_gradient(self, x: Any) -> Any:
        executor = ReplayExecutor(dict(enumerate(self._clock.sample_answer_times(2 * -(-x.size // K)))))
        result = coded_gradient(self._f, x, blocks=K, tasks=N, executor=executor, progress=False)
        self.n_queries += result.evaluations_started
        self.elapsed_seconds += result.report.seconds
        return result.gradient

    def _projected_gradient(self, x: Any, n_worker_queries: int) -> Any:
        """Return the projection of the gradient on the directions that the first k workers have measured."""
        self.elapsed_seconds += np.sort(self._clock.sample_answer_times(n_worker_queries))[K - 1]
        self.n_queries += N * n_worker_queries
        measured_directions = sample_directions(K * x.size // N, x.size, self._rng)
        return measured_directions.T @ self._directional_derivatives(x, measured_directions)

    def _directional_derivatives(self, x: Any, direction_rows: Any) -> Any:
        h = DEFAULT_STEP["central"]
        return (self._f(x + h * direction_rows) - self._f(x - h * direction_rows)) / (2 * h)


def sample_directions(n_directions: int, dimension: int, rng: np.random.Generator) -> Any:
    """Return orthonormal rows (count, size) in random directions, by cosine transforms and random signs."""
    rows = np.eye(dimension)[rng.permutation(dimension)[:n_directions]]
    for _ in range(2):
        rows = dct(rows, norm="ortho") * rng.choice([-1.0, 1.0], dimension)
    return rows


class SearchRun(NamedTuple):
    """A search: the seconds and gaps f - f* after every step, and the evaluations of f that were started."""

    seconds: list[float]
    gaps: list[float]
    n_evaluations: int

    def gap_after(self, elapsed_seconds: float) -> float:
        """Return the gap reached after `elapsed_seconds` virtual seconds."""
        return float(self.gaps[np.searchsorted(self.seconds, elapsed_seconds, side="right") - 1])


def run_gradient_descent(problem: LogisticProblem, gradient_source: GradientSource) -> SearchRun:
    """Run gradient descent with steps of length 1 / L until END_SECONDS."""
    x = np.zeros(DIMENSION)
    seconds, gaps = [0.0], [problem(x) - problem.minimum]
    while seconds[-1] < END_SECONDS:
        x = x - gradient_source(x) / problem.smoothness
        seconds.append(gradient_source.elapsed_seconds)
        gaps.append(problem(x) - problem.minimum)
    return SearchRun(seconds, gaps, gradient_source.n_queries)


def run_lbfgs(problem: LogisticProblem, gradient_source: GradientSource) -> SearchRun:
    """Run L-BFGS until END_SECONDS; each value of f counts as one evaluation on the driver."""
    seconds, gaps = [0.0], [problem(np.zeros(DIMENSION)) - problem.minimum]

    def value_and_gradient(x: Any) -> tuple[float, Any]:
        gradient = gradient_source(x)
        seconds.append(gradient_source.elapsed_seconds + gradient_source.n_calls)
        gaps.append(min(gaps[-1], problem(x) - problem.minimum))
        if seconds[-1] > END_SECONDS:
            raise StopIteration
        return float(problem(x)), gradient

    with suppress(StopIteration):
        minimize(value_and_gradient, np.zeros(DIMENSION), jac=True, method="L-BFGS-B", tol=1e-14)
    return SearchRun(seconds, gaps, gradient_source.n_queries + gradient_source.n_calls)


Search = Callable[[LogisticProblem, GradientSource], SearchRun]
METHODS: dict[str, tuple[str, Search, str]] = {
    "finite differences": ("differences", run_gradient_descent, figure_style.GREY),
    "with backup tasks": ("backups", run_gradient_descent, figure_style.TEXT_COLOR),
    "orthogonal search": ("orthogonal", run_gradient_descent, figure_style.ORANGE),
    "coded": ("coded", run_gradient_descent, figure_style.BLUE),
    "coded, L-BFGS": ("coded", run_lbfgs, figure_style.GREEN),
}


def format_row(name: str, runs: list[SearchRun]) -> list[object]:
    gaps = [
        np.mean([run.gap_after(END_SECONDS / divisor) for run in runs]) / runs[0].gaps[0]
        for divisor in (8, 4, 2, 1)
    ]
    n_steps = sum(len(run.gaps) - 1 for run in runs)
    per_step = [
        sum(run.seconds[-1] for run in runs) / n_steps,
        sum(run.n_evaluations for run in runs) / n_steps,
    ]
    return [name, *map(float, [*gaps, *per_step])]


def draw_gaps(runs_by_method: dict[str, list[SearchRun]], path: Any) -> None:
    figure, ((axes,),) = figure_style.new_figure(6.4, 3.6)
    time_grid = np.linspace(0, END_SECONDS, 400)
    for name, runs in runs_by_method.items():
        gaps = (
            np.array([[run.gap_after(elapsed_seconds) for elapsed_seconds in time_grid] for run in runs])
            / runs[0].gaps[0]
        )
        # The coded line coincides with that of orthogonal search.
        dashes = (4, 3) if name == "coded" else (None, None)
        line_style = {"color": METHODS[name][2], "label": name, "linewidth": 1.8, "dashes": dashes}
        axes.semilogy(time_grid, gaps.mean(axis=0), **line_style)
    axes.set(xlabel="virtual seconds", ylabel="f - f*, of that at the start", ylim=(1e-8, 1.5))
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    quick = parse_quick_flag(__doc__)
    problem, runs_by_method = LogisticProblem(), {}
    for name, (method, search, _) in METHODS.items():
        runs_by_method[name] = [
            search(problem, GradientSource(method, problem, seed)) for seed in range(2 if quick else 8)
        ]
    n_runs = len(runs_by_method["coded"])
    print(
        f"(f - f*) / (f(0) - f*) after virtual seconds, mean of {n_runs} runs; seconds and queries per step"
    )
    header = [*(f"{END_SECONDS / divisor:g} s" for divisor in (8, 4, 2, 1)), "s / step", "queries / step"]
    print_table(["method", *header], [format_row(name, runs) for name, runs in runs_by_method.items()])
    draw_gaps(runs_by_method, pages.output_folder(quick) / "figures" / "black-box.svg")


if __name__ == "__main__":
    main()
