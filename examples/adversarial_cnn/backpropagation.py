"""Derivatives of the network for its training; the attack does not use them."""

from __future__ import annotations

import numpy as np
from network import Arrays, layer_input, strided_windows


def backward(
    kernels: Arrays, layer_outputs: Arrays, output_gradient: np.ndarray
) -> tuple[Arrays, np.ndarray]:
    """Return the gradients by the kernels, and by the first layer's output, of a function of the scores.

    Parameters
    ----------
    output_gradient : np.ndarray
        Gradient of that function by the scores.
    """
    gradients: Arrays = []
    for layer in reversed(range(len(kernels))):
        features = layer_input(layer_outputs[: layer + 1])
        gradients.insert(0, np.tensordot(strided_windows(features), output_gradient, (range(3), range(3))))
        if layer:
            sigmoid = 1 / (1 + np.exp(-layer_outputs[layer]))
            output_gradient = input_gradient(kernels[layer], output_gradient, features.shape)
            output_gradient *= sigmoid + features * (1 - sigmoid)
    return gradients, output_gradient


def input_gradient(
    kernel: np.ndarray, output_gradient: np.ndarray, input_shape: tuple[int, ...]
) -> np.ndarray:
    """Return the gradient by the input of a layer, from the gradient by its output."""
    spread = np.tensordot(output_gradient, kernel, (3, 3))
    gradient = np.zeros(input_shape, output_gradient.dtype)
    for i, j in np.ndindex(5, 5):
        strided_view = gradient[:, i:, j:][:, ::2, ::2][
            :, : output_gradient.shape[1], : output_gradient.shape[2]
        ]
        strided_view += spread[:, :, :, i, j]
    return gradient
