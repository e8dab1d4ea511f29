"""A two-layer network at its global optimum while workers die, and a picture of what it has learned.

python examples/convex_network.py [picture.png]"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from polarmap.testing import Fault, FaultyExecutor

from polarmap.convexnn import ConvexMLPClassifier


def spirals(samples: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Points on two arms that wind about each other, and on which of them each lies."""
    stream = np.random.default_rng(0)
    turn, arm = np.sqrt(stream.uniform(0.05, 1, samples)) * 1.5 * np.pi, np.arange(samples) % 2
    points = np.stack([np.cos(turn + arm * np.pi), np.sin(turn + arm * np.pi)], axis=1) * turn[:, None]
    return points / 3 + 0.05 * stream.standard_normal(points.shape), arm


def draw(model: ConvexMLPClassifier, X: np.ndarray, y: np.ndarray, path: str) -> None:
    from matplotlib.figure import Figure

    grid = np.linspace(-1.9, 1.9, 200)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    share = model.predict_proba(plane)[:, 1].reshape(200, 200)
    figure = Figure(figsize=(4.2, 4.2))
    axes = figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
    axes.contourf(grid, grid, share, levels=20, cmap="RdYlBu", alpha=0.7)
    axes.scatter(*X.T, c=y, cmap="RdYlBu", edgecolors="#333333", s=22)
    figure.savefig(path, dpi=100)


def main() -> None:
    X, y = spirals()
    with ThreadPoolExecutor(8) as pool:
        unlucky = FaultyExecutor(pool, {1: Fault("raise", attempts=99)})  # in every product
        options = {"blocks": 4, "tasks": 6, "executor": unlucky}
        model = ConvexMLPClassifier(1e-2, n_gates=30, tol=1e-2, **options).fit(X, y)
    print(f"{model.score(X, y):.1%} right, by {model.coefs_[0].shape[1]} units")
    print(f"objective {model.objective_:.5f}, at most {model.dual_gap_:.1e} above that of every such network")
    print(f"{model.n_iter_} iterations; the last product recovered {model.report_.recovered}")
    if len(sys.argv) > 1:
        draw(model, X, y, sys.argv[1])


if __name__ == "__main__":
    main()
