"""Classification by a network of two layers that is trained to the global optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier

from polarmap.blocks.code_choice import CodeName
from polarmap.code.polar import PolarCode
from polarmap.convexnn.convex_network import ConvexNetwork
from polarmap.convexnn.output_loss import Binary, Softmax
from polarmap.errors import without_our_frames
from polarmap.glm.linear_classifier import LinearClassifier

Floats = npt.NDArray[np.float64]


class ConvexMLPClassifier(LinearClassifier, ConvexNetwork):
    """A network of two layers for classes, as sklearn's MLPClassifier, found by convex optimization.

    Minimizes the mean logistic loss, multinomial for more than two classes, instead of the squared one;
    else as `ConvexMLPRegressor`, whose parameters and attributes it has. Two classes are one output, more
    have one each.

    Attributes
    ----------
    classes_ : (classes,)

    Raises
    ------
    ModelError
        Options that cannot be; a single class.

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
        """Fit to X (samples, features), which may be sparse, and labels y (samples,)."""
        with without_our_frames:
            X, codes, weights = self._checked_samples(X, y, sample_weight)
            self._check_network_options()
            family = Binary() if len(self.classes_) == 2 else Softmax()
            self._fit_network(X, self._outputs(codes), weights, family)
            return self

    def _untrained_mlp(self, units: tuple[int]) -> Any:
        mlp = MLPClassifier(hidden_layer_sizes=units)
        return mlp.partial_fit(np.zeros((1, self.n_features_in_)), self.classes_[:1], classes=self.classes_)

    def predict_proba(self, X: Any) -> Floats:
        """(samples, classes)."""
        eta = self._linear(X)
        if eta.shape[1] == 1:
            mean = Binary().mean(eta)
            return np.hstack([1.0 - mean, mean])
        return np.asarray(Softmax().mean(eta))
