"""The base classes of all models: they implement scikit-learn's API, and validate, scale and encode the data.

fit -> _fit of the subclass -> _make_operator (encodes X) -> _minimize (runs a solver) -> coef_, ...
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from math import inf
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
from polarmap.errors import DeadlineExceededError, ModelError, trimmed_tracebacks
from polarmap.executors import MissingExecutor, to_picklable_spec
from polarmap.executors.encryption_keys import check_not_encrypted
from polarmap.linalg.operators import CodedOperator
from polarmap.models.iteration_log import IterationLog, warn_if_not_converged
from polarmap.models.losses import BernoulliFamily, LossFamily, MultinomialFamily
from polarmap.models.operators import (
    AppendedInterceptOperator,
    StandardizedOperator,
    compute_weighted_mean_and_variance,
)
from polarmap.models.solvers.solver import Solution
from polarmap.validation import is_real_number


@dataclass(eq=False, repr=False)
class CodedEstimator(BaseEstimator):  # type: ignore[misc]
    """Base class of all models. Products with the training data are computed by coded maps.

    A coded map does not wait for slow workers. The dataclass fields of a subclass are its scikit-learn
    parameters. A subclass implements `_check_training_data` and `_fit`.
    """

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

    # The deadline of the running fit, in seconds of the monotonic clock. Without a type annotation, it is not
    # a dataclass field, and therefore not a parameter of the model.
    _fit_ends_at = inf

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit the model.

        Parameters
        ----------
        X : array or sparse array (samples, features)
            Features.
        y : array (samples,) or (samples, targets)
            Class labels, counts or real numbers, depending on the model.
        sample_weight : array (samples,), optional
            Weight of each sample, 0 or more; 1 by default.

        Returns
        -------
        self

        Raises
        ------
        ModelError
            If a parameter is invalid, or the data does not determine the model.
        DeadlineExceededError
            If `timeout` passes before the end of the first iteration.
        """
        started_at = time.monotonic()
        with trimmed_tracebacks:
            for name, argument in (("X", X), ("y", y), ("sample_weight", sample_weight)):
                check_not_encrypted(argument, name)
            X, y = self._check_training_data(X, y)
            self._check_parameters()
            checked_weights = self._check_nonnegative_weights(sample_weight, X)
            positive_mask = checked_weights > 0
            if not positive_mask.all():
                X, y, checked_weights = X[positive_mask], y[positive_mask], checked_weights[positive_mask]
            if self.timeout is not None:
                self._fit_ends_at = started_at + self.timeout
            try:
                self._fit(X, y, checked_weights)
            except DeadlineExceededError as error:
                raise DeadlineExceededError(
                    f"the fit did not finish its first iteration within timeout={self.timeout} s. "
                    "Raise timeout"
                ) from error
            finally:
                self.__dict__.pop("_fit_ends_at", None)
            return self

    def _check_training_data(self, X: Any, y: Any) -> tuple[Any, Array]:
        """Validate the training data. Return X, which may be sparse, and y."""
        raise NotImplementedError

    def _fit(self, X: Any, y: Array, sample_weight: Floats) -> None:
        """Fit the model to the samples with positive weights, and set the fitted attributes."""
        raise NotImplementedError

    def _check_parameters(self) -> None:
        self._check_lower_bounds(tol=0.0, max_iter=1, verbose=0)
        if self.timeout is not None and not (is_real_number(self.timeout) and self.timeout > 0):
            raise ModelError(f"timeout must be a positive number of seconds or None, got {self.timeout!r}")

    def _check_lower_bounds(self, **lower_bounds: float) -> None:
        for parameter, lower_bound in lower_bounds.items():
            value = getattr(self, parameter)
            # Like scikit-learn, accept booleans as `verbose`.
            is_bool_verbose = parameter == "verbose" and isinstance(value, bool)
            if not (is_real_number(value) or is_bool_verbose) or not value >= lower_bound:
                raise ModelError(f"{parameter} must be a number, {lower_bound:g} or more, not {value!r}")

    def _check_choice(self, parameter_name: str, allowed_values: Any) -> None:
        value = getattr(self, parameter_name)
        if value not in allowed_values:
            raise ModelError(
                f"{parameter_name} must be one of {', '.join(sorted(allowed_values))}, not {value!r}"
            )

    def _check_nonnegative_weights(self, sample_weight: Any, X: Any) -> Floats:
        """Return one weight per sample. Raise ModelError if a weight is negative."""
        weights = np.asarray(_check_sample_weight(sample_weight, X, dtype=np.float64))
        if (weights < 0).any():
            raise ModelError(
                f"sample_weight must be 0 or more, but has {int((weights < 0).sum())} negative weights, "
                f"the lowest {weights.min():g}. Leave these samples out, or give them the weight 0"
            )
        return weights

    def _make_operator(self, A: Any) -> CodedOperator:
        if isinstance(self.executor, MissingExecutor):
            raise ModelError(
                "this model can predict, but not fit: it was pickled or copied to another process, as with "
                f"n_jobs=2, and its executor, a {self.executor.executor_name}, cannot be pickled. "
                "Use n_jobs=1 (a fit already runs in parallel), or an executor that can be pickled (None, "
                "'localhost', the path of a Lithops YAML file, a Pool of one of these), or set a new one "
                "with set_params(executor=...)"
            )
        operator = CodedOperator(
            A, blocks=self.blocks, tasks=self.tasks, code=self.code, executor=self.executor
        )
        self._set_deadline(operator)
        return operator

    def _set_deadline(self, operator: CodedOperator, fraction: float = 1.0) -> None:
        """Limit the total time of the operator's products to a fraction of the time left for the fit.

        Without a `timeout`, the time of a fit is not limited.
        """
        if self._fit_ends_at < inf:
            operator.set_deadline(fraction * max(0.0, self._fit_ends_at - time.monotonic()))

    def _make_standardized_operator(
        self,
        X: Any,
        sample_weight: Floats,
        ridge_penalty: float = 0.0,
        curvature: float = 1.0,
        sqrt_weight: Floats | None = None,
        intercept_scaling: float | None = None,
    ) -> tuple[CodedOperator, Any, Floats, Floats]:
        """Encode the standardized features A = sqrt_weight * (X - mean) * scale.

        The scale is chosen such that the diagonal of the Hessian of the mean loss is close to 1. If X is
        sparse, X itself is encoded, and A is never formed.

        Parameters
        ----------
        X : array or sparse array (samples, features)
            Features.
        sample_weight : array (samples,)
            Weights for the mean and the variance. They must sum to 1.
        ridge_penalty : float
            Strength of the L2 penalty, which is part of the Hessian.
        curvature : float
            Second derivative of the loss of one sample.
        sqrt_weight : array (samples,), optional
            Factor of each sample. By default, 1.
        intercept_scaling : float, optional
            Value of a constant column to append to A. By default, no column is appended.

        Returns
        -------
        coded_operator : CodedOperator
            Operator of the encoded matrix, which is A, or X if X is sparse.
        operator : LinearOperator
            Operator of A.
        mean : array (features,)
            Mean of each feature; zeros without an intercept.
        scale : array (features,)
            Factor of each feature.
        """
        mean, variance = compute_weighted_mean_and_variance(X, sample_weight, self.fit_intercept)
        hessian_diagonal = curvature * variance + ridge_penalty
        scale = 1.0 / np.sqrt(np.where(hessian_diagonal > 0, hessian_diagonal, 1.0))
        column_scale = np.where(variance > 0, scale, 0.0)
        if issparse(X):
            coded_operator = self._make_operator(X)
            standardized = StandardizedOperator(coded_operator, mean, column_scale, sqrt_weight)
            if intercept_scaling is None:
                return coded_operator, standardized, mean, scale
            return coded_operator, AppendedInterceptOperator(standardized, intercept_scaling), mean, scale
        A = X - mean
        A *= column_scale
        if sqrt_weight is not None:
            A *= sqrt_weight[:, np.newaxis]
        if intercept_scaling is not None:
            A = np.column_stack([A, np.full(len(A), intercept_scaling)])
        coded_operator = self._make_operator(A)
        return coded_operator, coded_operator, mean, scale

    def _minimize(self, coded_operator: CodedOperator, solve: Callable[..., Solution]) -> Floats:
        """Run a solver and return the minimizer x.

        This sets the fitted attributes `n_iter_`, `objective_`, `dual_gap_`, `optimality_` and `report_`, and
        issues a warning if the solver did not converge.

        Parameters
        ----------
        coded_operator : CodedOperator
            Operator whose products the solver computes.
        solve : callable
            Called with the keywords tol, max_iter and callback, as for `fista`. Returns a Solution.
        """
        with IterationLog(type(self).__name__, coded_operator, self.verbose) as iteration_log:
            solution = solve(
                tol=self.tol,
                max_iter=self.max_iter,
                callback=iteration_log.log_iteration if iteration_log else None,
            )
        warn_if_not_converged(solution, self.max_iter, self.timeout)
        # The type is Any, because Ridge stores an array if there are several targets.
        self.n_iter_: Any = solution.n_iter
        self.objective_ = solution.objective
        self.dual_gap_, self.optimality_ = solution.dual_gap, solution.optimality
        self.report_ = coded_operator.report
        return solution.x

    def _predict_outputs(self, X: Any) -> Floats:
        """Validate X and compute the outputs of the model, shape (samples,) or (samples, outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return self._compute_outputs(X)

    def _compute_outputs(self, X: Any) -> Floats:
        return np.asarray(X @ self.coef_.T + self.intercept_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_clone__(self) -> Any:
        """Return an unfitted copy that shares the executor, because worker pools cannot be copied."""
        parameters = self.get_params(deep=False)
        executor = parameters.pop("executor")
        cloned_parameters = {name: clone(value, safe=False) for name, value in parameters.items()}
        return type(self)(**cloned_parameters, executor=executor)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, with the executor replaced by a picklable description."""
        state = dict(super().__getstate__())
        state["executor"] = to_picklable_spec(state["executor"])
        return state


