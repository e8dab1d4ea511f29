"""Losses of a network's outputs, each with the output intercept that fits best."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from polarmap.glm.losses import Bernoulli, Loss, Multinomial

Floats = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
NEWTON_STEPS, HALVINGS = 100, 40
ROUNDED = 8 * EPS


class Family(Loss, Protocol):
    """A loss whose conjugate is known by the mean that belongs to a dual point."""

    largest_curvature: float

    def conjugate(self, mean: Floats, y: Floats, weights: Floats) -> float: ...


class Gaussian:
    """|eta - y|^2 / 2.

    >>> Gaussian().value(np.zeros((1, 2)), np.array([[1.0, 2.0]]))
    2.5
    """

    largest_curvature = 1.0

    def value(self, eta: Floats, y: Floats, weights: Floats | float = 1.0) -> float:
        return 0.5 * float(np.sum(weights * (eta - y) ** 2))

    def mean(self, eta: Floats) -> Floats:
        return eta

    def curvature(self, mean: Floats, direction: Floats) -> Floats:
        return direction

    def null_predictor(self, y: Floats, weights: Floats | None = None) -> Floats:
        return np.asarray(np.average(y, axis=0, weights=None if weights is None else weights[:, 0]))

    def conjugate(self, mean: Floats, y: Floats, weights: Floats) -> float:
        """At u = weights (mean - y)."""
        return 0.5 * float(np.sum(weights * (mean**2 - y**2)))


class Binary(Bernoulli):
    """log(1 + exp(eta)) - y eta, with y 0 or 1."""

    largest_curvature = 0.25

    def conjugate(self, mean: Floats, y: Floats, weights: Floats) -> float:
        """At u = weights (mean - y), mean from 0 to 1."""
        mean = np.clip(mean, 0.0, 1.0)
        return float(np.sum(weights * (xlogy(mean, mean) + xlogy(1 - mean, 1 - mean))))


class Softmax(Multinomial):
    """log(sum(exp(eta))) - y eta, with one 1 in each row of y."""

    largest_curvature = 0.5

    def conjugate(self, mean: Floats, y: Floats, weights: Floats) -> float:
        """At u = weights (mean - y), rows of mean 0 or more, of sum 1."""
        mean = np.maximum(mean, 0.0)
        return float(np.sum(weights * xlogy(mean, mean)))


class OutputLoss:
    """min over c of sum_i shares_i loss(eta_i + c, y_i): smooth and convex in eta, as the loss is.

    Parameters
    ----------
    family : Gaussian, Binary or Softmax
    y : (samples, outputs)
    shares : (samples,)
        Positive, of sum 1.
    fit_intercept : bool
        False: c is 0.

    Examples
    --------
    >>> loss = OutputLoss(Gaussian(), np.array([[1.0], [3.0]]), np.full(2, 0.5), True)
    >>> loss.value(np.zeros((2, 1))), loss.intercept(np.zeros((2, 1))).tolist()
    (0.5, [2.0])
    """

    def __init__(self, family: Family, y: Floats, shares: Floats, fit_intercept: bool) -> None:
        self.family, self.y, self.shares, self.fit_intercept = family, y, shares[:, np.newaxis], fit_intercept
        self.shape = y.shape
        self.null: Floats = family.null_predictor(y, self.shares) if fit_intercept else np.zeros(y.shape[1])
        self._last: tuple[Floats | None, Floats] = None, self.null

    def value(self, eta: Floats) -> float:
        """At the outputs eta (samples, outputs), before the intercept."""
        return self.family.value(eta + self.intercept(eta), self.y, self.shares)

    def gradient(self, eta: Floats) -> Floats:
        """With respect to eta; each column adds up to 0 with an intercept."""
        return np.asarray(self.shares * (self.family.mean(eta + self.intercept(eta)) - self.y))

    def conjugate(self, u: Floats) -> float:
        """max over eta of <u, eta> - value(eta), for a u between 0 and a gradient."""
        return self.family.conjugate(self.y + u / self.shares, self.y, self.shares)

    def intercept(self, eta: Floats) -> Floats:
        """The c (outputs,) that fits best, by Newton's method from the last one."""
        if not self.fit_intercept:
            return self.null
        if isinstance(self.family, Gaussian):
            return np.asarray(np.sum(self.shares * (self.y - eta), axis=0))
        known, c = self._last
        if eta is known:
            return c
        reach = 1.0 + float(np.ptp(eta))
        for _ in range(NEWTON_STEPS):
            mean = self.family.mean(eta + c)
            slope = np.sum(self.shares * (mean - self.y), axis=0)
            if np.abs(slope).max() <= ROUNDED:  # means are 1 at most
                break
            step = self._newton_step(mean, slope, reach)
            taken = self._shortened(eta, c, step, float(slope @ step))
            if taken is None:
                break
            c = taken - taken.mean() if len(taken) > 1 else taken  # a softmax is the same for all shifts
        self._last = eta, c
        return c

    def _newton_step(self, mean: Floats, slope: Floats, reach: float) -> Floats:
        """No longer than `reach`, by a ridge that vanishes with the slope: a softmax has a flat direction."""
        columns = [
            np.sum(self.shares * self.family.curvature(mean, np.broadcast_to(e, mean.shape)), axis=0)
            for e in np.eye(len(slope))
        ]
        ridge = float(np.linalg.norm(slope)) / reach
        return np.asarray(-np.linalg.solve(np.stack(columns) + ridge * np.eye(len(slope)), slope))

    def _shortened(self, eta: Floats, c: Floats, step: Floats, slope: float) -> Floats | None:
        """c after as much of a step as lessens the loss; None where no digit of it can be lessened."""
        before = self.family.value(eta + c, self.y, self.shares)
        for halving in range(HALVINGS):
            length = 0.5**halving
            after = self.family.value(eta + c + length * step, self.y, self.shares)
            if after <= before + 1e-4 * length * slope + 4 * EPS * abs(before):
                return np.asarray(c + length * step)
        return None
