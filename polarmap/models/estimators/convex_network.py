"""Two-layer ReLU networks that are trained to the global optimum, for regression and classification.

Training is a convex problem. `sample_gates` draws random gates, which decide for which samples a unit is
active. A solver finds the weights of the convex problem, and `extract_hidden_units` converts them to the
layers of a `TwoLayerNetwork`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from polarmap.dtypes import Array, Floats
from polarmap.errors import ModelError
from polarmap.models.activation_gates import ActivationGates, sample_gates
from polarmap.models.cones import ConeConstrainedLoss
from polarmap.models.estimators.coded_estimator import (
    CodedEstimator,
    CodedRegressorMixin,
    ProbabilisticClassifierMixin,
)
from polarmap.models.losses import GaussianFamily, LossFamily, ProfiledLoss
from polarmap.models.solvers.cone_interior_point import MAX_GRAM_ENTRIES, cone_interior_point
from polarmap.models.solvers.gated_training import GatedTraining, is_newton_affordable
from polarmap.models.whitening import fit_whitening_operator

ACTIVATIONS = ("gated_relu", "relu")


class TwoLayerNetwork(NamedTuple):
    """A two-layer network of ReLUs or gated ReLUs, which is called like a function of the samples.

    Its outputs are act(x @ coefs[0] + intercepts[0]) @ coefs[1] + intercepts[1] for a sample x. Without
    gates, the activation function act is the ReLU. With gates, it is a gated ReLU: a unit returns its input,
    whether positive or negative, if its gate is open for the sample (x @ gates[0] + gates[1] >= 0), and 0
    otherwise.

    Attributes
    ----------
    coefs : list of arrays (features, units) and (units, outputs)
        Weights of both layers.
    intercepts : list of arrays (units,) and (outputs,)
        Biases of both layers.
    gates : tuple of arrays (features, gates), (gates,) and (units,), or None
        Directions and offsets of the gates, and index of the gate of each unit.

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
        """Return the outputs (samples, outputs) for X (samples, features), which may be sparse."""
        pre_activations = np.asarray(X @ self.coefs[0]) + self.intercepts[0]
        if self.gates is None:
            hidden = np.maximum(pre_activations, 0.0)
        else:
            directions, offsets, unit_gates = self.gates
            open_mask = np.asarray(X @ directions) + offsets >= 0
            hidden = np.where(open_mask[:, unit_gates], pre_activations, 0.0)
        return np.asarray(hidden @ self.coefs[1] + self.intercepts[1])


def extract_hidden_units(
    convex_weights: Floats, has_bias: bool
) -> tuple[list[Floats], Floats, npt.NDArray[np.intp]]:
    """Convert the weights of the convex problem to the layers of a network.

    Each nonzero column becomes a hidden unit. If all columns are zero, the network has a single unit.

    Parameters
    ----------
    convex_weights : array (features, signs, gates, outputs)
        Weights of the convex problem.
    has_bias : bool
        If True, the last row of the weights contains the biases of the units.

    Returns
    -------
    coefs : list of arrays (features, units) and (units, outputs)
        Weights of both layers.
    bias : array (units,)
        Biases of the units; 0 if `has_bias` is False.
    unit_gates : index array (units,)
        Gate index of each unit.
    """
    # A column w of the convex problem becomes a unit with the weights w / sqrt(|w|) in the first layer, and
    # the weight sqrt(|w|) or -sqrt(|w|) in the second layer, depending on its sign index. Other factors would
    # give the same network, but a larger sum of squares, which is penalized.
    n_features, n_signs, n_gates, n_outputs = convex_weights.shape
    weight_columns = convex_weights.reshape(n_features, -1)
    norms = np.linalg.norm(convex_weights, axis=0).reshape(-1)
    used_indices = np.flatnonzero(norms) if norms.any() else np.zeros(1, np.intp)
    sqrt_norms = np.sqrt(norms[used_indices])
    first_layer = weight_columns[:, used_indices] / np.where(sqrt_norms > 0, sqrt_norms, 1.0)
    sign_indices, gate_indices, output_indices = np.unravel_index(used_indices, (n_signs, n_gates, n_outputs))
    second_layer = np.zeros((len(used_indices), n_outputs))
    signed_norms = np.where(sign_indices == 1, -sqrt_norms, sqrt_norms)
    second_layer[np.arange(len(used_indices)), output_indices] = signed_norms
    bias = first_layer[-1] if has_bias else np.zeros(len(used_indices))
    return [first_layer[: n_features - has_bias], second_layer], bias, gate_indices