class CodedRegressorMixin(RegressorMixin):  # type: ignore[misc]
    """Mixin for regressors with y of shape (samples,) or (samples, targets).

    List it before `CodedEstimator` among the base classes.
    """

    def _check_training_data(self, X: Any, y: Any) -> tuple[Any, Floats]:
        options = {"accept_sparse": "csr", "dtype": np.float64, "multi_output": True, "y_numeric": True}
        X, y = validate_data(self, X, y, **options)
        return X, y.astype(np.float64)

    def predict(self, X: Any) -> Floats:
        """Predict the targets of X.

        Parameters
        ----------
        X : array or sparse array (samples, features)
            Features.

        Returns
        -------
        array (samples,) or (samples, targets)
        """
        return np.asarray(self._predict_outputs(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class CodedClassifierMixin(ClassifierMixin):  # type: ignore[misc]
    """Mixin for classifiers, whose y contains class labels.

    List it before `CodedEstimator` among the base classes. With two classes, a model has one output. With
    more classes, it has one output per class.
    """

    def _check_training_data(self, X: Any, y: Any) -> tuple[Any, Array]:
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        return X, y

    def _fit(self, X: Any, y: Array, sample_weight: Floats) -> None:
        self.classes_, class_indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ModelError(
                f"y must hold at least two classes, but has only one class, {self.classes_.tolist()[0]!r}"
            )
        indicators = np.eye(len(self.classes_))[class_indices]
        output_indicators = indicators[:, 1:] if len(self.classes_) == 2 else indicators
        self._fit_classes(X, output_indicators, class_indices, sample_weight)

    def _fit_classes(self, X: Any, indicators: Floats, class_indices: Array, sample_weight: Floats) -> None:
        """Fit the model to 0/1 indicators of the classes, and set the fitted attributes.

        Parameters
        ----------
        X : array or sparse array (samples, features)
            Features.
        indicators : array (samples, outputs)
            1 if the sample belongs to the class of the column, otherwise 0. With two classes, there is only a
            column for the second class.
        class_indices : array (samples,)
            Index of the class of each sample in `classes_`.
        sample_weight : array (samples,)
            Positive weight of each sample.
        """
        raise NotImplementedError

    def _compute_class_weights(self, class_indices: Array, sample_weight: Floats) -> Floats:
        """Return the class weights, shape (classes,), by which the sample weights are multiplied."""
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            class_totals = np.bincount(class_indices, sample_weight, len(self.classes_))
            return np.asarray(sample_weight.sum() / (len(class_totals) * class_totals))
        return np.asarray(compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_))

    def decision_function(self, X: Any) -> Floats:
        """Compute a score for each class. The class with the largest score is predicted.

        Parameters
        ----------
        X : array or sparse array (samples, features)
            Features.

        Returns
        -------
        array (samples,) or (samples, classes)
            With two classes, one score per sample, positive for the second class. With more classes, one
            score per class.
        """
        scores = self._predict_outputs(X)
        return np.asarray(scores[:, 0] if scores.shape[1] == 1 else scores)

    def predict(self, X: Any) -> Array:
        """Return the class label with the largest score for each sample in X (samples, features)."""
        scores = self.decision_function(X)
        class_indices = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[class_indices])


class ProbabilisticClassifierMixin(CodedClassifierMixin):
    """Mixin for classifiers that predict probabilities. Their outputs are logits."""

    def _get_loss_family(self) -> LossFamily:
        return BernoulliFamily() if len(self.classes_) == 2 else MultinomialFamily()

    def predict_proba(self, X: Any) -> Floats:
        """Return the probability of each class, shape (samples, classes), for X (samples, features)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return np.asarray(softmax(scores, axis=1))

    def predict_log_proba(self, X: Any) -> Floats:
        """Return the logarithm of the probability of each class, shape (samples, classes)."""
        return np.log(self.predict_proba(X))
