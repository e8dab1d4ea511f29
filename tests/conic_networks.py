"""Convex networks with squared losses as cone programs, and networks trained by gradients: the oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
from conic_solver import conic_minimum
from scipy.linalg import block_diag
from scipy.optimize import minimize


def conic_network_objective(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """The minimum of the problem of a regressor with its gates, by Clarabel."""
    A, samples = np.column_stack([X, np.ones(len(X))]), len(X)
    patterns = X @ model.gates_ + model.gate_intercepts_ >= 0
    signs = (1,) if model.activation == "gated_relu" else (1, -1)
    pieces = [(sign, open_) for sign in signs for open_ in patterns.T]
    G = np.hstack([sign * open_[:, None] * A for sign, open_ in pieces])
    count, size, width = len(pieces), G.shape[1], A.shape[1]
    G = np.column_stack([G, np.zeros((samples, count)), np.ones(samples)])  # weights, their norms, intercept
    P, q = G.T @ G / samples, -G.T @ y / samples
    q[size : size + count] = model.alpha
    cones = []
    for piece in range(count):
        cone = np.zeros((1 + width, G.shape[1]))
        cone[0, size + piece] = -1
        cone[1:, piece * width : (piece + 1) * width] = -np.eye(width)
        cones.append((cone, np.zeros(1 + width), "second order"))
    if len(signs) == 2:
        sides = block_diag(*[(1.0 - 2.0 * open_)[:, None] * A for _, open_ in pieces])
        sides = np.column_stack([sides, np.zeros((len(sides), count + 1))])
        cones.append((sides, np.zeros(len(sides)), "nonnegative"))
    return conic_minimum(P, q, cones)[1] + float(y @ y) / (2 * samples)


def trained_network_objective(X: np.ndarray, y: np.ndarray, alpha: float, units: int, seed: int) -> float:
    """Where L-BFGS leads from random weights of a ReLU network, whose output intercept is free."""
    A, width = np.column_stack([X, np.ones(len(X))]), X.shape[1] + 1

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        first, second, c = theta[: width * units].reshape(width, units), theta[width * units : -1], theta[-1]
        inputs = A @ first
        hidden = np.maximum(inputs, 0)
        error = (hidden @ second + c - y) / len(y)
        slope = A.T @ (error[:, None] * second * (inputs > 0)) + alpha * first
        gradient = np.concatenate([slope.ravel(), hidden.T @ error + alpha * second, [error.sum()]])
        value = len(y) / 2 * float(error @ error) + alpha / 2 * float(np.sum(theta[:-1] ** 2))
        return value, gradient

    start = np.random.default_rng(seed).standard_normal(width * units + units + 1)
    return float(minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).fun)