@dataclass(eq=False, repr=False)
class ConvexNetwork(CodedEstimator):
    """Base class of two-layer networks that are trained by solving a convex problem."""

    alpha: float = 1e-2
    _: KW_ONLY
    activation: str = "gated_relu"
    n_gates: int = 50
    random_state: Any = 0

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_lower_bounds(alpha=0.0, n_gates=1)
        if self.n_gates != int(self.n_gates):
            raise ModelError(f"n_gates must be a whole number, not {self.n_gates!r}")
        if not 0 < self.alpha < np.inf:
            raise ModelError(
                f"alpha must be positive and finite, not {self.alpha!r}: without weight decay, many networks "
                "fit the data equally well"
            )
        self._check_choice("activation", ACTIVATIONS)

    def _fit_network(self, X: Any, y: Floats, sample_weight: Floats, family: LossFamily) -> None:
        """Fit the network to y (samples, outputs) with the loss `family`, and set the fitted attributes."""
        normalized_weight = sample_weight / sample_weight.sum()
        random_state = check_random_state(self.random_state)
        gates = sample_gates(X, normalized_weight, int(self.n_gates), bool(self.fit_intercept), random_state)
        loss = ProfiledLoss(family, y, normalized_weight, bool(self.fit_intercept))
        convex_weights = self._fit_convex_weights(X, loss, gates)
        coefs, bias, unit_gates = extract_hidden_units(convex_weights, loss.fit_intercept)
        is_gated = self.activation == "gated_relu"
        network_gates = (gates.directions, gates.offsets, unit_gates) if is_gated else None
        network = TwoLayerNetwork(coefs, [bias, np.zeros(y.shape[1])], network_gates)
        intercept = np.array(loss.find_optimal_intercept(network(X)))
        self.network_ = network._replace(intercepts=[bias, intercept])
        self.coefs_, self.intercepts_ = self.network_.coefs, self.network_.intercepts
        self.gates_, self.gate_intercepts_ = gates.directions, gates.offsets
        combined_weights, n_features = convex_weights[:, 0], X.shape[1]
        if convex_weights.shape[1] == 2:
            combined_weights = combined_weights - convex_weights[:, 1]
        combined_weights = combined_weights.transpose(1, 0, 2)
        self.convex_coef_ = combined_weights[:, :n_features]
        self.convex_intercept_ = (
            combined_weights[:, n_features] if loss.fit_intercept else np.zeros_like(combined_weights[:, 0])
        )

    def _fit_convex_weights(self, X: Any, loss: ProfiledLoss, gates: ActivationGates) -> Floats:
        """Solve the convex problem and return its weights (features, signs, gates, outputs).

        Biases, if any, are the last row. The axis of signs has length 2 for ReLUs (units that add to an
        output or subtract from it) and 1 for gated ReLUs.
        """
        fit = self._fit_gated_weights if self.activation == "gated_relu" else self._fit_relu_weights
        n_rows = X.shape[1] + loss.fit_intercept
        return fit(X, loss, gates).reshape(n_rows, -1, len(gates.offsets), loss.shape[1])

    def _fit_gated_weights(self, X: Any, loss: ProfiledLoss, gates: ActivationGates) -> Floats:
        """Train a network of gated ReLUs, and return its weights (features, gates * outputs)."""
        whitening = fit_whitening_operator(X, loss.weights[:, 0], loss.fit_intercept)
        uses_newton = is_newton_affordable(len(loss.y), len(whitening.scale), loss.shape[1])
        with self._make_operator(_append_bias_column(X, loss) if uses_newton else X) as coded_operator:
            training = GatedTraining(
                coded_operator, whitening, loss, gates.patterns, float(self.alpha), uses_newton
            )
            return self._minimize(coded_operator, training.minimize)

    def _fit_relu_weights(self, X: Any, loss: ProfiledLoss, gates: ActivationGates) -> Floats:
        """Train a network of ReLUs by an interior-point method.

        Returns its weights (features, 2 * gates * outputs), where the 2 stands for the signs + and -.

        Raises
        ------
        ModelError
            If the Gram matrices of a step would not fit into memory.
        """
        _check_gram_size(X.shape[1] + loss.fit_intercept, len(gates.offsets), loss.shape[1])
        A = _append_bias_column(X, loss)
        interior_points = _make_cone_interior_points(gates, loss)
        cone_loss = ConeConstrainedLoss(loss, gates.patterns, gates.margins, interior_points)
        with self._make_operator(A) as coded_operator:
            solve = partial(cone_interior_point, coded_operator, cone_loss, float(self.alpha))
            return self._minimize(coded_operator, solve)

    def to_mlp(self) -> Any:
        """Convert the fitted ReLU network to a scikit-learn MLPRegressor or MLPClassifier.

        The returned model has the same weights and predictions. You can train it further with `partial_fit`.

        Raises
        ------
        ModelError
            If the units are gated ReLUs, which scikit-learn does not have.
        """
        check_is_fitted(self)
        if self.network_.gates is not None:
            raise ModelError(
                "a network of gated ReLUs cannot be converted to an MLP of scikit-learn. Use network_, or "
                "fit with activation='relu'"
            )
        mlp = self._make_unfitted_mlp((self.coefs_[0].shape[1],))
        mlp.coefs_ = [weights.copy() for weights in self.coefs_]
        mlp.intercepts_ = [biases.copy() for biases in self.intercepts_]
        return mlp

    def _make_unfitted_mlp(self, hidden_layer_sizes: tuple[int]) -> Any:
        """Create a scikit-learn model with the given layer sizes, for the fitted features and targets.

        The caller sets its weights.
        """
        raise NotImplementedError

    def _compute_outputs(self, X: Any) -> Floats:
        """Return the outputs of the network, shape (samples, outputs)."""
        return self.network_(X)


