"""Networks of two layers that are trained to the global optimum, for regression and classification."""

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
from polarmap.models.coded_model import CodedModel, CodedRegressor, ProbabilisticClassifier
from polarmap.models.cone_interior_point import LARGEST_GRAMS, cone_interior_point
from polarmap.models.cones import ConeLoss, admm
from polarmap.models.features import ConstantFeature
from polarmap.models.gates import GatedOperator, Gates, sample_gates
from polarmap.models.losses import Family, Gaussian, OutputLoss
from polarmap.models.penalties import GroupNorms
from polarmap.models.proximal_gradient import fista
from polarmap.models.whitening import principal_axes

ACTIVATIONS = ("gated_relu", "relu")


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
        """The outputs, (samples, outputs), for X (samples, features), which may be sparse."""
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

    Returned are both layers, biases of the first, and the gate of each unit; at least one unit, if need be of
    zeros.
    """
    # A column w becomes w / sqrt(|w|) in the first layer and sqrt(|w|), or minus that for the second sign, in
    # the second: of all pairs with that product these have the smallest squares, whose sum is 2 |w|.
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


@dataclass(eq=False, repr=False)
class ConvexNetwork(CodedModel):
    """A network of two layers whose weights are those of a convex problem."""

    alpha: float = 1e-2
    _: KW_ONLY
    activation: str = "gated_relu"
    n_gates: int = 50
    random_state: Any = 0

    def _check_options(self) -> None:
        super()._check_options()
        self._check_numbers(alpha=0.0, n_gates=1)
        if self.n_gates != int(self.n_gates):
            raise ModelError(f"n_gates must be a whole number, not {self.n_gates!r}")
        if not 0 < self.alpha < np.inf:
            raise ModelError(
                f"alpha must be positive and finite, not {self.alpha!r}: without weight decay many networks "
                "fit equally well"
            )
        self._check_choice("activation", ACTIVATIONS)

    def _fit_network(self, X: Any, y: Floats, weights: Floats, family: Family) -> None:
        """Fit to y (samples, outputs) and set all attributes."""
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
        signs = 1 if self.activation == "gated_relu" else 2
        shape = (X.shape[1] + loss.fit_intercept, signs, len(gates.offsets), loss.shape[1])
        if signs == 2 and shape[0] * np.prod(shape) <= LARGEST_GRAMS:
            return self._by_interior_point(X, loss, gates).reshape(shape)
        white = principal_axes(X, loss.weights[:, 0], loss.fit_intercept)
        # Of whitened coefficients z the norm of z / scale is penalized: that of the weights themselves.
        columns = int(np.prod(shape[1:]))
        penalty = GroupNorms(float(self.alpha), 1.0 / white.scale, columns)
        with self._operator(X) as coded:
            operator = (ConstantFeature(coded, 1.0) if loss.fit_intercept else coded) @ white
            if signs == 1:
                start = np.zeros((shape[0] * shape[2], shape[3]))
                gated = GatedOperator(operator, gates.patterns)
                x = self._solution(coded, partial(fista, gated, loss, penalty, start))
            else:
                interior = white.whitened(_interior(gates, loss))
                cones = ConeLoss(loss, gates.patterns, gates.margins, interior)
                start = np.zeros((shape[0], columns))
                x = self._solution(coded, partial(admm, operator, cones, penalty, start))
        return np.asarray(white @ x.reshape(shape[0], -1)).reshape(shape)

    def _by_interior_point(self, X: Any, loss: OutputLoss, gates: Gates) -> Floats:
        """The weights of a ReLU network."""
        X = X.toarray() if issparse(X) else X  # cones have far more numbers: two of a sample for each gate
        A = np.column_stack([X, np.ones(len(X))]) if loss.fit_intercept else X
        cones = ConeLoss(loss, gates.patterns, gates.margins, _interior(gates, loss))
        with self._operator(A) as coded:
            return self._solution(coded, partial(cone_interior_point, coded, cones, float(self.alpha)))

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

    def _outputs(self, X: Any) -> Floats:
        """What the network gives for each sample: (samples, outputs)."""
        return self.network_(X)


def _interior(gates: Gates, loss: OutputLoss) -> Floats:
    """The gates as coefficients: each is a point of its own cone."""
    rows = [gates.directions, gates.offsets[np.newaxis]] if loss.fit_intercept else [gates.directions]
    return np.vstack(rows)


@dataclass(eq=False, repr=False)
class ConvexMLPRegressor(CodedRegressor, ConvexNetwork):
    """A network of two layers for regression, as sklearn's MLPRegressor, found by convex optimization.

    Minimizes the mean of |y - f(x)|^2 / 2 + alpha / 2 (sum of the squares of all weights and biases but the
    output's) over networks f whose units lie behind gates D_i, half-spaces drawn at random, each of
    which lets a part of the samples pass. That is a convex problem in vectors v_i, one for each gate
    (Pilanci and Ergen, 2020, arXiv 2002.10553; Mishkin, Sahiner and Pilanci, 2022, arXiv 2202.01331).
    Several targets have units of their own.

    Parameters
    ----------
    alpha : float
        Strength of the weight decay, positive; that of MLPRegressor divided by the number of samples.
    activation : {"gated_relu", "relu"}
        "gated_relu": a unit passes its input on where its gate is open, also at new samples. "relu": where
        its input is positive; a harder problem.
    n_gates : int
        Or fewer where sampling finds fewer that differ. With an intercept, one lets all samples pass.
    fit_intercept : bool
        A bias for each unit, as the weight of a feature that is 1, and one for each output, not penalized.
    random_state : int, RandomState or None
        Of the gates.
    tol : float
        Relative, of the duality gap.
    max_iter : int
        Each iteration is two coded maps.
    blocks, tasks, code, executor, timeout, verbose : optional
        As for `polarmap.convex.ElasticNet`.

    Attributes
    ----------
    coefs_ : list of (features, units) and (units, targets)
        Weights of both layers.
    intercepts_ : list of (units,) and (targets,)
    network_ : TwoLayerNetwork
        The same, as a function of X.
    gates_ : (features, gates)
    gate_intercepts_ : (gates,)
        Gate i lets x pass where x @ gates_[:, i] + gate_intercepts_[i] >= 0.
    convex_coef_ : (gates, features, targets)
    convex_intercept_ : (gates, targets)
        The v_i: the network is sum_i D_i (X @ convex_coef_[i] + convex_intercept_[i]) + intercepts_[1], for
        ReLU units at the samples of the fit.
    objective_, dual_gap_, n_iter_, report_
        As for `polarmap.convex.ElasticNet`.
    gradient_map_ : float
        Norm of the gradient map for whitened features, 0 at the minimum; for ReLU units, of what is left of
        the optimality conditions, or of the last step of ADMM times its rho.

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

    def _fit(self, X: Any, y: Floats, weights: Floats) -> None:
        self._is_single = y.ndim == 1
        self._fit_network(X, y.reshape(len(y), -1), weights, Gaussian())

    def _untrained_mlp(self, units: tuple[int]) -> Any:
        X, y = np.zeros((1, self.n_features_in_)), np.zeros((1, len(self.intercepts_[1])))
        return MLPRegressor(hidden_layer_sizes=units).partial_fit(X, y[:, 0] if self._is_single else y)

    def predict(self, X: Any) -> Floats:
        """The network's outputs: (samples,) or (samples, targets)."""
        outputs = self._linear(X)
        return outputs[:, 0] if self._is_single else outputs


@dataclass(eq=False, repr=False)
class ConvexMLPClassifier(ProbabilisticClassifier, ConvexNetwork):
    """A network of two layers for classes, as sklearn's MLPClassifier, found by convex optimization.

    Minimizes the mean logistic loss, multinomial for more than two classes, instead of the squared one;
    else as `ConvexMLPRegressor`, whose parameters and attributes it has. Two classes are one output, more
    have one each.

    Attributes
    ----------
    classes_ : (classes,)

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> X = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> y = X[:, 0] * X[:, 1] > 0  # no line separates these
    >>> with ThreadPoolExecutor(4) as pool:
    ...     model = ConvexMLPClassifier(n_gates=20, tol=1e-2, blocks=4, executor=pool).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    def _fit_classes(self, X: Any, outputs: Floats, codes: Array, weights: Floats) -> None:
        self._fit_network(X, outputs, weights, self._family())

    def _untrained_mlp(self, units: tuple[int]) -> Any:
        mlp = MLPClassifier(hidden_layer_sizes=units)
        return mlp.partial_fit(np.zeros((1, self.n_features_in_)), self.classes_[:1], classes=self.classes_)
