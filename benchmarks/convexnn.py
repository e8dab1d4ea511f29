"""Compare convex networks with scikit-learn's MLP and pyscnn: test score, training objective, seconds.

Half of the samples are for training, half for testing; features are standardized. All models have the same
weight decay alpha. The MLP is trained by L-BFGS to convergence from five starts, and the start with the
lowest objective is shown. Its biases are not penalized, which is to its advantage. polarmap's workers are
threads. pyscnn (module scnn; `pip install pyscnn torch`, left out if it is not installed) supports squared
losses only. It gets the gates of polarmap's model and a column of ones; for classification, its targets are 0
and 1. Objectives are evaluated for the returned networks with the loss of polarmap's model.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from benchmarks import parse_quick_flag, print_table
from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor

DATASETS: dict[str, tuple[Callable[..., Any], float]] = {
    "diabetes": (datasets.load_diabetes, 0.1),
    "breast_cancer": (datasets.load_breast_cancer, 0.01),
    "digits": (datasets.load_digits, 0.01),
}
N_STARTS = 5
SplitData = tuple[Any, Any, Any, Any]  # X_train, X_test, y_train, y_test


def load_split(load: Callable[..., Any]) -> SplitData:
    """Return standardized training and test data; regression targets have unit standard deviation."""
    X, y = load(return_X_y=True)
    if load is datasets.load_diabetes:
        y = (y - y.mean()) / y.std()
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
    scaler = StandardScaler().fit(X)
    return scaler.transform(X), scaler.transform(X_test), y, y_test


def fit_polarmap(
    dataset: str, data: SplitData, activation: str, n_gates: int, max_iter: int
) -> tuple[Any, float]:
    X, _, y, _ = data
    estimator = ConvexMLPRegressor if dataset == "diabetes" else ConvexMLPClassifier
    with ThreadPoolExecutor(4) as pool:
        options = {"max_iter": max_iter, "tol": 1e-4, "blocks": 4, "executor": pool}
        model = estimator(DATASETS[dataset][1], activation=activation, n_gates=n_gates, **options)
        started_at = time.perf_counter()
        model.fit(X, y)
        return model, time.perf_counter() - started_at


def mean_loss(model: Any, X: Any, y: Any, is_regression: bool) -> float:
    """Return the mean of the squared or logistic losses."""
    if is_regression:
        return 0.5 * float(np.mean((y - model.predict(X)) ** 2))
    return float(log_loss(y, model.predict_proba(X)))


def fit_mlp(dataset: str, data: SplitData, n_units: int) -> tuple[Any, float, float]:
    """Return the model with the lowest objective of several starts, its objective, and the total seconds."""
    alpha, (X, _, y, _) = DATASETS[dataset][1], data
    estimator_class: Any = MLPRegressor if dataset == "diabetes" else MLPClassifier
    started_at, fits = time.perf_counter(), []
    for seed in range(N_STARTS):
        options = {"alpha": alpha * len(X), "solver": "lbfgs", "max_iter": 5000, "random_state": seed}
        model = estimator_class(hidden_layer_sizes=(n_units,), **options).fit(X, y)
        decay = alpha / 2 * sum(float(np.sum(weights**2)) for weights in model.coefs_)
        fits.append((mean_loss(model, X, y, dataset == "diabetes") + decay, seed, model))
    objective, _, model = min(fits)
    return model, objective, time.perf_counter() - started_at


def fit_scnn(dataset: str, data: SplitData, activation: str, model: Any) -> tuple[float, Any, float]:
    """Return pyscnn's test score, objective ("-" for classifiers) and seconds, with the gates of `model`."""
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU, ConvexReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import AL, RFISTA

    alpha, (X, X_test, y, y_test) = DATASETS[dataset][1], data
    is_regression = dataset == "diabetes"
    targets = y[:, np.newaxis] if is_regression else np.eye(y.max() + 1)[y]
    target_mean = targets.mean(axis=0)
    A, A_test = (np.column_stack([array, np.ones(len(array))]) for array in (X, X_test))
    G = np.vstack([model.gates_, model.gate_intercepts_])
    model_class, solver = (ConvexGatedReLU, RFISTA) if activation == "gated_relu" else (ConvexReLU, AL)
    started_at = time.perf_counter()
    untrained = model_class(G, c=targets.shape[1])
    # pyscnn's loss is the sum of squares over samples and outputs, divided by twice the number of samples.
    options = {"unitize_data": False, "dtype": "float64", "return_convex": False}
    fitted, _ = optimize_model(
        untrained,
        solver(untrained),
        Metrics(),
        A,
        targets - target_mean,
        None,
        None,
        NeuronGL1(alpha),
        **options,
    )
    seconds = time.perf_counter() - started_at
    outputs, train_outputs = (
        np.reshape(fitted(array), (len(array), -1)) + target_mean for array in (A_test, A)
    )
    if is_regression:
        score = 1 - float(np.sum((outputs[:, 0] - y_test) ** 2) / np.sum((y_test - y_test.mean()) ** 2))
        decay = alpha / 2 * sum(float(np.sum(np.asarray(weights) ** 2)) for weights in fitted.parameters)
        return score, 0.5 * float(np.mean((train_outputs - targets) ** 2)) + decay, seconds
    return float(np.mean(outputs.argmax(axis=1) == y_test)), "-", seconds


def compare_networks(small: bool) -> Iterator[tuple[Any, ...]]:
    n_gates = 5 if small else 20
    for name, (load, _) in DATASETS.items():
        data = _, X_test, _, y_test = load_split(load)
        for activation in ("gated_relu", "relu"):
            model, seconds = fit_polarmap(name, data, activation, n_gates, 50 if small else 1000)
            relative_gap = model.dual_gap_ / model.objective_
            yield (
                name,
                f"{activation}, convex",
                model.score(X_test, y_test),
                model.objective_,
                relative_gap,
                seconds,
            )
            try:
                score, objective, seconds = fit_scnn(name, data, activation, model)
            except ModuleNotFoundError:
                continue
            yield name, f"{activation}, pyscnn", score, objective, "-", seconds
        network, objective, seconds = fit_mlp(name, data, 2 * n_gates)
        yield name, "relu, MLP", network.score(X_test, y_test), objective, "-", seconds


if __name__ == "__main__":
    quick = parse_quick_flag(__doc__)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print_table(
        ("data", "network", "test score", "objective", "relative gap", "seconds"), compare_networks(quick)
    )
