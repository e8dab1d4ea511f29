"""Convex networks beside scikit-learn's MLP and pyscnn: test score, objective of the training, seconds.

Half of the samples train, half test; features are standardized. alpha is the weight decay of all. Of the
MLP, five starts are trained by L-BFGS to their end, and the one of the least objective shown; its biases are
not penalized, which favours it. Our workers are threads. pyscnn (module scnn; `pip install pyscnn torch`,
left out where it is not installed) has squared losses only, and gets the gates of ours and a column of ones;
for classes, 0 and 1 are its targets. Objectives are those of the networks returned, with the loss of ours.
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

from benchmarks import is_quick, show
from polarmap.convexnn import ConvexMLPClassifier, ConvexMLPRegressor

DATA: dict[str, tuple[Callable[..., Any], float]] = {
    "diabetes": (datasets.load_diabetes, 0.1),
    "breast_cancer": (datasets.load_breast_cancer, 0.01),
    "digits": (datasets.load_digits, 0.01),
}
STARTS = 5
Data = tuple[Any, Any, Any, Any]  # training and test data, their targets


def split(load: Callable[..., Any]) -> Data:
    """Standardized training and test data; targets of a regression in units of their deviation."""
    X, y = load(return_X_y=True)
    if load is datasets.load_diabetes:
        y = (y - y.mean()) / y.std()
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
    scaler = StandardScaler().fit(X)
    return scaler.transform(X), scaler.transform(X_test), y, y_test


def ours(name: str, data: Data, activation: str, gates: int, max_iter: int) -> tuple[Any, float]:
    X, _, y, _ = data
    estimator = ConvexMLPRegressor if name == "diabetes" else ConvexMLPClassifier
    with ThreadPoolExecutor(4) as pool:
        options = {"max_iter": max_iter, "tol": 1e-4, "blocks": 4, "executor": pool}
        model = estimator(DATA[name][1], activation=activation, n_gates=gates, **options)
        begin = time.perf_counter()
        model.fit(X, y)
        return model, time.perf_counter() - begin


def loss(model: Any, X: Any, y: Any, is_regression: bool) -> float:
    """Mean of the squared or logistic losses."""
    if is_regression:
        return 0.5 * float(np.mean((y - model.predict(X)) ** 2))
    return float(log_loss(y, model.predict_proba(X)))


def mlp(name: str, data: Data, units: int) -> tuple[Any, float, float]:
    """The best of some starts, its objective, and the seconds of all."""
    alpha, (X, _, y, _) = DATA[name][1], data
    kind: Any = MLPRegressor if name == "diabetes" else MLPClassifier
    begin, found = time.perf_counter(), []
    for seed in range(STARTS):
        options = {"alpha": alpha * len(X), "solver": "lbfgs", "max_iter": 5000, "random_state": seed}
        model = kind(hidden_layer_sizes=(units,), **options).fit(X, y)
        decay = alpha / 2 * sum(float(np.sum(weights**2)) for weights in model.coefs_)
        found.append((loss(model, X, y, name == "diabetes") + decay, seed, model))
    objective, _, model = min(found)
    return model, objective, time.perf_counter() - begin


def scnn(name: str, data: Data, activation: str, model: Any) -> tuple[float, Any, float]:
    """Test score, objective where the loss is that of ours, seconds of pyscnn with the gates of `model`."""
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU, ConvexReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import AL, RFISTA

    alpha, (X, X_test, y, y_test) = DATA[name][1], data
    is_regression = name == "diabetes"
    targets = y[:, np.newaxis] if is_regression else np.eye(y.max() + 1)[y]
    centre = targets.mean(axis=0)
    A, A_test = (np.column_stack([one, np.ones(len(one))]) for one in (X, X_test))
    G = np.vstack([model.gates_, model.gate_intercepts_])
    kind, solver = (ConvexGatedReLU, RFISTA) if activation == "gated_relu" else (ConvexReLU, AL)
    begin = time.perf_counter()
    convex = kind(G, c=targets.shape[1])
    # Its loss is the sum of squares over samples and outputs, divided by twice the samples.
    options = {"unitize_data": False, "dtype": "float64", "return_convex": False}
    solved, _ = optimize_model(
        convex, solver(convex), Metrics(), A, targets - centre, None, None, NeuronGL1(alpha), **options
    )
    seconds = time.perf_counter() - begin
    outputs, trained = (np.reshape(solved(one), (len(one), -1)) + centre for one in (A_test, A))
    if is_regression:
        score = 1 - float(np.sum((outputs[:, 0] - y_test) ** 2) / np.sum((y_test - y_test.mean()) ** 2))
        decay = alpha / 2 * sum(float(np.sum(np.asarray(weights) ** 2)) for weights in solved.parameters)
        return score, 0.5 * float(np.mean((trained - targets) ** 2)) + decay, seconds
    return float(np.mean(outputs.argmax(axis=1) == y_test)), "-", seconds


def rows(is_short: bool) -> Iterator[tuple[Any, ...]]:
    gates = 5 if is_short else 20
    for name, (load, _) in DATA.items():
        data = _, X_test, _, y_test = split(load)
        for activation in ("gated_relu", "relu"):
            model, seconds = ours(name, data, activation, gates, 50 if is_short else 1000)
            gap = model.dual_gap_ / model.objective_
            yield name, f"{activation}, convex", model.score(X_test, y_test), model.objective_, gap, seconds
            try:
                score, objective, seconds = scnn(name, data, activation, model)
            except ModuleNotFoundError:
                continue
            yield name, f"{activation}, pyscnn", score, objective, "-", seconds
        network, objective, seconds = mlp(name, data, 2 * gates)
        yield name, "relu, MLP", network.score(X_test, y_test), objective, "-", seconds


if __name__ == "__main__":
    short = is_quick(__doc__)
    warnings.simplefilter("ignore", ConvergenceWarning)
    show(("data", "network", "test score", "objective", "relative gap", "seconds"), rows(short))
