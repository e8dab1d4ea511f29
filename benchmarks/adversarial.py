"""The attack of examples/adversarial.py with three sources of gradients: success, queries, time.

min |x - x0|^2 such that the next likely class wins by 0.05 and pixels stay in [0, 1], by SLSQP, on 16
workers of a virtual clock: a query takes 1 s, a worker 1 + Exp(0.1) times that and, with probability 5 %,
ten times more. Coded gradients end at the 12th arrival, finite differences at the last; orthogonal search
(Choromanski et al. 2018) measures 4 new orthonormal directions per worker and takes the first 12
workers', scaled up to an unbiased estimate. Of that SLSQP makes nothing, so it also climbs the margin by
steps of fixed length until the class changes. Queries are those that were started, whoever was waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import Bounds, NonlinearConstraint, minimize
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from benchmarks import is_quick, show
from polarmap import ReplayExecutor, coded_gradient

N, K, D, H = 16, 12, 64, 6e-6
MOST_ITERATIONS = 30


class Gradients:
    """A source of gradients that counts its queries and virtual seconds."""

    def __init__(self, kind: str, f: Callable[[Any], float], stream: np.random.Generator) -> None:
        sources = {"coded": self._coded, "differences": self._plain, "orthogonal": self._random}
        self._of = sources[kind]
        self._f, self._stream = f, stream
        self.queries, self.seconds = 0, 0.0

    def __call__(self, x: Any) -> Any:
        return self._of(x)

    def _times(self, queries: int) -> Any:
        slow = np.where(self._stream.random(N) < 0.05, 10.0, 1.0)
        return queries * (1 + self._stream.exponential(0.1, N)) * slow

    def _coded(self, x: Any) -> Any:
        clock = ReplayExecutor(dict(enumerate(self._times(2 * -(-D // K)))))
        found = coded_gradient(self._f, x, blocks=K, workers=N, executor=clock, progress=False)
        self.queries += found.evaluations_started
        self.seconds += found.report.seconds
        return found.gradient

    def _slopes(self, x: Any, directions: Any) -> Any:
        self.queries += 2 * D  # those of late workers, too
        return np.array([(self._f(x + H * z) - self._f(x - H * z)) / (2 * H) for z in directions])

    def _plain(self, x: Any) -> Any:
        self.seconds += self._times(2 * D // N).max()
        return self._slopes(x, np.eye(D))

    def _random(self, x: Any) -> Any:
        basis = np.linalg.qr(self._stream.standard_normal((D, D)))[0].reshape(N, D // N, D)
        seconds = self._times(2 * D // N)
        first = np.argsort(seconds)[:K]
        self.seconds += seconds[first[-1]]
        seen = basis[first].reshape(-1, D)
        return N / K * seen.T @ self._slopes(x, seen)


def attack(margin: Callable[[Any], float], gradient: Gradients, x0: Any) -> float | None:
    """The size of the change, or None if the class has not changed."""
    found = minimize(
        lambda x: np.sum((x - x0) ** 2),
        x0,
        jac=lambda x: 2 * (x - x0),
        bounds=Bounds(0, 1),
        constraints=NonlinearConstraint(margin, 0.05, np.inf, jac=gradient),
        method="SLSQP",
        options={"maxiter": MOST_ITERATIONS},
    ).x
    return float(np.linalg.norm(found - x0)) if margin(found) > 0 else None


def climb(margin: Callable[[Any], float], gradient: Gradients, x0: Any) -> float | None:
    """The same by steps of 0.1 along the gradient, for one that is too noisy for more."""
    x = x0
    for _ in range(MOST_ITERATIONS):
        if margin(x) >= 0.05:
            return float(np.linalg.norm(x - x0))
        slope = gradient(x)
        x = np.clip(x + 0.1 * slope / np.linalg.norm(slope), 0, 1)
    return None


def margin_of(model: Any, x0: Any) -> Callable[[Any], float]:
    """By how much the second likeliest class of x0 wins over the first, as log probabilities."""
    second, first = model.predict_log_proba(x0[None])[0].argsort()[-2:]

    def margin(x: Any) -> float:
        logs = model.predict_log_proba(np.reshape(x, (1, -1)))[0]
        return float(logs[second] - logs[first])

    return margin


METHODS = (("coded", attack), ("differences", attack), ("orthogonal", attack), ("orthogonal", climb))


def main() -> None:
    count = 5 if is_quick(__doc__) else 25
    X, y = load_digits(return_X_y=True)
    X = X / 16
    model = MLPClassifier((32,), "tanh", max_iter=600, random_state=0).fit(X[:1400], y[:1400])
    rows = []
    for kind, search in METHODS:
        stream, changes, sources = np.random.default_rng(0), [], []
        for x0 in X[1400 : 1400 + count]:
            margin = margin_of(model, x0)
            sources.append(Gradients(kind, margin, stream))
            changes.append(search(margin, sources[-1], x0))
        won = [change for change in changes if change is not None]
        means = [np.mean([one.queries for one in sources]), np.mean([one.seconds for one in sources])]
        change = float(np.median(won)) if won else np.nan
        rows.append([kind, search.__name__, f"{len(won)} of {count}", change, *map(float, means)])
    print(f"{N} workers, {D} pixels, at most {MOST_ITERATIONS} iterations; per digit")
    show(["gradients", "search", "succeed", "median change", "queries started", "virtual s"], rows)


if __name__ == "__main__":
    main()
