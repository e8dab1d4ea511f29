"""Train the network with Adam on the cross-entropy, in batches of 64."""

from __future__ import annotations

import numpy as np
from backpropagation import backward
from network import Arrays, forward, kernel_shapes
from scipy.special import softmax
from threadpoolctl import threadpool_limits


@threadpool_limits.wrap(limits=1)  # BLAS threads slow such small products down.
def train_network(images: np.ndarray, labels: np.ndarray, n_epochs: int = 8, seed: int = 0) -> Arrays:
    """Return the kernels after `n_epochs` passes over the images."""
    rng = np.random.default_rng(seed)
    images, targets = images.astype("f"), np.eye(labels.max() + 1)[labels]
    kernels = [
        rng.standard_normal(shape, "f") * np.float32((2 / np.prod(shape[:3])) ** 0.5)
        for shape in kernel_shapes(targets.shape[1])
    ]
    means, mean_squares = [0 * kernel for kernel in kernels], [0 * kernel for kernel in kernels]
    order = np.concatenate([rng.permutation(len(images)) for _ in range(n_epochs)])
    batches = np.array_split(order, len(order) // 64)
    for batch_number, batch in enumerate(batches, 1):
        layer_outputs = forward(kernels, images[batch])
        output_gradient = softmax(layer_outputs[-1], axis=-1) - targets[batch][:, None, None]
        gradients, _ = backward(kernels, layer_outputs, (output_gradient / len(batch)).astype("f"))
        learning_rate = 8e-3 * (1 - batch_number / len(batches))
        for kernel, gradient, mean, mean_square in zip(kernels, gradients, means, mean_squares):
            mean += 0.1 * (gradient - mean)
            mean_square += 0.01 * (gradient**2 - mean_square)
            kernel -= (
                learning_rate
                * mean
                / (1 - 0.9**batch_number)
                / (np.sqrt(mean_square / (1 - 0.99**batch_number)) + 1e-8)
            )
    return [kernel.astype(np.float64) for kernel in kernels]


def accuracy(kernels: Arrays, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose label has the highest score."""
    return float(np.mean(forward(kernels, images)[-1].reshape(len(images), -1).argmax(axis=1) == labels))
