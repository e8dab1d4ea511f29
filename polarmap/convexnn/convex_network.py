"""What the convex regressor and the classifier share: the fit, and the network that it amounts to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from polarmap.convex.constant_feature import ConstantFeature
from polarmap.convex.proximal_model import ProximalModel
from polarmap.convexnn.admm import admm
from polarmap.convexnn.cones import ConeLoss
from polarmap.convexnn.gates import GatedOperator, Gates, sample_gates
from polarmap.convexnn.group_norms import GroupNorms
from polarmap.convexnn.network import TwoLayerNetwork, extracted_units
from polarmap.convexnn.output_loss import Family, OutputLoss
from polarmap.convexnn.whitening import WhitenedOperator, Whitening, whitening
from polarmap.errors import ModelError

Floats = npt.NDArray[np.float64]

ACTIVATIONS = ("gated_relu", "relu")


class ConvexNetwork(ProximalModel):
    """A network of two layers whose weights are those of a convex problem."""

    def _check_network_options(self) -> None:
        self._check_numbers(alpha=0.0, n_gates=1)
        if self.n_gates != int(self.n_gates):
            raise ModelError(f"n_gates must be a whole number, not {self.n_gates!r}")
        if not 0 < self.alpha < np.inf:
            raise ModelError(
                f"alpha must be positive and finite, not {self.alpha!r}: without weight decay many networks "
                "fit equally well"
            )
        if self.activation not in ACTIVATIONS:
            raise ModelError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")

    def _fit_network(self, X: Any, y: Floats, weights: Floats, family: Family) -> None:
        """Fit to y (samples, outputs) and set all attributes; weights are positive."""
        shares = weights / weights.sum()
        random = check_random_state(self.random_state)
        gates = sample_gates(X, shares, int(self.n_gates), bool(self.fit_intercept), random)
        loss = OutputLoss(family, y, shares, bool(self.fit_intercept))
        W = self._convex_weights(X, loss, gates)
        coefs, bias, of_unit = extracted_units(W, loss.fit_intercept)
        gated = (gates.directions, gates.offsets, of_unit) if self.activation == "gated_relu" else None
        network = TwoLayerNetwork(coefs, [bias, np.zeros(y.shape[1])], gated)
        intercept = np.array(loss.intercept(network(X)))
        self.network_ = network._replace(intercepts=[bias, intercept])
        self.coefs_, self.intercepts_ = self.network_.coefs, self.network_.intercepts
        self.gates_, self.gate_intercepts_ = gates.directions, gates.offsets
        convex = W[:, 0] - W[:, 1] if W.shape[1] == 2 else W[:, 0]
        convex, features = convex.transpose(1, 0, 2), X.shape[1]
        self.convex_coef_ = convex[:, :features]
        self.convex_intercept_ = convex[:, features] if loss.fit_intercept else np.zeros_like(convex[:, 0])

    def _convex_weights(self, X: Any, loss: OutputLoss, gates: Gates) -> Floats:
        """(features, signs, gates, outputs), biases in the last row; ReLUs have two signs, gated ones one."""
        white = whitening(X, loss.shares[:, 0], loss.fit_intercept)
        signs = 1 if self.activation == "gated_relu" else 2
        shape = (len(white.scale), signs, len(gates.offsets), loss.shape[1])
        # Of whitened coefficients z the norm of z / scale is penalized: that of the weights themselves.
        columns = int(np.prod(shape[1:]))
        penalty = GroupNorms(float(self.alpha), 1.0 / white.scale, columns)
        with self._operator(X) as coded:
            operator: Any = ConstantFeature(coded, 1.0) if loss.fit_intercept else coded
            operator = WhitenedOperator(operator, white)
            if signs == 1:
                start = np.zeros((shape[0] * shape[2], shape[3]))
                gated = GatedOperator(operator, gates.patterns)
                found = self._solve(coded, gated, loss, penalty, start)
            else:
                cones = ConeLoss(loss, gates.patterns, gates.margins, _interior(gates, white, loss))
                start = np.zeros((shape[0], columns))
                found = self._solve(coded, operator, cones, penalty, start, admm)
        return white.coefficients(found.x.reshape(shape[0], -1)).reshape(shape)

    def to_mlp(self) -> Any:
        """The fitted ReLU network as an MLPRegressor or MLPClassifier of scikit-learn, with these weights.

        It predicts the same, may be trained on (`partial_fit`), and goes where only scikit-learn's models do.

        Raises
        ------
        ModelError
            Gated units, which scikit-learn does not have.
        """
        check_is_fitted(self)
        if self.network_.gates is not None:
            raise ModelError(
                "a network of gated ReLUs is no MLP of scikit-learn's: use network_, or activation='relu'"
            )
        mlp = self._untrained_mlp((self.coefs_[0].shape[1],))
        mlp.coefs_ = [weights.copy() for weights in self.coefs_]
        mlp.intercepts_ = [biases.copy() for biases in self.intercepts_]
        return mlp

    def _untrained_mlp(self, units: tuple[int]) -> Any:
        """One of that many hidden units that knows features and targets."""
        raise NotImplementedError

    def _linear(self, X: Any) -> Floats:
        """The outputs of the network (samples, outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return self.network_(X)


def _interior(gates: Gates, white: Whitening, loss: OutputLoss) -> Floats:
    """The gates as whitened coefficients: each is a point of its own cone."""
    rows = [gates.directions, gates.offsets[np.newaxis]] if loss.fit_intercept else [gates.directions]
    return white.whitened(np.vstack(rows))
