"""Three iterations that people know: cut into a block for each worker, and on an operator.

Workers import this module, so it imports no more than they need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import matmul
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Residual = Callable[[Array, Array], Array]  # of A x and of the right-hand side


class Iteration(NamedTuple):
    """One of them.

    blocks, task : what the task of each worker holds, rows of `matrix` and of the right-hand side, and what
        it returns for them and the iterate.
    update, step_with_operator : the next iterate from this one, with what all tasks returned, and with an
        operator.
    """

    blocks: Sequence[Any]
    task: Callable[[Any, Array], Array]
    update: Callable[[Array, Sequence[Array]], Array]
    matrix: Any
    step_with_operator: Callable[[Any, Array], Array]
    start: Array


def make_linear_regression(n_rows: int, n_columns: int, n_workers: int) -> Iteration:
    """Gradient descent on |A x - b|^2 / 2, A and b normal."""
    table = np.random.default_rng(0).standard_normal((n_rows, n_columns + 1))
    return make_gradient_descent(table, np.subtract, 1.0, n_workers)


def make_logistic_regression(n_rows: int, n_columns: int, n_workers: int) -> Iteration:
    """Gradient descent on the logistic loss of normal data whose labels follow the model."""
    rng = np.random.default_rng(1)
    table = rng.standard_normal((n_rows, n_columns + 1))
    weights = rng.standard_normal(n_columns) / np.sqrt(n_columns)
    table[:, -1] = rng.random(n_rows) < sigmoid(table[:, :-1] @ weights)
    return make_gradient_descent(table, logistic_residual, 0.25, n_workers)


def make_gradient_descent(table: Array, residual: Residual, curvature: float, n_workers: int) -> Iteration:
    """Gradient descent on rows [A | b] by A'residual(A x, b), of a loss that is curved so much at most."""
    A, b = table[:, :-1], table[:, -1]
    # 1 / the largest eigenvalue of A'A, whose entries are normal.
    step_length = (np.sqrt(A.shape[0]) + np.sqrt(A.shape[1])) ** -2.0 / curvature
    return Iteration(
        np.split(table, n_workers),
        partial(loss_gradient, residual),
        lambda x, results: x - step_length * sum(results),
        A,
        lambda operator, x: x - step_length * (operator.T @ residual(operator @ x, b)),
        np.zeros(A.shape[1]),
    )


def loss_gradient(residual: Residual, block: Array, x: Array) -> Array:
    """Of the loss of the rows [A | b]."""
    A, b = block[:, :-1], block[:, -1]
    return np.asarray(A.T @ residual(A @ x, b))


def logistic_residual(predictor: Array, labels: Array) -> Array:
    """What the loss of labels 0 and 1 grows by with A x."""
    return sigmoid(predictor) - labels


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); of large negative numbers, too."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def make_page_rank(n_pages: int, n_links: int, n_workers: int) -> Iteration:
    """Power iteration at damping 0.85 over a random graph: each page has some links, most to few pages."""
    import scipy.sparse

    rng = np.random.default_rng(2)
    sources = np.tile(np.arange(n_pages), n_links)
    targets = (n_pages * rng.random(len(sources)) ** 2).astype(np.int64)  # the first ones are popular
    link_weights = np.full(len(sources), 0.85 / n_links)
    P = scipy.sparse.csr_array((link_weights, (targets, sources)), shape=(n_pages, n_pages))
    teleport = 0.15 / n_pages
    pages_per_worker = n_pages // n_workers
    return Iteration(
        [P[start : start + pages_per_worker] for start in range(0, n_pages, pages_per_worker)],
        matmul,
        lambda x, results: np.concatenate(results) + teleport,
        P,
        lambda operator, x: operator @ x + teleport,
        np.full(n_pages, 1 / n_pages),
    )
