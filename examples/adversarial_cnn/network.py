"""A convolutional network in numpy: three layers of 5 x 5 kernels with stride 2, SiLU between them."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

Arrays = list[np.ndarray]


def shapes(classes: int) -> list[tuple[int, ...]]:
    """Of the kernels: rows, columns, channels in and out. 32 x 32 -> 14 x 14 -> 5 x 5 -> 1 x 1."""
    return [(5, 5, 3, 8), (5, 5, 8, 16), (5, 5, 16, classes)]


def forward(kernels: Arrays, images: np.ndarray) -> Arrays:
    """What every layer gets of images (m, 32, 32, 3), and last the scores (m, 1, 1, classes)."""
    found = [images - 0.5]
    for kernel in kernels:
        found.append(np.tensordot(windows(entering(found)), kernel, axes=3))
    return found


def windows(x: np.ndarray) -> np.ndarray:
    """(m, rows, columns, channels) -> (m, .., .., 5, 5, channels): every second row and column, no copy."""
    (m, a, b, channels), (image, row, column, channel) = x.shape, x.strides
    shape = (m, (a - 3) // 2, (b - 3) // 2, 5, 5, channels)
    return as_strided(x, shape, (image, 2 * row, 2 * column, row, column, channel), writeable=False)


def entering(found: Arrays) -> np.ndarray:
    """The images as they are; x * sigmoid(x) of what another layer has left."""
    return found[-1] / (1 + np.exp(-found[-1])) if len(found) > 1 else found[-1]