def _append_bias_column(X: Any, loss: ProfiledLoss) -> Floats:
    """Return a dense X, with a last column of ones if the units have biases."""
    # A dense copy of X needs little memory compared with the inputs of all units, which are dense anyway.
    X = X.toarray() if issparse(X) else X
    return np.column_stack([X, np.ones(len(X))]) if loss.fit_intercept else X


def _check_gram_size(n_features: int, n_gates: int, n_outputs: int) -> None:
    """Raise ModelError if the Gram matrices of a ReLU network would not fit into memory.

    The solver needs a Gram matrix (features, features) for each sign, gate and output.
    """
    n_entries = 2 * n_features**2 * n_gates * n_outputs
    if n_entries <= MAX_GRAM_ENTRIES:
        return
    max_gates = MAX_GRAM_ENTRIES // (2 * n_features**2 * n_outputs)
    fewer_gates = f"Pass n_gates={max_gates} or fewer" if max_gates else "Reduce the number of features"
    raise ModelError(
        f"the Gram matrices of a ReLU network must have at most {MAX_GRAM_ENTRIES:,} entries to fit into "
        f"memory, got 2 * features**2 * gates * outputs = {n_entries:,}. {fewer_gates}, or use "
        "activation='gated_relu', whose Gram matrices are optional"
    )


def _make_cone_interior_points(gates: ActivationGates, loss: ProfiledLoss) -> Floats:
    """Return a point in the interior of the cone of each gate, as an array (features, gates).

    The cone of a gate contains the weights of a unit that is active for the same training samples as the
    gate. The direction and offset of the gate itself are such weights.
    """
    rows = [gates.directions, gates.offsets[np.newaxis]] if loss.fit_intercept else [gates.directions]
    return np.vstack(rows)


