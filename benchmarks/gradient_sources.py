"""Sources of gradients of a black box on the workers of a virtual clock, so that chance is the same for all.

A query takes 1 s, a worker 1 + Exp(0.1) times that and, with probability 5 %, ten times more; some die.

* coded: coded_gradient, whose slopes are there at the k-th arrival;
* differences: along all coordinates, waits for all workers; what a dead one had starts again when all others
  are there;
* backups: the same, but what takes 1.5 times the median gets a copy, late copies too, and the first counts;
* orthogonal: new random orthonormal directions (Choromanski et al. 2018), those of the first k workers, which
  give a projection of the gradient.

Queries are those started, on late workers too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.fft import dct

from polarmap import ReplayExecutor, coded_gradient
from polarmap.maps.gradients import DEFAULT_STEP

BATCH = 32  # slopes that are measured in one call


class Clock:
    """Virtual seconds of the workers, by chance that does not depend on what they compute.

    dying : the share of workers that die in every step.
    """

    def __init__(self, workers: int, seed: int, dying: float = 0.0) -> None:
        self.workers, self.seed, self._dying = workers, seed, dying
        self._stream = np.random.default_rng(seed)

    def times(self, queries: int) -> Any:
        """Until each worker has answered so many; inf for one that dies."""
        factors = np.where(self._stream.random(self.workers) < 0.05, 10.0, 1.0)
        factors[self._stream.random(self.workers) < self._dying] = np.inf
        return queries * (1 + self._stream.exponential(0.1, self.workers)) * factors

    def until_all(self, queries: int, backups: bool) -> tuple[float, int]:
        """Seconds until all have answered, with copies or further attempts, and queries started."""
        ended, started = self.times(queries), self.workers
        late = moment = 1.5 * float(np.median(ended))
        while backups and (running := ended > moment).any():
            ended = np.minimum(ended, np.where(running, moment + self.times(queries), np.inf))
            started += int(running.sum())
            moment += late
        while not np.isfinite(ended).all():
            lost = np.isinf(ended)
            ended = np.where(lost, ended[~lost].max() + self.times(queries), ended)
            started += int(lost.sum())
        return float(ended.max()), started * queries


class Gradients:
    """One of the sources, which counts its calls, queries and virtual seconds.

    f : takes one x or, along leading axes, many.
    blocks : k, of the workers of the clock.
    """

    def __init__(
        self, kind: str, f: Callable[[Any], Any], clock: Clock, blocks: int, scheme: str = "central"
    ) -> None:
        self.kind, self._f, self._clock = kind, f, clock
        self.blocks, self.workers, self._scheme = blocks, clock.workers, scheme
        self._stream = np.random.default_rng(clock.seed)
        self.calls, self.queries, self.seconds = 0, 0, 0.0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if self.kind == "coded":
            return self._coded(x)
        # Of slopes along all coordinates, whose f(x) everybody knows; coded ones find it for themselves.
        share = x.size // self.workers * (2 if self._scheme == "central" else 1)
        return self._orthogonal(x, share) if self.kind == "orthogonal" else self._differences(x, share)

    def _coded(self, x: Any) -> Any:
        slopes = -(-x.size // self.blocks)
        times = self._clock.times(2 * slopes if self._scheme == "central" else slopes + 2)
        clock = ReplayExecutor(dict(enumerate(times)))
        options: dict[str, Any] = {"scheme": self._scheme, "executor": clock, "progress": False}
        found = coded_gradient(self._f, x, blocks=self.blocks, workers=self.workers, **options)
        self.queries += found.evaluations_started
        self.seconds += found.report.seconds
        return found.gradient

    def _differences(self, x: Any, share: int) -> Any:
        seconds, started = self._clock.until_all(share, backups=self.kind == "backups")
        self.seconds += seconds
        self.queries += started
        return self._slopes(x, np.eye(x.size)).reshape(x.shape)

    def _orthogonal(self, x: Any, share: int) -> Any:
        """The gradient's projection on what the first workers have measured."""
        self.seconds += np.sort(self._clock.times(share))[self.blocks - 1]
        self.queries += self.workers * share
        seen = directions(self.blocks * x.size // self.workers, x.size, self._stream)
        return (seen.T @ self._slopes(x, seen)).reshape(x.shape)

    def _slopes(self, x: Any, along: Any) -> Any:
        h, found = DEFAULT_STEP[self._scheme], []
        for rows in np.array_split(h * along, -(-len(along) // BATCH)):
            steps = rows.reshape(-1, *x.shape)
            if self._scheme == "central":
                found.append((self._f(x + steps) - self._f(x - steps)) / (2 * h))
            else:
                found.append((self._f(x + steps) - self._f(x)) / h)
        return np.concatenate(found)


def directions(count: int, size: int, stream: np.random.Generator) -> Any:
    """Orthonormal rows (count, size) in random directions: of the cosine transform, twice, random signs."""
    rows = np.eye(size)[stream.permutation(size)[:count]]
    for _ in range(2):
        rows = dct(rows, norm="ortho") * stream.choice([-1.0, 1.0], size)
    return rows


def unbiased(gradient: Gradients) -> Callable[[Any], Any]:
    """Of projections their unbiased estimate of the gradient."""
    scale = gradient.workers / gradient.blocks if gradient.kind == "orthogonal" else 1.0
    return lambda x: scale * gradient(x)
