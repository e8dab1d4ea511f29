"""A network of two layers, as weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class TwoLayerNetwork(NamedTuple):
    """f(x) = act(x @ coefs[0] + intercepts[0]) @ coefs[1] + intercepts[1].

    act is the ReLU; or, with gates, a gated one: each unit passes its input on, whatever the sign, where its
    gate is open, x @ gates[0] + gates[1] >= 0, and 0 elsewhere.

    Attributes
    ----------
    coefs : list of (features, units) and (units, outputs)
    intercepts : list of (units,) and (outputs,)
    gates : tuple of (features, gates), (gates,) and the gate (units,) of each unit, or None

    Examples
    --------
    >>> network = TwoLayerNetwork([np.eye(2), np.ones((2, 1))], [np.zeros(2), np.zeros(1)])
    >>> network(np.array([[3.0, -1.0]])).tolist()
    [[3.0]]
    """

    coefs: list[Floats]
    intercepts: list[Floats]
    gates: tuple[Floats, Floats, npt.NDArray[np.intp]] | None = None

    def __call__(self, X: Any) -> Floats:
        """(samples, outputs), for X (samples, features), which may be sparse."""
        inputs = np.asarray(X @ self.coefs[0]) + self.intercepts[0]
        if self.gates is None:
            hidden = np.maximum(inputs, 0.0)
        else:
            directions, offsets, of_unit = self.gates
            passed = np.asarray(X @ directions) + offsets >= 0
            hidden = np.where(passed[:, of_unit], inputs, 0.0)
        return np.asarray(hidden @ self.coefs[1] + self.intercepts[1])


def extracted_units(W: Floats, has_bias: bool) -> tuple[list[Floats], Floats, npt.NDArray[np.intp]]:
    """Units of the network of convex weights W (features, signs, gates, outputs), those of 0 left out.

    A column w becomes w / sqrt(|w|) in the first layer and sqrt(|w|), or minus that for the second sign, in
    the second: of all pairs with that product these have the smallest squares, whose sum is 2 |w|. Returned
    are both layers, biases of the first, and the gate of each unit; at least one unit, if need be of zeros.
    """
    features, signs, gates, outputs = W.shape
    columns, norms = W.reshape(features, -1), np.linalg.norm(W, axis=0).reshape(-1)
    used = np.flatnonzero(norms) if norms.any() else np.zeros(1, np.intp)
    roots = np.sqrt(norms[used])
    first = columns[:, used] / np.where(roots > 0, roots, 1.0)
    sign, gate, output = np.unravel_index(used, (signs, gates, outputs))
    second = np.zeros((len(used), outputs))
    second[np.arange(len(used)), output] = np.where(sign == 1, -roots, roots)
    bias = first[-1] if has_bias else np.zeros(len(used))
    return [first[: features - has_bias], second], bias, gate
