"""Construct frozen sets by density evolution on the erasure channel.

Everything here is a pure function of its arguments, the same on every machine and numpy version.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats, Indices


def round_up_to_power_of_two(size: int) -> int:
    """The smallest power of two >= size.

    >>> [round_up_to_power_of_two(n) for n in (1, 2, 3, 1000)]
    [1, 2, 4, 1024]
    """
    return 1 << max(0, size - 1).bit_length()


def compute_transform_shape(n: int, levels: int | None = None) -> tuple[int, int]:
    """The size of a butterfly of so many levels, and how many of them n leaves take, side by side.

    Of `count` butterflies, number i % count has leaf i, so that unsent leaves, the first, are spread over
    all. By default all levels: one butterfly of the next power of two.

    >>> compute_transform_shape(1000), compute_transform_shape(1000, 5), compute_transform_shape(10_000, 10)
    ((1024, 1), (32, 32), (1024, 10))
    """
    size = round_up_to_power_of_two(n) if levels is None else 1 << levels
    return size, -(-n // size)


def compute_input_erasure_probabilities(position_erasure_probabilities: npt.ArrayLike) -> Floats:
    """Erasure probability of every input, given the erasure probability of every worker.

    Along the first axis; butterflies side by side lie along the second.

    One butterfly of z -> a + b - ab (minus, the slow virtual worker) and ab (plus, the fast one);
    Arikan (2009), eq. (35), for unequal workers.

    >>> compute_input_erasure_probabilities([0.5, 0.5]).tolist()
    [0.75, 0.25]
    """
    z = np.array(position_erasure_probabilities, dtype=np.float64)
    half = len(z) // 2
    while half:
        pairs = z.reshape(-1, 2, half, *z.shape[1:])
        first, second = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 1] = first * second
        pairs[:, 0] = first + second - pairs[:, 1]
        half //= 2
    return z


def choose_frozen_set(
    n: int, k: int, erasure_probabilities: float | Floats, levels: int | None = None
) -> Indices:
    """The n - k inputs to freeze, ascending, on a butterfly of the next power of two.

    `erasure_probabilities`: of every leaf that is sent, or of each of the n by itself. `levels`: of
    butterflies side by side (`compute_transform_shape`), in each of which an input is frozen and another is
    not.

    The first N - n positions are punctured (never sent), so the code keeps the all-ones word and
    a constant survives decoding exactly. The set is closed downwards (an input below a frozen one
    is frozen), which the two-pass systematic encoder needs.

    >>> choose_frozen_set(8, 4, 0.25).tolist()
    [0, 1, 2, 4]
    """
    transform_size, n_transforms = compute_transform_shape(n, levels)
    n_punctured = transform_size * n_transforms - n
    position_probabilities = np.ones(transform_size * n_transforms)
    position_probabilities[n_punctured:] = erasure_probabilities
    z = compute_input_erasure_probabilities(position_probabilities.reshape(transform_size, n_transforms))
    envelope = z.copy()  # z'_j = min of z_i over all i whose bits are a subset of j's
    half = transform_size // 2
    while half:
        pairs = envelope.reshape(-1, 2, half, n_transforms)
        np.minimum(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        half //= 2
    if n_transforms > 1:
        transform_indices = np.arange(n_transforms)
        first_sent_inputs = -((transform_indices - n_punctured) // n_transforms)
        envelope[first_sent_inputs, transform_indices], envelope[-1] = 2.0, -1.0
    sent_inputs = np.arange(n_punctured, transform_size * n_transforms)
    worst_first = sent_inputs[np.argsort(-envelope.ravel()[sent_inputs], kind="stable")]
    return np.sort(worst_first[: n - k])
