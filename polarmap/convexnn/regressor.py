"""Regression by a network of two layers that is trained to the global optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPRegressor

from polarmap.blocks.code_choice import CodeName
from polarmap.code.polar import PolarCode
from polarmap.convexnn.convex_network import ConvexNetwork
from polarmap.convexnn.output_loss import Gaussian
from polarmap.errors import without_our_frames
from polarmap.glm.linear_regressor import LinearRegressor

Floats = npt.NDArray[np.float64]


class ConvexMLPRegressor(LinearRegressor, ConvexNetwork):
    """A network of two layers for regression, as sklearn's MLPRegressor, found by convex optimization.

    Minimizes the mean of |y - f(x)|^2 / 2 + alpha / 2 (sum of the squares of all weights and biases but the
    output's) over networks f whose units lie behind gates D_i, half-spaces drawn at random, each of
    which lets a part of the samples pass. That is a convex problem: with A = [X, 1],

        min over v_i, c: mean of |y - c - sum_i D_i A v_i|^2 / 2 + alpha sum_i |v_i|,

    each |v_i| twice the weight decay of the unit that v_i becomes (Pilanci and Ergen, 2020, arXiv
    2002.10553; Mishkin, Sahiner and Pilanci, 2022, arXiv 2202.01331). For ReLU units v_i is the difference
    of two vectors with (2 D_i - 1) A v >= 0. Several targets have units of their own.

    Parameters
    ----------
    alpha : float
        Strength of the weight decay, positive; that of MLPRegressor divided by the number of samples.
    activation : {"gated_relu", "relu"}
        "gated_relu": a unit passes its input on where its gate is open, also at new samples. "relu": where
        its input is positive; a harder problem, of some hundred or thousand iterations.
    n_gates : int
        As many gates as that, or fewer where sampling finds fewer that differ. With an intercept, one
        lets all samples pass.
    fit_intercept : bool
        A bias for each unit, as the weight of a feature that is 1, and one for each output, which is not
        penalized.
    random_state : int, RandomState or None
        Of the gates.
    tol : float
        Relative, of the duality gap.
    max_iter : int
        Each iteration is two coded maps.
    blocks, workers, code, executor, timeout, verbose : optional
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
    objective_ : float
    dual_gap_ : float
        objective_ is at most that far above its minimum.
    gradient_map_ : float
        Norm of the gradient map for whitened features, 0 at the minimum; for ReLU units, of the last step
        of ADMM times its rho.
    n_iter_ : int
    report_ : Report
        Of the last coded map.

    Raises
    ------
    ModelError
        Options that cannot be.

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

    def __init__(
        self,
        alpha: float = 1e-2,
        *,
        activation: str = "gated_relu",
        n_gates: int = 50,
        fit_intercept: bool = True,
        random_state: Any = 0,
        tol: float = 1e-6,
        max_iter: int = 5000,
        blocks: int | None = None,
        workers: int | None = None,
        code: CodeName | PolarCode = "auto",
        executor: Any = None,
        timeout: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.alpha, self.activation, self.n_gates = alpha, activation, n_gates
        self.fit_intercept, self.random_state = fit_intercept, random_state
        self.tol, self.max_iter = tol, max_iter
        self.blocks, self.workers, self.code = blocks, workers, code
        self.executor, self.timeout, self.verbose = executor, timeout, verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (samples, features), which may be sparse, and y (samples,) or (samples, targets)."""
        with without_our_frames:
            X, y = self._validated(X, y)
            self._check_network_options()
            weights = self._weights(sample_weight, X)
            kept = weights > 0
            self._is_single = y.ndim == 1
            self._fit_network(X[kept], y[kept].reshape(int(kept.sum()), -1), weights[kept], Gaussian())
            return self

    def _untrained_mlp(self, units: tuple[int]) -> Any:
        X, y = np.zeros((1, self.n_features_in_)), np.zeros((1, len(self.intercepts_[1])))
        return MLPRegressor(hidden_layer_sizes=units).partial_fit(X, y[:, 0] if self._is_single else y)

    def predict(self, X: Any) -> Floats:
        """The network's outputs: (samples,) or (samples, targets)."""
        outputs = self._linear(X)
        return outputs[:, 0] if self._is_single else outputs
