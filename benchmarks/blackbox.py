"""Black-box optimization under stragglers: coded gradients against what is done without a code.

32 workers of a virtual clock minimize a logistic loss in 96 coordinates from function values only, at equal
time. A query takes 1 s, a worker 1 + Exp(0.1) times that and, with probability 5 %, ten times more, by chance
that is the same for all sources of gradients:

* coded: coded_gradient, whose slopes are there at the k-th arrival;
* differences: along all coordinates, waits for all workers;
* backups: the same, but what takes 1.5 times the median gets a copy, late copies too, and the first counts;
* orthogonal: new random orthonormal directions (Choromanski et al. 2018), those of the first k workers, which
  give a projection of the gradient.

All descend by steps of 1 / L along what their gradients are, but for L-BFGS, which uses coded ones as only
exact ones can be. Queries are those started, on late workers too. Draws docs/figures/black-box.svg; with
--quick to build/comparison/.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from scipy.fft import dct
from scipy.optimize import minimize
from scipy.special import expit

from benchmarks import is_quick, pages, show
from polarmap import coded_gradient
from polarmap.maps.gradients import DEFAULT_STEP
from polarmap.plot import figure_style
from polarmap.testing import ReplayExecutor

N, K, D = 32, 24, 96
UNTIL = 1600.0  # virtual seconds


class Problem:
    """A penalized logistic loss, its minimum and its smoothness."""

    def __init__(self, seed: int = 0) -> None:
        stream = np.random.default_rng(seed)
        self._A = stream.standard_normal((400, D)) * np.geomspace(1, 0.2, D)
        self._y = stream.random(400) < expit(self._A @ stream.standard_normal(D))
        self.smoothness = 0.25 * np.linalg.norm(self._A, 2) ** 2 / 400 + 1e-3
        self.least = minimize(self, np.zeros(D), jac=self.gradient, tol=1e-12).fun

    def __call__(self, x: Any) -> Any:
        eta = x @ self._A.T
        return np.mean(np.logaddexp(0, eta) - self._y * eta, axis=-1) + 5e-4 * (x * x).sum(axis=-1)

    def gradient(self, x: Any) -> Any:
        return self._A.T @ (expit(self._A @ x) - self._y) / 400 + 1e-3 * x


class Clock:
    """Virtual seconds of the workers, by chance that does not depend on what they compute."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.default_rng(seed)

    def times(self, queries: int) -> Any:
        """Until each worker has answered so many."""
        factors = np.where(self._stream.random(N) < 0.05, 10.0, 1.0)
        return queries * (1 + self._stream.exponential(0.1, N)) * factors

    def until_all(self, queries: int, backups: bool) -> tuple[float, int]:
        """Seconds until all have answered, with copies or without, and queries started."""
        ended, started = self.times(queries), N
        late = moment = 1.5 * float(np.median(ended))
        while backups and (running := ended > moment).any():
            ended = np.minimum(ended, np.where(running, moment + self.times(queries), np.inf))
            started += int(running.sum())
            moment += late
        return float(ended.max()), started * queries


