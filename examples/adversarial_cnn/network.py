"""A convolutional network in numpy: three layers of 5 x 5 kernels with stride 2, SiLU between them."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

Arrays = list[np.ndarray]


def kernel_shapes(n_classes: int) -> list[tuple[int, ...]]:
    """Of the kernels: rows, columns, channels in and out. 32 x 32 -> 14 x 14 -> 5 x 5 -> 1 x 1."""
    return [(5, 5, 3, 8), (5, 5, 8, 16), (5, 5, 16, n_classes)]


def forward(kernels: Arrays, images: np.ndarray) -> Arrays:
    """What every layer gets of images (m, 32, 32, 3), and last the scores (m, 1, 1, classes)."""
    layer_outputs = [images - 0.5]
    for kernel in kernels:
        layer_outputs.append(np.tensordot(strided_windows(layer_input(layer_outputs)), kernel, axes=3))
    return layer_outputs


def strided_windows(images: np.ndarray) -> np.ndarray:
    """(m, rows, columns, channels) -> (m, .., .., 5, 5, channels): every second row and column, no copy."""
    (m, a, b, channels), (image, row, column, channel) = images.shape, images.strides
    shape = (m, (a - 3) // 2, (b - 3) // 2, 5, 5, channels)
    return as_strided(images, shape, (image, 2 * row, 2 * column, row, column, channel), writeable=False)


def layer_input(layer_outputs: Arrays) -> np.ndarray:
    """The images as they are; x * sigmoid(x) of what another layer has left."""
    return (
        layer_outputs[-1] / (1 + np.exp(-layer_outputs[-1])) if len(layer_outputs) > 1 else layer_outputs[-1]
    )
