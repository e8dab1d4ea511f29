"""The attack of examples/adversarial_cnn by several sources of gradients.

The least change of a colour image for which the next likely class wins, on the workers of a virtual clock
(`gradient_sources`), of which 1 % die in every gradient. "least" searches for it by unbiased estimates of the
gradient. Orthogonal directions make nothing of that, so there is a simpler search, too: "onward" by the
shortest step for which the class would change if the margin were linear, until it has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

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


WORKERS, BLOCKS, DYING = 64, 48, 0.01
METHODS: list[tuple[str, str, Search]] = [  # source of gradients, scheme, search
    *[(kind, "forward", least) for kind in ("coded", "differences", "backups", "orthogonal")],
    ("coded", "forward", onward),
    ("orthogonal", "forward", onward),
    *[(kind, "central", least) for kind in ("coded", "differences", "backups")],
]


def rows(images: list[tuple[Any, Margin]]) -> Iterator[list[object]]:
    """Of each method: how many images it changes, by how much, at which cost."""
    for kind, scheme, search in METHODS:
        changes, sources = [], []
        for seed, (image, margin) in enumerate(images):
            sources.append(Gradients(kind, margin, Clock(WORKERS, seed, DYING), BLOCKS, scheme))
            found = search(margin, sources[-1], image)
            if found is not None and margin(found) > 0:
                changes.append(float(np.linalg.norm(found - image)))
        change = float(np.median(changes)) if changes else ""
        costs = [
            float(np.mean([getattr(one, name) for one in sources]))
            for name in ("calls", "queries", "seconds")
        ]
        yield [kind, search.__name__, scheme, f"{len(changes)} of {len(images)}", change, *costs]


def main() -> None:
    count = 1 if is_quick(__doc__) else 10
    images, labels = draw(2200, seed=0)
    kernels = trained(images[:2000], labels[:2000])
    chosen = [(image, margin_of(kernels, image)) for image in images[2000 : 2000 + count]]
    print(f"{WORKERS} workers; means per image")
    header = ["search", "scheme", "succeed", "median change", "gradients", "queries started", "virtual s"]
    show(["gradients", *header], rows(chosen))


if __name__ == "__main__":
    main()
