"""Draw random gates for the ReLU units of a convex network.

A gate is a half-space, and it is open at the samples inside the half-space. The pattern of a gate tells for
each training sample whether the gate is open. The convex problem of
`polarmap.models.estimators.convex_network` depends on the gates only through their patterns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats
from polarmap.models.operators import compute_weighted_mean_and_variance

# Gates are drawn in rounds, of which this is the maximum number. Sampling stops earlier if there are enough
# gates with distinct patterns, or if a round adds none.
MAX_ROUNDS = 20
# Minimum number of gates to draw per round. With 16 gates, it is practically certain that some round finds a
# gate that is open for at least one sample: the probability of the opposite is below 1e-90.
MIN_DRAWS = 16


class ActivationGates(NamedTuple):
    """Random gates for the units of a network: half-spaces that contain different sets of training samples.

    A gate is open for the samples in its half-space. Gate i is open for a sample x if
    x @ directions[:, i] + offsets[i] >= 0.

    Attributes
    ----------
    directions : array (features, gates)
        Normal vectors of the half-spaces.
    offsets : array (gates,)
        Offsets of the half-spaces; 0 without an intercept.
    patterns : bool array (samples, gates)
        True where a gate is open for a sample.
    margins : array (samples, gates)
        |x @ directions + offsets| for each sample x; 0 for a sample on the boundary of a half-space.
    """

    directions: Floats
    offsets: Floats
    patterns: npt.NDArray[np.bool_]
    margins: Floats


def sample_gates(
    X: Any, sample_weight: Floats, n_gates: int, fit_intercept: bool, random_state: Any
) -> ActivationGates:
    """Draw up to `n_gates` random gates with distinct patterns, each open for at least one sample.

    The pattern of a gate says for which training samples it is open. Directions and offsets are normally
    distributed with respect to standardized features.

    Parameters
    ----------
    X : array or sparse array (samples, features)
        Training samples.
    sample_weight : array (samples,)
        Weights by which the features are standardized, with sum 1.
    n_gates : int
        Number of gates to return. Fewer are returned if fewer distinct patterns are found.
    fit_intercept : bool
        If True, gates have offsets, and the first gate is open at all samples. If False, offsets are 0.
    random_state : numpy.random.RandomState
        Random number generator.
    """
    mean, variance = compute_weighted_mean_and_variance(X, sample_weight, True)
    scale = np.where(variance > 0, np.sqrt(variance), 1.0)
    n_features = X.shape[1]
    directions, offsets = np.zeros((n_features, 0)), np.zeros(0)
    if fit_intercept:
        directions, offsets = np.zeros((n_features, 1)), np.ones(1)
    n_draws = max(n_gates, MIN_DRAWS)
    for _ in range(MAX_ROUNDS):
        n_gates_before = len(offsets)
        normals = random_state.standard_normal((n_features + fit_intercept, n_draws))
        new_directions = normals[:n_features] / scale[:, np.newaxis]
        new_offsets = normals[n_features] - mean @ new_directions if fit_intercept else np.zeros(n_draws)
        directions, offsets = np.hstack([directions, new_directions]), np.append(offsets, new_offsets)
        pre_activations = np.asarray(X @ directions) + offsets
        distinct_indices = _find_distinct_pattern_indices(pre_activations >= 0)[:n_gates]
        directions, offsets = directions[:, distinct_indices], offsets[distinct_indices]
        pre_activations = pre_activations[:, distinct_indices]
        if len(distinct_indices) == n_gates or 0 < len(distinct_indices) == n_gates_before:
            break
    return ActivationGates(directions, offsets, pre_activations >= 0, np.abs(pre_activations))


def _find_distinct_pattern_indices(patterns: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the indices of the columns of `patterns` that remain after duplicates are removed.

    Of several equal columns, the first one is kept. Columns that are False for all samples are removed, too.
    """
    packed_patterns = np.packbits(patterns, axis=0)
    _, first_indices = np.unique(packed_patterns, axis=1, return_index=True)
    return np.asarray(np.sort(first_indices[patterns[:, first_indices].any(axis=0)]))
