"""What all models share: features scaled and coded, and the conventions of scikit-learn."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from polarmap.errors import ModelError
from polarmap.executors.faulty import FaultyExecutor
from polarmap.executors.pool import Pool
from polarmap.glm.scaled_operator import ScaledOperator, moments
from polarmap.linalg.operators import CodedOperator

Floats = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)


class CodedModel(BaseEstimator):  # type: ignore[misc]
    """What the estimators share: standardized features as a CodedOperator, and what sklearn asks for."""

    def _operator(self, A: Any) -> CodedOperator:
        if isinstance(self.executor, StrandedExecutor):
            raise ModelError(
                f"the executor of this model, a {self.executor.name}, stayed behind when the model was "
                "pickled or copied, as n_jobs=2 does: it can predict, but not fit. Use n_jobs=1 (the maps of "
                "a fit are parallel already), or an executor that travels (None, 'localhost', the path of a "
                "Lithops YAML file, a Pool of one of these), or give it one with set_params(executor=...)"
            )
        options = {name: getattr(self, name) for name in ("blocks", "workers", "code", "executor", "timeout")}
        return CodedOperator(A, **options)

    def _scaled_operator(
        self, X: Any, shares: Floats, penalty: float, curvature: float = 1.0, root: Floats | None = None
    ) -> tuple[CodedOperator | ScaledOperator, Floats, Floats]:
        """A = root * (X - mean) * scale, by which the Hessian of the mean loss has about 1 on its diagonal.

        Solvers converge on A as they do on well-scaled data; the model is that of X. Without an
        intercept, mean is 0. A sparse X stays what it is: A is never formed.

        shares : of the samples in a mean; their sum is 1.
        root : of each sample; 1 by default.
        """
        is_sparse = issparse(X)
        if is_sparse:
            mean, square = moments(X, shares, self.fit_intercept)
        else:
            mean = shares @ X if self.fit_intercept else np.zeros(X.shape[1])
            A = X - mean
            square = shares @ A**2
        constant = square <= (10 * EPS * mean) ** 2
        square[constant] = 0.0
        diagonal = curvature * square + penalty
        scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        used = np.where(constant, 0.0, scale)
        if is_sparse:
            return ScaledOperator(self._operator(X), mean, used, root), mean, scale
        A *= used
        if root is not None:
            A *= root[:, np.newaxis]
        return self._operator(A), mean, scale

    def _weights(self, sample_weight: Any, X: Any) -> Floats:
        """A weight for each sample; ModelError for negative ones."""
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if (weights < 0).any():
            raise ModelError(
                f"sample_weight holds {int((weights < 0).sum())} negative weights, the lowest "
                f"{weights.min():g}: leave these samples out, or give them the weight 0"
            )
        return np.asarray(weights)

    def _check_numbers(self, **least: float) -> None:
        for name, bound in least.items():
            value = getattr(self, name)
            is_number = isinstance(value, (int, float, np.number)) and (
                name == "verbose"
                or not isinstance(value, bool)  # verbose=True is a habit of scikit-learn's users
            )
            if not is_number or not value >= bound:
                raise ModelError(f"{name} must be a number, {bound:g} or more, not {value!r}")

    def _check_solver(self, solvers: Any) -> None:
        if self.solver not in solvers:
            raise ModelError(f"solver must be one of {', '.join(sorted(solvers))}, not {self.solver!r}")

    def _linear(self, X: Any) -> Floats:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
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
    if isinstance(executor, FaultyExecutor):
        inner = _picklable(executor.executor)
        return inner if isinstance(inner, StrandedExecutor) else replace(executor, executor=inner)
    if isinstance(executor, Pool):
        inner = _picklable(executor.executor)
        return (
            inner if not isinstance(inner, StrandedExecutor) else StrandedExecutor(f"Pool of a {inner.name}")
        )
    if executor is None or isinstance(executor, (str, os.PathLike, StrandedExecutor)):
        return executor
    return StrandedExecutor(type(executor).__name__)
