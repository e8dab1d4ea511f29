"""A convolutional network in numpy: three layers of 5 x 5 kernels with stride 2, SiLU between them."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

Arrays = list[np.ndarray]


def kernel_shapes(n_classes: int) -> list[tuple[int, ...]]:
    """Return (rows, columns, channels in, channels out) of each kernel. Sizes: 32 -> 14 -> 5 -> 1."""
    return [(5, 5, 3, 8), (5, 5, 8, 16), (5, 5, 16, n_classes)]


def forward(kernels: Arrays, images: np.ndarray) -> Arrays:
    """Return all layers' outputs for images (m, 32, 32, 3); the last are the scores (m, 1, 1, n_classes)."""
    layer_outputs = [images - 0.5]
    for kernel in kernels:
        layer_outputs.append(np.tensordot(strided_windows(layer_input(layer_outputs)), kernel, axes=3))
    return layer_outputs


def strided_windows(images: np.ndarray) -> np.ndarray:
    """Return a view (m, .., .., 5, 5, channels) of the 5 x 5 windows at every second row and column."""
    (m, a, b, channels), (image, row, column, channel) = images.shape, images.strides
    shape = (m, (a - 3) // 2, (b - 3) // 2, 5, 5, channels)
    return as_strided(images, shape, (image, 2 * row, 2 * column, row, column, channel), writeable=False)


def layer_input(layer_outputs: Arrays) -> np.ndarray:
    """Return the input of the next layer: the images, or x * sigmoid(x) of the last output."""
    return (
        layer_outputs[-1] / (1 + np.exp(-layer_outputs[-1])) if len(layer_outputs) > 1 else layer_outputs[-1]
    )
