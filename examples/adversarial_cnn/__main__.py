"""Images that a convolutional network takes for others: the least change, found from its scores alone.

It needs the extras `linalg` and `plot`."""

from __future__ import annotations

import sys

import numpy as np
from images import SHAPES, draw
from least_change import least_change
from margin import margin_of
from network import forward
from training import accuracy, trained

from polarmap import CodedGradient
from polarmap.testing import Fault, FaultyExecutor


def main(count: int = 4, path: str = "") -> None:
    images, labels = draw(2200, seed=0)
    kernels = trained(images[:2000], labels[:2000])
    right = accuracy(kernels, images[2000:], labels[2000:])
    print(f"a convolutional network that is right on {right:.0%} of the images it has not seen")
    # Of 32 workers, 24 would do. In every gradient task 2 sleeps, the worker of task 7 dies, task 11 fails.
    faults = {2: Fault("sleep", 600), 7: Fault("kill", attempts=9), 11: Fault("raise", attempts=9)}
    unlucky = FaultyExecutor(None, faults)
    changes = []
    for image in images[2000 : 2000 + count]:
        margin = margin_of(kernels, image)
        gradient = CodedGradient(margin, scheme="forward", blocks=24, tasks=32, executor=unlucky)
        changed = least_change(margin, gradient, image)
        if changed is None:
            print("an image that keeps its class")
            continue
        before, after = forward(kernels, np.array([image, changed]))[-1].reshape(2, -1).argmax(axis=1)
        changes.append((image, changed, f"{SHAPES[before]} → {SHAPES[after]}"))
        size = np.linalg.norm(changed - image) / np.linalg.norm(image)
        print(f"{changes[-1][2]}: changed by {size:.1%},", end=" ")
        print(f"{gradient.calls} gradients, {gradient.evaluations_started:,} evaluations started,", end=" ")
        print(f"{len(gradient.report.recovered)} blocks decoded in the last")
    if path:
        from picture import save

        save(changes, path)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
