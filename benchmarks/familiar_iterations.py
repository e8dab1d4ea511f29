"""Define three familiar iterations, each by tasks of plain workers and by products of an operator.

Workers import this module, so it imports only what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import matmul
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Residual = Callable[[Array, Array], Array]  # takes A x and the right-hand side


class Iteration(NamedTuple):
    """An iteration, by tasks of plain workers and by products of an operator.

    Attributes
    ----------
    blocks : Sequence[Any]
        Data of each worker's task: its rows of `matrix` and of the right-hand side.
    task : Callable[[Any, Array], Array]
        Returns a worker's result for its block and the iterate.
    update : Callable[[Array, Sequence[Array]], Array]
        Returns the next iterate from the current one and the results of all tasks.
    step_with_operator : Callable[[Any, Array], Array]
        Returns the next iterate from an operator and the current iterate.
    """

    blocks: Sequence[Any]
    task: Callable[[Any, Array], Array]
    update: Callable[[Array, Sequence[Array]], Array]
    matrix: Any
    step_with_operator: Callable[[Any, Array], Array]
    start: Array


def make_linear_regression(n_rows: int, n_columns: int, n_workers: int) -> Iteration:
    """Return gradient descent on |A x - b|^2 / 2 for normal A and b."""
    table = np.random.default_rng(0).standard_normal((n_rows, n_columns + 1))
    return make_gradient_descent(table, np.subtract, 1.0, n_workers)


def make_logistic_regression(n_rows: int, n_columns: int, n_workers: int) -> Iteration:
    """Return gradient descent on the logistic loss of normal data whose labels follow the model."""
    rng = np.random.default_rng(1)
    table = rng.standard_normal((n_rows, n_columns + 1))
    weights = rng.standard_normal(n_columns) / np.sqrt(n_columns)
    table[:, -1] = rng.random(n_rows) < sigmoid(table[:, :-1] @ weights)
    return make_gradient_descent(table, logistic_residual, 0.25, n_workers)


def make_gradient_descent(table: Array, residual: Residual, curvature: float, n_workers: int) -> Iteration:
    """Return gradient descent on rows [A | b], with gradients A'residual(A x, b).

    Parameters
    ----------
    curvature : float
        Upper bound of the second derivative of the loss of a row.
    """
    A, b = table[:, :-1], table[:, -1]
    # The largest eigenvalue of A'A is close to (sqrt(rows) + sqrt(columns))^2, since its entries are normal.
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
    """Return the gradient of the loss of the rows [A | b]."""
    A, b = block[:, :-1], block[:, -1]
    return np.asarray(A.T @ residual(A @ x, b))


def logistic_residual(predictor: Array, labels: Array) -> Array:
    """Return the derivative of the logistic loss by A x, for labels 0 and 1."""
    return sigmoid(predictor) - labels


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def make_page_rank(n_pages: int, n_links: int, n_workers: int) -> Iteration:
    """Return power iteration with damping 0.85 over a random graph with a few popular pages."""
    import scipy.sparse

    rng = np.random.default_rng(2)
    sources = np.tile(np.arange(n_pages), n_links)
    # Pages with small numbers are popular.
    targets = (n_pages * rng.random(len(sources)) ** 2).astype(np.int64)
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
