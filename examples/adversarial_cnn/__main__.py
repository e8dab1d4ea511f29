"""Find the smallest changes that make a convolutional network misclassify images, from its scores alone.

Needs the extras `linalg` and `plot`."""

from __future__ import annotations

import sys

import numpy as np
from images import SHAPES, draw_images
from margin import make_margin
from minimal_change import find_minimal_change
from network import forward
from training import accuracy, train_network

from polarmap import CodedGradient
from polarmap.testing import Fault, FaultyExecutor


def main(n_images: int = 4, figure_path: str = "") -> None:
    images, labels = draw_images(2200, seed=0)
    kernels = train_network(images[:2000], labels[:2000])
    test_accuracy = accuracy(kernels, images[2000:], labels[2000:])
    print(f"accuracy of the network on unseen images: {test_accuracy:.0%}")
    # 24 of 32 results suffice. In every gradient task 2 sleeps, the worker of task 7 dies and task 11 fails.
    faults = {2: Fault("sleep", 600), 7: Fault("kill", attempts=9), 11: Fault("raise", attempts=9)}
    unlucky_executor = FaultyExecutor(None, faults)
    changes = []
    for image in images[2000 : 2000 + n_images]:
        margin = make_margin(kernels, image)
        gradient = CodedGradient(margin, scheme="forward", blocks=24, tasks=32, executor=unlucky_executor)
        changed_image = find_minimal_change(margin, gradient, image)
        if changed_image is None:
            print("no change of class was found for an image")
            continue
        before, after = forward(kernels, np.array([image, changed_image]))[-1].reshape(2, -1).argmax(axis=1)
        changes.append((image, changed_image, f"{SHAPES[before]} → {SHAPES[after]}"))
        relative_change = np.linalg.norm(changed_image - image) / np.linalg.norm(image)
        print(f"{changes[-1][2]}: changed by {relative_change:.1%},", end=" ")
        print(f"{gradient.calls} gradients, {gradient.evaluations_started:,} evaluations started,", end=" ")
        print(f"{len(gradient.report.recovered)} blocks decoded in the last one")
    if figure_path:
        from picture import save_figure

        save_figure(changes, figure_path)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
