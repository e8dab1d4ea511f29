"""Derivatives of the network, for its training; the attack does without."""

from __future__ import annotations

import numpy as np
from network import Arrays, entering, windows


def backward(kernels: Arrays, found: Arrays, slope: np.ndarray) -> tuple[Arrays, np.ndarray]:
    """The gradients by kernels, and by what the first layer makes, of what has these slopes by the scores."""
    gradients: Arrays = []
    for layer in reversed(range(len(kernels))):
        seen = entering(found[: layer + 1])
        gradients.insert(0, np.tensordot(windows(seen), slope, (range(3), range(3))))
        if layer:
            sigmoid = 1 / (1 + np.exp(-found[layer]))
            slope = by_input(kernels[layer], slope, seen.shape) * (sigmoid + seen * (1 - sigmoid))
    return gradients, slope


def by_input(kernel: np.ndarray, slope: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The slope by what enters a layer, of this shape, from that by what it makes."""
    spread, found = np.tensordot(slope, kernel, (3, 3)), np.zeros(shape, slope.dtype)
    for i, j in np.ndindex(5, 5):
        part = found[:, i:, j:][:, ::2, ::2][:, : slope.shape[1], : slope.shape[2]]
        part += spread[:, :, :, i, j]
    return found
