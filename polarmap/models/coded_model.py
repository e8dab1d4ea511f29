"""What all models share: one way to fit, scaled and coded features, and the conventions of scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from polarmap.blocks.code_choice import CodeName
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import Array, Floats
from polarmap.errors import ModelError, without_our_frames
from polarmap.executors import with_faults_of, without_faults
from polarmap.executors.keys import check_may_be_copied
from polarmap.executors.pool import Pool
from polarmap.linalg.operators import CodedOperator
from polarmap.models.features import ConstantFeature, ScaledOperator, moments
from polarmap.models.fit_progress import FitProgress, warn_if_not_converged
from polarmap.models.losses import Bernoulli, Family, Multinomial
from polarmap.models.proximal_gradient import Solution
from polarmap.validation import is_real_number


@dataclass(eq=False, repr=False)
class CodedModel(BaseEstimator):  # type: ignore[misc]
    """An estimator whose products with X are coded maps; the fields of its classes are its parameters."""

    _: KW_ONLY
    fit_intercept: bool = True
    tol: float = 1e-6
    max_iter: int = 5000
    blocks: int | None = None
    tasks: int | None = None
    code: CodeName | PolarCode = "auto"
    executor: Any = None
    timeout: float | None = None
    verbose: int = 0

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (samples, features), which may be sparse, and to y.

        y : labels or counts (samples,), or numbers (samples,) or (samples, targets).
        """
        with without_our_frames:
            for name, data in (("X", X), ("y", y), ("sample_weight", sample_weight)):
                check_may_be_copied(data, name)
            X, y = self._checked_data(X, y)
            self._check_options()
            weights = self._weights(sample_weight, X)
            kept = weights > 0
            if not kept.all():
                X, y, weights = X[kept], y[kept], weights[kept]
            self._fit(X, y, weights)
            return self

    def _checked_data(self, X: Any, y: Any) -> tuple[Any, Array]:
        """X, sparse if it was, and y."""
        raise NotImplementedError

    def _fit(self, X: Any, y: Array, weights: Floats) -> None:
        """Set what the model finds by these samples, whose weights are positive."""
        raise NotImplementedError

    def _check_options(self) -> None:
        self._check_numbers(tol=0.0, max_iter=1, verbose=0)

    def _check_numbers(self, **least: float) -> None:
        for name, bound in least.items():
            value = getattr(self, name)
            is_habit = name == "verbose" and isinstance(value, bool)  # of scikit-learn's users
            if not (is_real_number(value) or is_habit) or not value >= bound:
                raise ModelError(f"{name} must be a number, {bound:g} or more, not {value!r}")

    def _check_choice(self, name: str, choices: Any) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ModelError(f"{name} must be one of {', '.join(sorted(choices))}, not {value!r}")

    def _weights(self, sample_weight: Any, X: Any) -> Floats:
        """A weight for each sample; ModelError for negative ones."""
        weights = np.asarray(_check_sample_weight(sample_weight, X, dtype=np.float64))
        if (weights < 0).any():
            raise ModelError(
                f"sample_weight holds {int((weights < 0).sum())} negative weights, the lowest "
                f"{weights.min():g}: leave these samples out, or give them the weight 0"
            )
        return weights

    def _operator(self, A: Any) -> CodedOperator:
        if isinstance(self.executor, StrandedExecutor):
            raise ModelError(
                f"the executor of this model, a {self.executor.name}, stayed behind when the model was "
                "pickled or copied, as n_jobs=2 does: it can predict, but not fit. Use n_jobs=1 (the maps of "
                "a fit are parallel already), or an executor that travels (None, 'localhost', the path of a "
                "Lithops YAML file, a Pool of one of these), or give it one with set_params(executor=...)"
            )
        options = {name: getattr(self, name) for name in ("blocks", "tasks", "code", "executor", "timeout")}
        return CodedOperator(A, **options)

    def _scaled_operator(
        self,
        X: Any,
        shares: Floats,
        penalty: float = 0.0,
        curvature: float = 1.0,
        root: Floats | None = None,
        unit: float | None = None,
    ) -> tuple[CodedOperator, Any, Floats, Floats]:
        """A = root * (X - mean) * scale, by which the Hessian of the mean loss has about 1 on its diagonal.

        Returned are what is coded, A as an operator whose products are made of those, mean (0 without an
        intercept) and scale. A sparse X stays what it is: A is never formed.

        shares : of the samples in a mean; their sum is 1.
        unit : a constant that A has in one column more.
        """
        mean, square = moments(X, shares, self.fit_intercept)
        diagonal = curvature * square + penalty
        scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        used = np.where(square > 0, scale, 0.0)
        if issparse(X):
            coded = self._operator(X)
            scaled = ScaledOperator(coded, mean, used, root)
            return coded, scaled if unit is None else ConstantFeature(scaled, unit), mean, scale
        A = X - mean
        A *= used
        if root is not None:
            A *= root[:, np.newaxis]
        if unit is not None:
            A = np.column_stack([A, np.full(len(A), unit)])
        coded = self._operator(A)
        return coded, coded, mean, scale

    def _solution(self, coded: CodedOperator, minimize: Callable[..., Solution]) -> Floats:
        """What is found; sets n_iter_, objective_, dual_gap_, gradient_map_ and report_.

        minimize : of tol, max_iter and callback, as those of `fista`.
        """
        progress = FitProgress(type(self).__name__, coded, self.verbose)
        found = minimize(
            tol=self.tol, max_iter=self.max_iter, callback=progress.iteration if progress else None
        )
        warn_if_not_converged(found.converged, self.max_iter)
        self.n_iter_: Any = found.n_iter  # of Ridge an array, for several targets
        self.objective_ = found.objective
        self.dual_gap_, self.gradient_map_ = found.gap, found.gradient_map
        self.report_ = coded.report
        return found.x

    def _linear(self, X: Any) -> Floats:
        """What the model makes of checked features, (samples,) or (samples, outputs)."""
        check_is_fitted(self)
        return self._outputs(validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False))

    def _outputs(self, X: Any) -> Floats:
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_clone__(self) -> Any:
        """A clone shares the executor: pools cannot be copied."""
        options = self.get_params(deep=False)
        executor = options.pop("executor")
        copies = {name: clone(value, safe=False) for name, value in options.items()}
        return type(self)(**copies, executor=executor)

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model has what describes its executor: workers do not travel."""
        state = dict(super().__getstate__())
        state["executor"] = _picklable(state["executor"])
        return state


class CodedRegressor(RegressorMixin):  # type: ignore[misc]
    """Before a `CodedModel`: y is numbers, (samples,) or (samples, targets)."""

    def _checked_data(self, X: Any, y: Any) -> tuple[Any, Floats]:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True
        )
        return X, y.astype(np.float64)

    def predict(self, X: Any) -> Floats:
        """Targets as the fitted coefficients predict them: (samples,) or (samples, targets)."""
        return np.asarray(self._linear(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class CodedClassifier(ClassifierMixin):  # type: ignore[misc]
    """Before a `CodedModel`: y is labels. For two classes there is one output, for more one a class."""

    def _checked_data(self, X: Any, y: Any) -> tuple[Any, Array]:
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        return X, y

    def _fit(self, X: Any, y: Array, weights: Floats) -> None:
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ModelError(
                f"y holds one class only, {self.classes_.tolist()[0]!r}: there is nothing to tell apart"
            )
        onehot = np.eye(len(self.classes_))[codes]
        self._fit_classes(X, onehot[:, 1:] if len(self.classes_) == 2 else onehot, codes, weights)

    def _fit_classes(self, X: Any, outputs: Floats, codes: Array, weights: Floats) -> None:
        """Fit to columns of 0 and 1, for each class or the second of two.

        codes : of the samples, the index of each one's class.
        """
        raise NotImplementedError

    def _class_weights(self, codes: Array, weights: Floats) -> Floats:
        """A factor for the weights of each class."""
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            totals = np.bincount(codes, weights, len(self.classes_))
            return np.asarray(weights.sum() / (len(totals) * totals))
        return np.asarray(compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_))

    def decision_function(self, X: Any) -> Floats:
        """Scores of the classes: (samples,) for two of them, (samples, classes) for more."""
        eta = self._linear(X)
        return np.asarray(eta[:, 0] if eta.shape[1] == 1 else eta)

    def predict(self, X: Any) -> Array:
        """The class of each sample with the largest decision function."""
        eta = self.decision_function(X)
        index = (eta > 0).astype(int) if eta.ndim == 1 else eta.argmax(axis=1)
        return np.asarray(self.classes_[index])


class ProbabilisticClassifier(CodedClassifier):
    """A classifier whose outputs are logits."""

    def _family(self) -> Family:
        return Bernoulli() if len(self.classes_) == 2 else Multinomial()

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities of the classes: (samples, classes)."""
        eta = self.decision_function(X)
        if eta.ndim == 1:
            return np.stack([expit(-eta), expit(eta)], axis=1)
        return np.asarray(softmax(eta, axis=1))

    def predict_log_proba(self, X: Any) -> Floats:
        """Logarithms of the probabilities of the classes: (samples, classes)."""
        return np.log(self.predict_proba(X))


class StrandedExecutor:
    """In the place of an executor that could not be pickled along with a model.

    >>> StrandedExecutor("ThreadPoolExecutor")
    <ThreadPoolExecutor, left behind>
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, left behind>"


def _picklable(executor: Any) -> Any:
    """What is pickled in the place of an executor: what describes it, if anything does."""
    inner = without_faults(executor)
    found = _picklable(inner.executor) if isinstance(inner, Pool) else inner
    if found is None or isinstance(found, (str, os.PathLike)):
        return with_faults_of(executor, found)
    return found if isinstance(found, StrandedExecutor) else StrandedExecutor(type(found).__name__)
