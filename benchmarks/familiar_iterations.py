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
    update, coded : the next iterate from this one, with what all tasks returned, and with an operator.
    """

    blocks: Sequence[Any]
    task: Callable[[Any, Array], Array]
    update: Callable[[Array, Sequence[Array]], Array]
    matrix: Any
    coded: Callable[[Any, Array], Array]
    start: Array


def least_squares(rows: int, columns: int, workers: int) -> Iteration:
    """Gradient descent on |A x - b|^2 / 2, A and b normal."""
    table = np.random.default_rng(0).standard_normal((rows, columns + 1))
    return descent(table, np.subtract, 1.0, workers)


def logistic_regression(rows: int, columns: int, workers: int) -> Iteration:
    """Gradient descent on the logistic loss of normal data whose labels follow the model."""
    stream = np.random.default_rng(1)
    table = stream.standard_normal((rows, columns + 1))
    weights = stream.standard_normal(columns) / np.sqrt(columns)
    table[:, -1] = stream.random(rows) < sigmoid(table[:, :-1] @ weights)
    return descent(table, logistic_residual, 0.25, workers)


def descent(table: Array, residual: Residual, curvature: float, workers: int) -> Iteration:
    """Gradient descent on rows [A | b] by A'residual(A x, b), of a loss that is curved so much at most."""
    A, b = table[:, :-1], table[:, -1]
    # 1 / the largest eigenvalue of A'A, whose entries are normal.
    rate = (np.sqrt(A.shape[0]) + np.sqrt(A.shape[1])) ** -2.0 / curvature
    return Iteration(
        np.split(table, workers),
        partial(gradient, residual),
        lambda x, found: x - rate * sum(found),
        A,
        lambda operator, x: x - rate * (operator.T @ residual(operator @ x, b)),
        np.zeros(A.shape[1]),
    )


def gradient(residual: Residual, block: Array, x: Array) -> Array:
    """Of the loss of the rows [A | b]."""
    A, b = block[:, :-1], block[:, -1]
    return np.asarray(A.T @ residual(A @ x, b))


def logistic_residual(found: Array, labels: Array) -> Array:
    """What the loss of labels 0 and 1 grows by with A x."""
    return sigmoid(found) - labels


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); of large negative numbers, too."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def page_rank(pages: int, links: int, workers: int) -> Iteration:
    """Power iteration at damping 0.85 over a random graph: each page has some links, most to few pages."""
    import scipy.sparse

    stream = np.random.default_rng(2)
    sources = np.tile(np.arange(pages), links)
    targets = (pages * stream.random(len(sources)) ** 2).astype(np.int64)  # the first ones are popular
    share = np.full(len(sources), 0.85 / links)
    P = scipy.sparse.csr_array((share, (targets, sources)), shape=(pages, pages))
    rest = 0.15 / pages
    size = pages // workers
    return Iteration(
        [P[first : first + size] for first in range(0, pages, size)],
        matmul,
        lambda x, found: np.concatenate(found) + rest,
        P,
        lambda operator, x: operator @ x + rest,
        np.full(pages, 1 / pages),
    )
