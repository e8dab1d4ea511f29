"""The margin of a black box: by how much another class wins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from network import Arrays, forward


def make_margin(kernels: Arrays, image: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of one or many x: the score of the second class at `image` minus the first's."""
    second, first = forward(kernels, image[None])[-1].ravel().argsort()[-2:]

    def margin(x: np.ndarray) -> np.ndarray:
        scores = forward(kernels, x.reshape(-1, *image.shape))[-1]
        return (scores[..., second] - scores[..., first]).reshape(x.shape[:-3])

    return margin
