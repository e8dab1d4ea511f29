"""Oracles for convex networks: their problems as cone programs, and networks trained by gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from conic_solver import conic_minimum
from scipy.linalg import block_diag
from scipy.optimize import minimize


def network_outputs_and_cones(model: Any, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Return the matrix, penalty vector and cone constraints of a network with one output.

    The variables are the weights of all pieces, their norms, and the intercept.
    """
    has_intercept, samples = bool(model.fit_intercept), len(X)
    A = np.column_stack([X, np.ones(samples)]) if has_intercept else X
    patterns = X @ model.gates_ + model.gate_intercepts_ >= 0
    signs = (1,) if model.activation == "gated_relu" else (1, -1)
    pieces = [(sign, open_) for sign in signs for open_ in patterns.T]
    G = np.hstack([sign * open_[:, None] * A for sign, open_ in pieces])
    count, size, width = len(pieces), G.shape[1], A.shape[1]
    G = np.column_stack([G, np.zeros((samples, count)), np.ones((samples, int(has_intercept)))])
    penalty = np.zeros(G.shape[1])
    penalty[size : size + count] = model.alpha
    cones = []
    for piece in range(count):
        cone = np.zeros((1 + width, G.shape[1]))
        cone[0, size + piece] = -1
        cone[1:, piece * width : (piece + 1) * width] = -np.eye(width)
        cones.append((cone, np.zeros(1 + width), "second order"))
    if len(signs) == 2:
        sides = block_diag(*[(1.0 - 2.0 * open_)[:, None] * A for _, open_ in pieces])
        sides = np.column_stack([sides, np.zeros((len(sides), count + has_intercept))])
        cones.append((sides, np.zeros(len(sides)), "nonnegative"))
    return G, penalty, cones


def conic_network_objective(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the minimum of a regressor's problem with its gates, computed by Clarabel."""
    G, penalty, cones = network_outputs_and_cones(model, X)
    P, q = G.T @ G / len(X), penalty - G.T @ y / len(X)
    return conic_minimum(P, q, cones)[1] + float(y @ y) / (2 * len(X))


def conic_classifier_objective(model: Any, X: np.ndarray, codes: np.ndarray) -> float:
    """Return the minimum of a classifier's problem with its gates, computed by Clarabel.

    The loss of a sample is t - eta_y, where sum_k u_k <= 1 and exp(eta_k - t) <= u_k. With two classes, the
    first has eta = 0.
    """
    G, penalty, of_one = network_outputs_and_cones(model, X)
    samples, classes = len(X), len(model.classes_)
    outputs = 1 if classes == 2 else classes
    size = G.shape[1] * outputs
    total = size + samples + samples * classes  # Variables: the weights of each output, t, and u.
    q = np.concatenate(
        [np.tile(penalty, outputs), np.full(samples, 1 / samples), np.zeros(samples * classes)]
    )
    cones: list[Any] = []
    if outputs > 1:
        # A softmax leaves one intercept free.
        cones.append((np.eye(1, total, size - 1), np.zeros(1), "zero"))
    for output in range(outputs):
        for cone, h, kind in of_one:
            wide = np.zeros((len(cone), total))
            wide[:, output * G.shape[1] : (output + 1) * G.shape[1]] = cone
            cones.append((wide, h, kind))
    for code in range(classes):
        design = np.zeros((samples, total))  # Coefficients of eta for this class.
        if (output := code - classes + outputs) >= 0:
            design[:, output * G.shape[1] : (output + 1) * G.shape[1]] = G
        q -= design[codes == code].sum(axis=0) / samples
        for sample in range(samples):
            wide = np.zeros((3, total))
            wide[0], wide[0, size + sample] = -design[sample], 1.0
            wide[2, size + samples + sample * classes + code] = -1.0
            cones.append((wide, np.array([0.0, 1.0, 0.0]), "exponential"))
    sums = np.hstack([np.zeros((samples, size + samples)), np.kron(np.eye(samples), np.ones(classes))])
    cones.append((sums, np.ones(samples), "nonnegative"))
    return conic_minimum(np.zeros((total, total)), q, cones)[1]


def trained_network_objective(X: np.ndarray, y: np.ndarray, alpha: float, units: int, seed: int) -> float:
    """Return the objective of a ReLU network that L-BFGS reaches from random weights.

    The output intercept is not penalized.
    """
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
