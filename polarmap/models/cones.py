"""The training loss of a ReLU network, with a cone constraint on the input of each unit.

The cone of a unit contains the inputs that are nonnegative for samples at which the gate of the unit is open,
and nonpositive for all other samples. The interior-point method of
`polarmap.models.solvers.cone_interior_point` minimizes this loss.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import Floats
from polarmap.models.losses import ProfiledLoss


class ConeConstrainedLoss:
    """The training loss of a ReLU network as a function of the inputs of its units, with cone constraints.

    The inputs are E = A W for data A and weights W. E has one row per sample, and one column per sign (+ or
    -), gate and output, in this order. D_i is a diagonal matrix of zeros and ones, with a one for each sample
    at which gate i is open. The outputs of the network are sum_i D_i (E+_i - E-_i). The constraints
    (2 D_i - 1) E+_i >= 0 and (2 D_i - 1) E-_i >= 0 require inputs that are nonnegative where the gate is open
    and nonpositive elsewhere. Within these cones, D_i E_i is the ReLU of E_i.

    Parameters
    ----------
    loss : ProfiledLoss
        Loss as a function of the outputs of the network.
    patterns : bool array (samples, gates)
        True where a gate is open for a sample. Column i is the diagonal of D_i.
    margins : array (samples, gates)
        |A interior_points|: the margins of each interior point from the boundary of its cone.
    interior_points : array (features, gates)
        A point in the interior of each cone.
    """

    def __init__(
        self, loss: ProfiledLoss, patterns: npt.NDArray[np.bool_], margins: Floats, interior_points: Floats
    ) -> None:
        self.loss, self._n_outputs = loss, loss.shape[1]
        self.patterns, self.margins, self.interior_points = patterns, margins, interior_points
        open_gates = patterns.astype(np.float64)[:, np.newaxis, :, np.newaxis]
        self._cone_signs = 2.0 * open_gates - 1.0
        self._branch_signs = np.concatenate([open_gates, -open_gates], axis=1)
        self._margins = margins[:, np.newaxis, :, np.newaxis]
        self._interior_points = interior_points[:, np.newaxis, :, np.newaxis]

    def make_feasible(self, weights: Floats, unit_inputs: Floats) -> tuple[Floats, Floats]:
        """Move infeasible weights into their cones, toward the interior point of each cone.

        Parameters
        ----------
        weights : array (features, columns)
            Weights W, which may violate the cone constraints.
        unit_inputs : array (samples, columns)
            Unit inputs E = A W.

        Returns
        -------
        weights : array (features, columns)
            Weights that satisfy the constraints.
        unit_inputs : array (samples, columns)
            A times the returned weights.
        """
        split_inputs = self._split_by_sign_gate_and_output(unit_inputs)
        split_weights = self._split_by_sign_gate_and_output(weights)
        signed_slacks, violation_ratios = self._cone_signs * split_inputs, np.zeros_like(split_inputs)
        violated_mask = (signed_slacks < 0) & (self._margins > 0)
        np.divide(-signed_slacks, self._margins, out=violation_ratios, where=violated_mask)
        shift_lengths = np.where(split_weights.any(axis=0), violation_ratios.max(axis=0), 0.0)
        feasible_weights = split_weights + shift_lengths * self._interior_points
        feasible_inputs = split_inputs + shift_lengths * self._cone_signs * self._margins
        return feasible_weights.reshape(weights.shape), feasible_inputs.reshape(unit_inputs.shape)

    def value(self, unit_inputs: Floats) -> float:
        """Return the loss for unit inputs E (samples, columns), which must be within the cones."""
        return self.loss.value(self.compute_network_outputs(unit_inputs))

    def compute_network_outputs(self, unit_inputs: Floats) -> Floats:
        """Compute the network outputs for unit inputs E, without the intercept."""
        split_inputs = self._split_by_sign_gate_and_output(unit_inputs)
        return np.asarray((self._branch_signs * split_inputs).sum(axis=(1, 2)))

    def _split_by_sign_gate_and_output(self, columns: Floats) -> Floats:
        """Reshape an array (rows, columns) to (rows, signs, gates, outputs), without a copy."""
        return columns.reshape(len(columns), 2, -1, self._n_outputs)
