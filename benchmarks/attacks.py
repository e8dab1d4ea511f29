"""The attacks of examples/adversarial.py and examples/adversarial_cnn by several sources of gradients.

The least change of an image for which the next likely class wins, on the workers of a virtual clock
(`gradient_sources`), of which 1 % die in every gradient of the colour images. "slsqp" and "least" search for
it by unbiased estimates of the gradient. Orthogonal directions make nothing of that, so there are simpler
searches, too: "climb" by steps of fixed length, "onward" by the shortest step for which the class would
change if the margin were linear, from wherever it is, until it has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, NonlinearConstraint, minimize
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from benchmarks import ROOT, is_quick, show
from benchmarks.gradient_sources import Clock, Gradients, unbiased

sys.path.insert(0, str(ROOT / "examples" / "adversarial_cnn"))
from images import draw
from least_change import closest, least_change
from margin import margin_of
from training import trained

sys.path.pop(0)  # else Lithops would find the example's __main__ in it for that of any program

WINS = 0.05  # by how much the other class is to win
Margin = Callable[[Any], Any]
Search = Callable[[Margin, Gradients, Any], Any]  # the changed image, or None


def slsqp(margin: Margin, gradient: Gradients, image: Any) -> Any:
    """min |x - image|^2 such that the other class wins, by 30 iterations."""
    return minimize(
        lambda x: np.sum((x - image) ** 2),
        image,
        jac=lambda x: 2 * (x - image),
        bounds=Bounds(0, 1),
        constraints=NonlinearConstraint(margin, WINS, np.inf, jac=unbiased(gradient)),
        method="SLSQP",
        options={"maxiter": 30},
    ).x


def climb(margin: Margin, gradient: Gradients, image: Any) -> Any:
    """At most 30 steps of 0.1 along the gradient."""
    x = image
    for _ in range(30):
        if margin(x) >= WINS:
            return x
        slope = gradient(x)
        x = np.clip(x + 0.1 * slope / np.linalg.norm(slope), 0, 1)
    return None


def least(margin: Margin, gradient: Gradients, image: Any) -> Any:
    """The least change, as in the example, by at most 12 gradients."""
    return least_change(margin, unbiased(gradient), image, 12)


def onward(margin: Margin, gradient: Gradients, image: Any) -> Any:
    """At most 12 steps, each the shortest by which the class changes if the margin is linear."""
    x = image
    for _ in range(12):
        x = closest(x, x, margin(x) - WINS, gradient(x))
        if margin(x) > 0:
            return x
    return None


class Attack(NamedTuple):
    """Images and their margins, workers and blocks of a gradient, what is tried: source, scheme, search."""

    images: list[tuple[Any, Margin]]
    workers: int
    blocks: int
    dying: float
    methods: list[tuple[str, str, Search]]


def digits(count: int) -> Attack:
    """Handwritten ones, of a small network of tanh."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    model = MLPClassifier((32,), "tanh", max_iter=600, random_state=0).fit(X[:1400], y[:1400])

    def margin_at(image: Any) -> Margin:
        second, first = model.predict_log_proba(image[None])[0].argsort()[-2:]

        def margin(x: Any) -> Any:
            logs = model.predict_log_proba(np.reshape(x, (-1, len(image))))
            return (logs[:, second] - logs[:, first]).reshape(x.shape[:-1])

        return margin

    methods = [(kind, "central", slsqp) for kind in ("coded", "differences", "orthogonal")]
    images = [(image, margin_at(image)) for image in X[1400 : 1400 + count]]
    return Attack(images, 16, 12, 0.0, [*methods, ("orthogonal", "central", climb)])


def colour_images(count: int) -> Attack:
    """Those of 32 x 32 x 3 numbers, of a convolutional network."""
    images, labels = draw(2200, seed=0)
    kernels = trained(images[:2000], labels[:2000])
    methods = [
        *[(kind, "forward", least) for kind in ("coded", "differences", "backups", "orthogonal")],
        ("coded", "forward", onward),
        ("orthogonal", "forward", onward),
        *[(kind, "central", least) for kind in ("coded", "differences", "backups")],
    ]
    chosen = [(image, margin_of(kernels, image)) for image in images[2000 : 2000 + count]]
    return Attack(chosen, 64, 48, 0.01, methods)


def rows(attack: Attack) -> Iterator[list[object]]:
    """Of each method: how many images it changes, by how much, at which cost."""
    for kind, scheme, search in attack.methods:
        changes, sources = [], []
        for seed, (image, margin) in enumerate(attack.images):
            clock = Clock(attack.workers, seed, attack.dying)
            sources.append(Gradients(kind, margin, clock, attack.blocks, scheme))
            found = search(margin, sources[-1], image)
            if found is not None and margin(found) > 0:
                changes.append(float(np.linalg.norm(found - image)))
        change = float(np.median(changes)) if changes else ""
        costs = [
            float(np.mean([getattr(one, name) for one in sources]))
            for name in ("calls", "queries", "seconds")
        ]
        yield [kind, search.__name__, scheme, f"{len(changes)} of {len(attack.images)}", change, *costs]


def main() -> None:
    quick = is_quick(__doc__)
    header = ["search", "scheme", "succeed", "median change", "gradients", "queries started", "virtual s"]
    for make, count in ((digits, 5 if quick else 25), (colour_images, 1 if quick else 10)):
        attack = make(count)
        print(f"\n{make.__name__.replace('_', ' ')}: {attack.workers} workers; means per image")
        show(["gradients", *header], rows(attack))


if __name__ == "__main__":
    main()
