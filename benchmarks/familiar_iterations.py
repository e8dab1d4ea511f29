"""Three iterations that people know: cut into a block for each worker, and on an operator.

Workers import this module, so it imports no more than they need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Iteration(NamedTuple):
    """One of them.

    Attributes
    ----------
    blocks
        What the task of each worker holds: rows of `matrix`, beside them those of the right-hand side.
    task
        What it returns for its block and the iterate.
    update
        The next iterate from this one and what all tasks returned.
    matrix
        For an operator.
    coded
        The next iterate from the operator and this one.
    start
        The first iterate.
    """

    blocks: Sequence[Any]
    task: Callable[[Any, Array], Array]
    update: Callable[[Array, Sequence[Array]], Array]
    matrix: Any
    coded: Callable[[Any, Array], Array]
    start: Array


def least_squares(rows: int, columns: int, workers: int) -> Iteration:
    """Gradient descent on |A x - b|^2 / 2, A and b normal."""
    stream = np.random.default_rng(0)
    table = stream.standard_normal((rows, columns + 1))
    A, b = table[:, :-1], table[:, -1]
    rate = (np.sqrt(rows) + np.sqrt(columns)) ** -2.0  # 1 / the largest eigenvalue of A'A
    return Iteration(
        np.split(table, workers),
        least_squares_gradient,
        lambda x, found: x - rate * sum(found),
        A,
        lambda operator, x: x - rate * (operator.T @ (operator @ x - b)),
        np.zeros(columns),
    )


def least_squares_gradient(block: Array, x: Array) -> Array:
    """A'(A x - b) of the rows [A | b]."""
    A, b = block[:, :-1], block[:, -1]
    found: Array = A.T @ (A @ x - b)
    return found


def logistic_regression(rows: int, columns: int, workers: int) -> Iteration:
    """Gradient descent on the mean logistic loss of normal data whose labels follow the model."""
    stream = np.random.default_rng(1)
    table = stream.standard_normal((rows, columns + 1))
    A, y = table[:, :-1], table[:, -1]
    weights = stream.standard_normal(columns) / np.sqrt(columns)
    y[:] = stream.random(rows) < sigmoid(A @ weights)
    rate = 4 / (np.sqrt(rows) + np.sqrt(columns)) ** 2
    return Iteration(
        np.split(table, workers),
        logistic_gradient,
        lambda x, found: x - rate * sum(found),
        A,
        lambda operator, x: x - rate * (operator.T @ (sigmoid(operator @ x) - y)),
        np.zeros(columns),
    )


def logistic_gradient(block: Array, x: Array) -> Array:
    """A'(sigmoid(A x) - y) of the rows [A | y]."""
    A, y = block[:, :-1], block[:, -1]
    found: Array = A.T @ (sigmoid(A @ x) - y)
    return found


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); of large negative numbers, too."""
    found: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return found


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
        product,
        lambda x, found: np.concatenate(found) + rest,
        P,
        lambda operator, x: operator @ x + rest,
        np.full(pages, 1 / pages),
    )


def product(block: Any, x: Array) -> Array:
    """Block times x."""
    found: Array = block @ x
    return found