class Gradients:
    """One of the sources, which counts its calls, queries and virtual seconds; f takes one x or many."""

    def __init__(self, kind: str, f: Callable[[Any], Any], seed: int) -> None:
        self.kind, self._f = kind, f
        self._clock, self._stream = Clock(seed), np.random.default_rng(seed)
        self.calls, self.queries, self.seconds = 0, 0, 0.0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if self.kind == "coded":
            return self._coded(x)
        share = 2 * x.size // N  # of the queries, for each worker
        if self.kind == "orthogonal":
            return self._orthogonal(x, share)
        seconds, started = self._clock.until_all(share, backups=self.kind == "backups")
        self.seconds += seconds
        self.queries += started
        return self._slopes(x, np.eye(x.size))

    def _coded(self, x: Any) -> Any:
        clock = ReplayExecutor(dict(enumerate(self._clock.times(2 * -(-x.size // K)))))
        found = coded_gradient(self._f, x, blocks=K, tasks=N, executor=clock, progress=False)
        self.queries += found.evaluations_started
        self.seconds += found.report.seconds
        return found.gradient

    def _orthogonal(self, x: Any, share: int) -> Any:
        """The gradient's projection on what the first workers have measured."""
        self.seconds += np.sort(self._clock.times(share))[K - 1]
        self.queries += N * share
        seen = directions(K * x.size // N, x.size, self._stream)
        return seen.T @ self._slopes(x, seen)

    def _slopes(self, x: Any, along: Any) -> Any:
        h = DEFAULT_STEP["central"]
        return (self._f(x + h * along) - self._f(x - h * along)) / (2 * h)


def directions(count: int, size: int, stream: np.random.Generator) -> Any:
    """Orthonormal rows (count, size) in random directions: of the cosine transform, twice, random signs."""
    rows = np.eye(size)[stream.permutation(size)[:count]]
    for _ in range(2):
        rows = dct(rows, norm="ortho") * stream.choice([-1.0, 1.0], size)
    return rows


class Run(NamedTuple):
    """Seconds and gaps f - f* after every step, and evaluations of f that were started."""

    seconds: list[float]
    gaps: list[float]
    evaluations: int

    def gap_at(self, moment: float) -> float:
        """What had been reached by then."""
        return float(self.gaps[np.searchsorted(self.seconds, moment, side="right") - 1])


def descend(f: Problem, source: Gradients) -> Run:
    """Steps of 1 / L."""
    x = np.zeros(D)
    seconds, gaps = [0.0], [f(x) - f.least]
    while seconds[-1] < UNTIL:
        x = x - source(x) / f.smoothness
        seconds.append(source.seconds)
        gaps.append(f(x) - f.least)
    return Run(seconds, gaps, source.queries)


def quasi_newton(f: Problem, source: Gradients) -> Run:
    """L-BFGS; a value of f counts as one evaluation of the driver."""
    seconds, gaps = [0.0], [f(np.zeros(D)) - f.least]

    def value_and_gradient(x: Any) -> tuple[float, Any]:
        slope = source(x)
        seconds.append(source.seconds + source.calls)
        gaps.append(min(gaps[-1], f(x) - f.least))
        if seconds[-1] > UNTIL:
            raise StopIteration
        return float(f(x)), slope

    with suppress(StopIteration):
        minimize(value_and_gradient, np.zeros(D), jac=True, method="L-BFGS-B", tol=1e-14)
    return Run(seconds, gaps, source.queries + source.calls)


Search = Callable[[Problem, Gradients], Run]
METHODS: dict[str, tuple[str, Search, str]] = {
    "finite differences": ("differences", descend, figure_style.GREY),
    "with backup tasks": ("backups", descend, figure_style.TEXT_COLOR),
    "orthogonal search": ("orthogonal", descend, figure_style.ORANGE),
    "coded": ("coded", descend, figure_style.BLUE),
    "coded, L-BFGS": ("coded", quasi_newton, figure_style.GREEN),
}


def row(name: str, runs: list[Run]) -> list[object]:
    gaps = [np.mean([one.gap_at(UNTIL / part) for one in runs]) / runs[0].gaps[0] for part in (8, 4, 2, 1)]
    steps = sum(len(one.gaps) - 1 for one in runs)
    per_step = [sum(one.seconds[-1] for one in runs) / steps, sum(one.evaluations for one in runs) / steps]
    return [name, *map(float, [*gaps, *per_step])]


def draw(found: dict[str, list[Run]], path: Any) -> None:
    figure, ((axes,),) = figure_style.new_figure(6.4, 3.6)
    grid = np.linspace(0, UNTIL, 400)
    for name, runs in found.items():
        gaps = np.array([[one.gap_at(moment) for moment in grid] for one in runs]) / runs[0].gaps[0]
        dashes = (4, 3) if name == "coded" else (None, None)  # it lies on the line of orthogonal search
        look = {"color": METHODS[name][2], "label": name, "linewidth": 1.8, "dashes": dashes}
        axes.semilogy(grid, gaps.mean(axis=0), **look)
    axes.set(xlabel="virtual seconds", ylabel="f - f*, of that at the start", ylim=(1e-8, 1.5))
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    quick = is_quick(__doc__)
    f, found = Problem(), {}
    for name, (kind, search, _) in METHODS.items():
        found[name] = [search(f, Gradients(kind, f, run)) for run in range(2 if quick else 8)]
    print(f"f - f* after so many virtual seconds, mean of {len(found['coded'])} runs; f(0) - f* = 1")
    header = [*(f"{UNTIL / part:g} s" for part in (8, 4, 2, 1)), "s / step", "started / step"]
    show(["", *header], [row(name, runs) for name, runs in found.items()])
    draw(found, pages.folder(quick) / "figures" / "black-box.svg")


if __name__ == "__main__":
    main()
