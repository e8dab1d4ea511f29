"""Choose the frozen set of an Arikan code by density evolution on the erasure channel.

A polar code sends data on the reliable inputs of its butterfly and freezes the unreliable inputs to zero. All
functions here are deterministic: they give the same result on every machine and with every NumPy version,
because a stored array must be decoded with the frozen set that it was encoded with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.codes.splitmix import SplitMix64
from polarmap.dtypes import Floats, Indices


def round_up_to_power_of_two(size: int) -> int:
    """Return the smallest power of two >= `size`.

    >>> [round_up_to_power_of_two(n) for n in (1, 2, 3, 1000)]
    [1, 2, 4, 1024]
    """
    return 1 << max(0, size - 1).bit_length()


def compute_transform_shape(n: int, levels: int | None = None) -> tuple[int, int]:
    """Compute the size and number of the butterflies that encode n blocks.

    A butterfly is a network of additions, as in a fast Fourier transform. Its size is a power of two.

    Parameters
    ----------
    n : int
        Number of codeword positions that are sent.
    levels : int, optional
        Number of stages of each butterfly. By default, a single butterfly is used, whose size is the next
        power of two.

    Returns
    -------
    size, n_transforms : int
        Each of the `n_transforms` butterflies has size = 2^levels positions. Position i belongs to butterfly
        i % n_transforms, so that the punctured positions, which are the first, are spread over all of them.

    Examples
    --------
    >>> compute_transform_shape(1000), compute_transform_shape(1000, 5), compute_transform_shape(10_000, 10)
    ((1024, 1), (32, 32), (1024, 10))
    """
    size = round_up_to_power_of_two(n) if levels is None else 1 << levels
    return size, -(-n // size)


def compute_input_erasure_probabilities(position_erasure_probabilities: npt.ArrayLike) -> Floats:
    """Compute the probability that each input of a butterfly is unknown, given those of its outputs.

    This is density evolution on the erasure channel (eq. (35) of Arikan 2009, for unequal channels). Each
    stage combines two positions with the erasure probabilities a and b into two branches. The minus branch is
    erased if at least one of the positions is, with probability a + b - ab. The plus branch is erased if both
    are, with probability ab.

    Parameters
    ----------
    position_erasure_probabilities : array-like (size,) or (size, butterflies)
        Erasure probability of each codeword position; `size` is a power of two.

    Returns
    -------
    array of the same shape

    Examples
    --------
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
    """Choose the n - k inputs to freeze (set to zero), i.e. those that are least likely to become known.

    The butterflies have N >= n positions in total, and the first N - n positions are punctured (not sent).
    This keeps the all-ones word in the code, so that constants are decoded exactly.

    The frozen set is downward closed, which the encoder needs: if the bits of i are a subset of the bits of a
    frozen input j, then i is also frozen.

    Parameters
    ----------
    n, k : int
        Number of coded blocks and of data blocks.
    erasure_probabilities : float or array (n,)
        Probability that a sent position is erased: one number for all, or one for each.
    levels : int, optional
        Number of stages, as in `compute_transform_shape`. With several butterflies, each has at least one
        frozen and one free input.

    Returns
    -------
    index array (n - k,), ascending

    Examples
    --------
    >>> choose_frozen_set(8, 4, 0.25).tolist()
    [0, 1, 2, 4]
    """
    transform_size, n_transforms = compute_transform_shape(n, levels)
    n_punctured = transform_size * n_transforms - n
    position_probabilities = np.ones(transform_size * n_transforms)
    position_probabilities[n_punctured:] = erasure_probabilities
    z = compute_input_erasure_probabilities(position_probabilities.reshape(transform_size, n_transforms))
    # To make the frozen set downward closed, replace each z_j by the minimum of z_i over all inputs i whose
    # bits are a subset of the bits of j.
    envelope = z.copy()
    half = transform_size // 2
    while half:
        pairs = envelope.reshape(-1, 2, half, n_transforms)
        np.minimum(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        half //= 2
    return _freeze_worst_inputs(envelope, n, k)


def choose_low_weight_frozen_set(n: int, k: int, seed: int, levels: int | None = None) -> Indices:
    """Choose the n - k inputs of lowest weight, to be frozen (set to zero) as in a Reed-Muller code.

    The weight of an input is the number of sent blocks that it contributes to. If an input has a low weight,
    losing these few blocks may make it impossible to decode. Freezing such inputs avoids this.

    Among inputs of equal weight, those whose parity check involves the most sent blocks are frozen first, so
    that every block is covered by a check. Remaining ties are broken pseudo-randomly. The set is downward
    closed, like that of `choose_frozen_set`.

    Parameters
    ----------
    n, k : int
        Number of coded blocks and of data blocks.
    seed : int
        Seed for breaking ties.
    levels : int, optional
        Number of stages, as in `choose_frozen_set`.

    Returns
    -------
    index array (n - k,), ascending

    Examples
    --------
    >>> choose_low_weight_frozen_set(8, 4, 0).tolist()
    [0, 1, 2, 4]
    """
    transform_size, n_transforms = compute_transform_shape(n, levels)
    weights = np.ones((transform_size, n_transforms))
    weights.flat[: weights.size - n] = 0.0
    check_weights, half = weights.copy(), 1
    # Compute two counts for each input i: the sent positions whose bits are a subset of the bits of i
    # (`weights`), and those whose bits are a superset of them (`check_weights`).
    while half < transform_size:
        pairs, check_pairs = (table.reshape(-1, 2, half, n_transforms) for table in (weights, check_weights))
        pairs[:, 1] += pairs[:, 0]
        check_pairs[:, 0] += check_pairs[:, 1]
        half *= 2
    ties = SplitMix64(n, k, seed).random(weights.size).reshape(weights.shape)
    # Sort by weight, then by check weight, then by `ties`, with a single number. The weights are integers and
    # the fraction is less than 1, so `check_weights` only matters for inputs of equal weight.
    return _freeze_worst_inputs((check_weights + ties) / (n + 2) - weights, n, k)


def count_undecodable_losses(n: int, frozen_set: Indices) -> tuple[int, int]:
    """Count the blocks, and the pairs of blocks, that cannot be decoded if exactly these are lost.

    Decoding is considered modulo 2, i.e. for integers.

    Parameters
    ----------
    n : int
        Number of coded blocks of one butterfly.
    frozen_set : index array
        Frozen inputs.

    Returns
    -------
    n_blocks, n_pairs : int

    Examples
    --------
    >>> count_undecodable_losses(4, np.array([0])), count_undecodable_losses(4, np.array([0, 1, 2]))
    ((0, 6), (0, 0))
    """
    positions = np.arange(n) + round_up_to_power_of_two(n) - n
    # Each frozen input i gives a parity check of all positions whose bits are a superset of the bits of i.
    checks = (frozen_set[:, None] & positions) == frozen_set[:, None]
    _, multiplicities = np.unique(checks, axis=1, return_counts=True)
    return int((~checks.any(axis=0)).sum()), int((multiplicities * (multiplicities - 1) // 2).sum())


def _freeze_worst_inputs(badness: Floats, n: int, k: int) -> Indices:
    """Return the n - k inputs to freeze, i.e. the indices of the largest badness, in ascending order.

    Only the last n inputs are candidates, because the inputs before them are punctured (not used).

    Parameters
    ----------
    badness : array (size, butterflies)
        The inputs with the largest numbers are frozen. With several butterflies, the numbers are modified in
        place so that each butterfly has at least one frozen and one free input.
    n, k : int
        Number of coded blocks and of data blocks.
    """
    n_transforms, n_punctured = badness.shape[1], badness.size - n
    if n_transforms > 1:
        transform_indices = np.arange(n_transforms)
        first_sent_inputs = -((transform_indices - n_punctured) // n_transforms)
        badness[first_sent_inputs, transform_indices], badness[-1] = np.inf, -np.inf
    sent_inputs = np.arange(n_punctured, badness.size)
    worst_first = sent_inputs[np.argsort(-badness.ravel()[sent_inputs], kind="stable")]
    return np.sort(worst_first[: n - k])