@dataclass(eq=False, repr=False)
class ConvexMLPRegressor(CodedRegressorMixin, ConvexNetwork):
    """A two-layer network for regression, like scikit-learn's MLPRegressor, trained to the global optimum.

    The model minimizes the mean of |y - f(x)|^2 / 2, plus alpha / 2 times the sum of the squares of all
    weights and biases except the output biases. Each unit of the network f has a gate D_i, a random
    half-space that contains some of the samples. Training is then a convex problem in vectors v_i, one per
    gate (Pilanci and Ergen, 2020, arXiv 2002.10553; Mishkin, Sahiner and Pilanci, 2022, arXiv 2202.01331).
    With several targets, each unit contributes to one of them.

    Parameters
    ----------
    alpha : float
        Strength of the weight decay, positive. It corresponds to the alpha of MLPRegressor divided by the
        number of samples.
    activation : {"gated_relu", "relu"}
        With "gated_relu", a unit returns its input if its gate is open, also for new samples. With "relu", a
        unit returns its input if that is positive. This problem is harder and needs Gram matrices, so
        features**2 * gates * outputs must not exceed 15 million.
    n_gates : int
        Number of gates. Fewer are used if fewer distinct gates are found. With an intercept, one gate is open
        for all samples.
    fit_intercept : bool
        Whether units and outputs have biases. The biases of the outputs are not penalized.
    random_state : int, RandomState or None
        Seed or generator of the random gates.
    tol : float
        Relative tolerance of the duality gap.
    max_iter : int
        Maximum number of iterations. Each takes at least two coded maps.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `polarmap.convex.ElasticNet`.

    Attributes
    ----------
    coefs_ : list of arrays (features, units) and (units, targets)
        Weights of both layers.
    intercepts_ : list of arrays (units,) and (targets,)
        Biases of both layers.
    network_ : TwoLayerNetwork
        Fitted network, a function of X.
    gates_ : array (features, gates)
        Directions of the gates.
    gate_intercepts_ : array (gates,)
        Offsets of the gates. Gate i is open if x @ gates_[:, i] + gate_intercepts_[i] >= 0.
    convex_coef_, convex_intercept_ : array (gates, features, targets) and (gates, targets)
        Vectors v_i. The network is sum_i D_i (X @ convex_coef_[i] + convex_intercept_[i]) + intercepts_[1].
        For ReLU units, this holds only for the training samples.
    objective_, dual_gap_, n_iter_, report_
        As for `polarmap.convex.ElasticNet`.
    optimality_ : float
        Norm of the gradient map for whitened features. For ReLU units, norm of the residual of the
        optimality conditions.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.linspace(-1, 1, 40).reshape(-1, 1)
    >>> y = np.abs(X[:, 0])
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = ConvexMLPRegressor(n_gates=10, tol=1e-2, blocks=4, executor=pool).fit(X, y)
    >>> model.score(X, y) > 0.9, model.dual_gap_ <= 1e-2 * model.objective_
    (True, True)
    """

    def _fit(self, X: Any, y: Floats, sample_weight: Floats) -> None:
        self._has_single_target = y.ndim == 1
        self._fit_network(X, y.reshape(len(y), -1), sample_weight, GaussianFamily())

    def _make_unfitted_mlp(self, hidden_layer_sizes: tuple[int]) -> Any:
        X, y = np.zeros((1, self.n_features_in_)), np.zeros((1, len(self.intercepts_[1])))
        mlp = MLPRegressor(hidden_layer_sizes=hidden_layer_sizes)
        return mlp.partial_fit(X, y[:, 0] if self._has_single_target else y)

    def predict(self, X: Any) -> Floats:
        """Return the outputs of the network, (samples,) or (samples, targets), for X (samples, features)."""
        outputs = self._predict_outputs(X)
        return outputs[:, 0] if self._has_single_target else outputs


@dataclass(eq=False, repr=False)
class ConvexMLPClassifier(ProbabilisticClassifierMixin, ConvexNetwork):
    """A two-layer classification network, like scikit-learn's MLPClassifier, trained to the global optimum.

    The model minimizes the mean logistic loss plus the penalty of `ConvexMLPRegressor`. Parameters and
    attributes are the same. With two classes, the network has one output. With more classes, the loss is
    multinomial, and there is one output per class.

    Attributes
    ----------
    classes_ : array (classes,)
        Class labels, sorted.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> y = X[:, 0] * X[:, 1] > 0  # not linearly separable
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = ConvexMLPClassifier(n_gates=20, tol=1e-2, blocks=4, executor=pool).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    def _fit_classes(self, X: Any, indicators: Floats, class_indices: Array, sample_weight: Floats) -> None:
        self._fit_network(X, indicators, sample_weight, self._get_loss_family())

    def _make_unfitted_mlp(self, hidden_layer_sizes: tuple[int]) -> Any:
        mlp = MLPClassifier(hidden_layer_sizes=hidden_layer_sizes)
        return mlp.partial_fit(np.zeros((1, self.n_features_in_)), self.classes_[:1], classes=self.classes_)
