"""Black-box optimization under stragglers: coded gradients against what is done without a code.

n = 32 workers minimize a logistic loss in d = 96 coordinates from function values only, at equal time:

* finite differences: 96 directions on 32 workers, waits for all of them;
* random orthogonal directions (Choromanski et al. 2018, structured exploration): the same, waits for the
  first 24 workers and descends on the span of what they measured;
* coded: 96 directions coded for 32 workers (24 suffice), the exact gradient at the 24th arrival;
* coded, L-BFGS: the same gradients, used as only exact ones can be.

The clock is virtual, so that chance is the same for all: an evaluation takes 1 s, a worker of a step
1 + Exp(0.1) times that, and with probability 5 % ten times more. All methods but the last descend by steps
of 1 / L. Evaluations are those that were started, on late workers too. The second table is real time:
threads, evaluations that sleep, two workers that sleep longer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from benchmarks import show
from polarmap import Fault, FaultyExecutor, ReplayExecutor, coded_gradient

N, K, D = 32, 24, 96
SLOW_SHARE, SLOW_FACTOR = 0.05, 10.0


class Problem:
    """A penalized logistic loss, its minimum and its smoothness."""

    def __init__(self, seed: int = 0) -> None:
        stream = np.random.default_rng(seed)
        self._A = stream.standard_normal((400, D)) * np.geomspace(1, 0.2, D)
        self._y = stream.random(400) < expit(self._A @ stream.standard_normal(D))
        self.smoothness = 0.25 * np.linalg.norm(self._A, 2) ** 2 / 400 + 1e-3
        self.least = minimize(self, np.zeros(D), jac=self.gradient, tol=1e-12).fun

    def __call__(self, x: Any) -> float:
        eta = self._A @ x
        return float(np.mean(np.logaddexp(0, eta) - self._y * eta) + 5e-4 * x @ x)

    def gradient(self, x: Any) -> Any:
        return self._A.T @ (expit(self._A @ x) - self._y) / 400 + 1e-3 * x


def run_times(stream: np.random.Generator, evaluations: int) -> Any:
    """Virtual seconds of the n workers in one step."""
    slow = np.where(stream.random(N) < SLOW_SHARE, SLOW_FACTOR, 1.0)
    return evaluations * (1 + stream.exponential(0.1, N)) * slow


Step = Callable[[Any, np.random.Generator], tuple[Any, float, int]]


def finite_differences(f: Problem) -> Step:
    """x -> next x, seconds, evaluations."""

    def step(x: Any, stream: np.random.Generator) -> tuple[Any, float, int]:
        h = 6e-6
        gradient = np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(D)])
        return x - gradient / f.smoothness, run_times(stream, 2 * D // N).max(), 2 * D

    return step


def orthogonal_search(f: Problem) -> Step:
    """Three directions per worker, all orthonormal and new in every step; those of the first K workers."""

    def step(x: Any, stream: np.random.Generator) -> tuple[Any, float, int]:
        h = 6e-6
        basis = np.linalg.qr(stream.standard_normal((D, D)))[0].reshape(N, D // N, D)
        seconds = run_times(stream, 2 * D // N)
        first = np.argsort(seconds)[:K]
        seen = basis[first].reshape(-1, D)
        slopes = np.array([(f(x + h * z) - f(x - h * z)) / (2 * h) for z in seen])
        return x - seen.T @ slopes / f.smoothness, seconds[first[-1]], 2 * D

    return step


def coded(f: Problem) -> Step:
    """The gradient of the first arrivals that determine it."""

    def step(x: Any, stream: np.random.Generator) -> tuple[Any, float, int]:
        clock = ReplayExecutor(dict(enumerate(run_times(stream, 2 * D // K))))
        found = coded_gradient(f, x, blocks=K, workers=N, executor=clock, progress=False)
        return x - found.gradient / f.smoothness, found.report.seconds, found.evaluations_started

    return step


def descend(step: Step, f: Problem, seed: int, until: float) -> tuple[list[float], list[float], int]:
    """Seconds, gaps f - f* after every step, and evaluations, until a time."""
    stream, x = np.random.default_rng(seed), np.zeros(D)
    seconds, gaps, evaluations = [0.0], [f(x) - f.least], 0
    while seconds[-1] < until:
        x, took, count = step(x, stream)
        seconds.append(seconds[-1] + took)
        gaps.append(f(x) - f.least)
        evaluations += count
    return seconds, gaps, evaluations


def quasi_newton(f: Problem, seed: int, until: float) -> tuple[list[float], list[float], int]:
    """The same for L-BFGS on coded gradients; a value of f counts as one evaluation of the driver."""
    stream, counts = np.random.default_rng(seed), [0]
    seconds, gaps = [0.0], [f(np.zeros(D)) - f.least]

    def value_and_gradient(x: Any) -> tuple[float, Any]:
        moved, took, count = coded(f)(x, stream)
        seconds.append(seconds[-1] + took + 1.0)
        counts[0] += count + 1
        gaps.append(min(gaps[-1], f(x) - f.least))
        if seconds[-1] > until:
            raise StopIteration
        return f(x), (x - moved) * f.smoothness

    with suppress(StopIteration):
        minimize(value_and_gradient, np.zeros(D), jac=True, method="L-BFGS-B", tol=1e-14)
    return seconds, gaps, counts[0]


def compare(runs: int, until: float) -> dict[str, list[Any]]:
    f = Problem()
    steps = {
        "finite differences": finite_differences(f),
        "orthogonal search": orthogonal_search(f),
        "coded": coded(f),
    }
    found = {name: [descend(step, f, run, until) for run in range(runs)] for name, step in steps.items()}
    found["coded, L-BFGS"] = [quasi_newton(f, run, until) for run in range(runs)]
    return found


def gap_at(run: Any, moment: float) -> float:
    """What had been reached by then."""
    seconds, gaps, _ = run
    return float(gaps[np.searchsorted(seconds, moment, side="right") - 1])


def table(found: dict[str, list[Any]], until: float) -> None:
    moments = [until / 8, until / 4, until / 2, until]
    print(f"f - f* after so many virtual seconds, mean of {len(found['coded'])} runs; f(0) - f* = 1")
    header = [*(f"{moment:g} s" for moment in moments), "s / step", "started / step"]
    rows = []
    for name, runs in found.items():
        start = runs[0][1][0]
        gaps = [float(np.mean([gap_at(run, moment) for run in runs])) / start for moment in moments]
        steps = sum(len(run[0]) - 1 for run in runs)
        per_step = [sum(run[0][-1] for run in runs) / steps, sum(run[2] for run in runs) / steps]
        rows.append((name, [*gaps, *per_step]))
    show([f"{'':18}", *header], [[f"{name:18}", *row] for name, row in rows])


def draw(found: dict[str, list[Any]], until: float, path: str) -> None:
    from polarmap.plot import canvas

    figure, axes = canvas.blank(6.4, 3.6)
    grid = np.linspace(0, until, 400)
    colours = [canvas.GREY, canvas.ORANGE, canvas.BLUE, canvas.GREEN]
    for (name, runs), colour in zip(found.items(), colours):
        gaps = np.array([[gap_at(run, moment) for moment in grid] for run in runs]) / runs[0][1][0]
        dashes = (4, 3) if name == "coded" else (None, None)  # it lies on the line of orthogonal search
        axes[0, 0].semilogy(grid, gaps.mean(axis=0), color=colour, label=name, linewidth=1.8, dashes=dashes)
    axes[0, 0].set(xlabel="virtual seconds", ylabel="f - f*, of that at the start", ylim=(1e-8, 1.5))
    axes[0, 0].legend(frameon=False)
    figure.savefig(path)


def real_time(runs: int) -> None:
    """Seconds of one gradient on threads; evaluations sleep 10 ms, two workers 2 s."""
    f, x = Problem(), np.full(D, 0.1)

    def slow(z: Any) -> float:
        time.sleep(0.01)
        return f(z)

    def plain(worker: int, sleep: float) -> None:
        time.sleep(sleep)
        for _ in range(2 * D // N):
            slow(x)

    sleepers = {3: Fault("sleep", 2.0), 11: Fault("sleep", 2.0)}
    rows = []
    for name, faults in (("none", {}), ("2 of 32", sleepers)):
        waits, codes = [], []
        for _ in range(runs):
            with ThreadPoolExecutor(N) as pool:
                began = time.perf_counter()
                list(pool.map(plain, range(N), [faults[i].seconds if i in faults else 0 for i in range(N)]))
                waits.append(time.perf_counter() - began)
            with ThreadPoolExecutor(N) as pool:
                began = time.perf_counter()
                coded_gradient(
                    slow, x, blocks=K, workers=N, executor=FaultyExecutor(pool, faults), progress=False
                )
                codes.append(time.perf_counter() - began)
        rows.append([name, float(np.median(waits)), float(np.median(codes))])
    print(f"\nseconds per gradient on 32 threads, evaluations of 10 ms, median of {runs}")
    show(["stragglers", "plain", "coded"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--figure", help="where to draw f - f* against time")
    chosen = parser.parse_args()
    until = 1600.0
    found = compare(2 if chosen.quick else 8, until)
    table(found, until)
    if chosen.figure:
        draw(found, until, chosen.figure)
    real_time(1 if chosen.quick else 5)


if __name__ == "__main__":
    main()
