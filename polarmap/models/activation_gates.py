"""Random gates of ReLU units: half-spaces, and the samples that each of them lets pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats
from polarmap.models.operators import compute_weighted_mean_and_variance

MAX_ROUNDS = 20  # of sampling, while patterns are wanted and new ones turn up
MIN_DRAWS = 16  # of a round: that no gate lets a sample pass is less likely than 1e-90


class ActivationGates(NamedTuple):
    """Half-spaces x @ directions + offsets >= 0, no two of which hold the same samples."""

    directions: Floats  # (features, gates)
    offsets: Floats  # (gates,), 0 without an intercept
    patterns: npt.NDArray[np.bool_]  # (samples, gates): which samples each gate lets pass
    margins: Floats  # |x @ directions + offsets|


def sample_gates(
    X: Any, sample_weight: Floats, n_gates: int, fit_intercept: bool, random_state: Any
) -> ActivationGates:
    """Up to `n_gates` gates with normal directions and offsets for standardized features, by shares of
    samples.

    With an intercept, the first lets every sample pass. None lets no sample pass.
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
    """Indices of the first column of each pattern that lets a sample pass, in order."""
    packed_patterns = np.packbits(patterns, axis=0)
    _, first_indices = np.unique(packed_patterns, axis=1, return_index=True)
    return np.asarray(np.sort(first_indices[patterns[:, first_indices].any(axis=0)]))
