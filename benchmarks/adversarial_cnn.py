"""The attack of examples/adversarial_cnn with four sources of gradients: success, queries, time.

The least change of an image, 3,072 numbers, for which the next likely class wins, on 64 workers of a virtual
clock: a query takes 1 s, a worker 1 + Exp(0.1) times that and, with probability 5 %, ten times more; 1 % die.

* coded: 48 blocks on 64 workers, whose slopes are there at the 48th arrival;
* differences: all pixels, waits for all workers; what a dead one had starts again when all others are there;
* backups: the same, but what takes 1.5 times the median gets a copy, late copies too, and the first counts;
* orthogonal: new random orthonormal directions (Choromanski et al. 2018), those of the first 48 workers.

The last gives a projection of the gradient, and the search for the "least" change gets 64 / 48 of it, an
unbiased estimate. The other, "onward", takes from wherever it is the shortest step by which the class would
change if the margin were linear and the projection all, until it has changed. Queries are those started.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.fft import dct

from benchmarks import ROOT, is_quick, show
from polarmap import ReplayExecutor, coded_gradient
from polarmap.maps.gradients import DEFAULT_STEP

sys.path.insert(0, str(ROOT / "examples" / "adversarial_cnn"))
from images import draw
from least_change import closest, least_change
from margin import margin_of
from network import forward
from training import trained

sys.path.pop(0)  # else Lithops would find the example's __main__ in it for that of any program

N, K, D = 64, 48, 32 * 32 * 3
BATCH = 32
MOST = 12
COUNTS = ("calls", "queries", "seconds")


class Clock:
    """Virtual seconds of the workers, by chance that does not depend on what they compute."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.default_rng(seed)

    def times(self, queries: int) -> Any:
        """Until each worker has answered so many; inf for one that dies."""
        factors = np.where(self._stream.random(N) < 0.05, 10.0, 1.0)
        factors[self._stream.random(N) < 0.01] = np.inf
        return queries * (1 + self._stream.exponential(0.1, N)) * factors

    def until_all(self, queries: int, backups: bool) -> tuple[float, int]:
        """Seconds until all have answered, with copies or further attempts, and queries started."""
        ended, started = self.times(queries), N
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
    """A source of gradients of a margin that counts its queries and virtual seconds."""

    def __init__(self, kind: str, scheme: str, margin: Callable[[Any], Any], seed: int) -> None:
        self.kind, self._scheme, self._margin = kind, scheme, margin
        self._clock, self._stream = Clock(seed), np.random.default_rng(seed)
        # Of slopes along all the pixels, whose f(x) everybody knows; coded ones find it for themselves.
        self._share = D // N * (2 if scheme == "central" else 1)
        self.calls, self.queries, self.seconds = 0, 0, 0.0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if self.kind == "coded":
            return self._coded(x)
        return self._orthogonal(x) if self.kind == "orthogonal" else self._differences(x)

    def _coded(self, x: Any) -> Any:
        per_worker = 2 * D // K if self._scheme == "central" else D // K + 2
        clock = ReplayExecutor(dict(enumerate(self._clock.times(per_worker))))
        options: dict[str, Any] = {"scheme": self._scheme, "executor": clock, "progress": False}
        found = coded_gradient(self._margin, x, blocks=K, workers=N, **options)
        self.queries += found.evaluations_started
        self.seconds += found.report.seconds
        return found.gradient

    def _differences(self, x: Any) -> Any:
        seconds, started = self._clock.until_all(self._share, backups=self.kind == "backups")
        self.seconds += seconds
        self.queries += started
        return self._slopes(x, np.eye(D)).reshape(x.shape)

    def _orthogonal(self, x: Any) -> Any:
        """The gradient's projection on what the first K workers have measured."""
        seconds = self._clock.times(self._share)
        self.seconds += np.sort(seconds)[K - 1]
        self.queries += N * self._share
        seen = directions(K * D // N, self._stream)
        return (seen.T @ self._slopes(x, seen)).reshape(x.shape)

    def _slopes(self, x: Any, along: Any) -> Any:
        h, found = DEFAULT_STEP[self._scheme], []
        for rows in np.array_split(h * along, -(-len(along) // BATCH)):
            steps = rows.reshape(-1, *x.shape)
            if self._scheme == "central":
                found.append((self._margin(x + steps) - self._margin(x - steps)) / (2 * h))
            else:
                found.append((self._margin(x + steps) - self._margin(x)) / h)
        return np.concatenate(found)


def directions(count: int, stream: np.random.Generator) -> Any:
    """Orthonormal rows (count, D) in random directions: of the cosine transform, twice, with random signs."""
    rows = np.eye(D)[stream.permutation(D)[:count]]
    for _ in range(2):
        rows = dct(rows, norm="ortho") * stream.choice([-1.0, 1.0], D)
    return rows


def least(margin: Callable[[Any], Any], gradient: Gradients, image: Any) -> Any:
    """The least change, as in the example; of projections, their unbiased estimate."""
    scale = N / K if gradient.kind == "orthogonal" else 1.0
    return least_change(margin, lambda x: scale * gradient(x), image, MOST)


def onward(margin: Callable[[Any], Any], gradient: Gradients, image: Any) -> Any:
    """Every step the shortest by which the class changes if the margin is linear, from the last one's end."""
    x = image
    for _ in range(MOST):
        x = closest(x, x, margin(x) - 0.05, gradient(x))
        if margin(x) > 0:
            return x
    return None


METHODS = (
    *[(kind, "forward", least) for kind in ("coded", "differences", "backups", "orthogonal")],
    ("coded", "forward", onward),
    ("orthogonal", "forward", onward),
    *[(kind, "central", least) for kind in ("coded", "differences", "backups")],
)


def main() -> None:
    count = 2 if is_quick(__doc__) else 10
    images, labels = draw(2200, seed=0)
    kernels = trained(images[:2000], labels[:2000])
    print(f"{N} workers, {D} pixels, at most {MOST} gradients; mean per image")
    header = ["gradients", "search", "scheme", "succeed", "median change", "gradients", "queries started"]
    show(
        [*header, "virtual s"], (row_of(*method, kernels, images[2000 : 2000 + count]) for method in METHODS)
    )


def row_of(kind: str, scheme: str, search: Callable[..., Any], kernels: Any, images: Any) -> list[object]:
    """How many images it changes, by how much, at which cost."""
    changes, sources = [], []
    for number, image in enumerate(images):
        margin = margin_of(kernels, image)
        sources.append(Gradients(kind, scheme, margin, seed=number))
        found = search(margin, sources[-1], image)
        if found is not None and differs(kernels, image, found):
            changes.append(float(np.linalg.norm(found - image)))
    change = float(np.median(changes)) if changes else np.nan
    costs = [float(np.mean([getattr(one, name) for one in sources])) for name in COUNTS]
    return [kind, search.__name__, scheme, f"{len(changes)} of {len(images)}", change, *costs]


def differs(kernels: Any, image: Any, found: Any) -> bool:
    """Whether the network says another class, asked again."""
    one, other = forward(kernels, np.array([image, found]))[-1].reshape(2, -1).argmax(axis=1)
    return bool(one != other)


if __name__ == "__main__":
    main()
