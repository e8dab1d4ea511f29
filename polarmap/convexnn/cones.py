"""The loss of a ReLU network as a function of its units' inputs, each kept in the cone of its gate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.convexnn.output_loss import OutputLoss

Floats = npt.NDArray[np.float64]

NEWTON_STEPS = 30
ROUNDED = 1e-13  # relative to the targets: an equation that holds to that holds


class ConeLoss:
    """loss(sum_i D_i (E+_i - E-_i)), where (2 D_i - 1) E+_i >= 0 and (2 D_i - 1) E-_i >= 0.

    E = A W has a column for each sign, gate and output, in that order: what the units of a ReLU network see
    of each sample. Within the cones D_i E_i is the ReLU of E_i.

    Parameters
    ----------
    loss : OutputLoss
    patterns : (samples, gates) of bool
        The diagonals of the D_i.
    margins : (samples, gates)
        |A interior|.
    interior : (features, gates)
        A point in each cone.
    """

    def __init__(
        self, loss: OutputLoss, patterns: npt.NDArray[np.bool_], margins: Floats, interior: Floats
    ) -> None:
        self.loss, self._outputs = loss, loss.shape[1]
        passed = patterns.astype(np.float64)[:, np.newaxis, :, np.newaxis]
        self._sides = 2.0 * passed - 1.0
        self._signs = np.concatenate([passed, -passed], axis=1)
        self._margins = margins[:, np.newaxis, :, np.newaxis]
        self._interior = interior[:, np.newaxis, :, np.newaxis]
        self._eta, self._nu, self._c = np.zeros(loss.shape), np.zeros(loss.shape), loss.null
        self._rounded = ROUNDED * (float(np.abs(loss.y).max(initial=0.0)) or 1.0)

    def prox(self, B: Floats, rho: float) -> Floats:
        """The E that minimizes a bound of the loss + rho / 2 sum_i shares_i |E_i - B_i|^2 over the cones.

        The bound is quadratic: that of the curvature at the last E; a squared loss is its own. E is
        B - sign nu, projected onto the cones, with one nu for each sample and output, where rho nu is the
        bound's gradient: Newton's method, for all of them and the intercept at once.
        """
        B4, curvature = self._split(B), self.loss.family.largest_curvature
        outputs = self._eta + self._c
        targets = outputs - (self.loss.family.mean(outputs) - self.loss.y) / curvature
        for _ in range(NEWTON_STEPS):
            E, crossed = self._projected(B4)
            self._eta = (self._signs * E).sum(axis=(1, 2))
            error = rho * self._nu - curvature * (self._eta + self._c - targets)
            balance = self._mean(self._nu)
            if max(np.abs(error).max(), rho * np.abs(balance).max()) <= self._rounded:
                break
            slope = rho + curvature * crossed
            change = error / slope
            if self.loss.fit_intercept:
                moved = (self._mean(change) - balance) / (curvature * self._mean(1.0 / slope))
                self._c, change = self._c + moved, change - curvature * moved / slope
            self._nu = self._nu - change
        return E.reshape(B.shape)

    def scale_dual(self, factor: float) -> None:
        """Of the next start, where rho is divided by that."""
        self._nu = self._nu * factor

    def dual(self, U: Floats, rho: float) -> tuple[Floats, Floats]:
        """A gradient u of the loss, and that of `rho` times multipliers U with it: U = sign nu - side mu.

        mu >= 0 is kept and nu replaced by that of u, so that -conjugate(u) is a bound whatever nu was.
        """
        u = self.loss.gradient(self._eta)
        change = (u / (rho * self.loss.shares) - self._nu)[:, np.newaxis, np.newaxis, :]
        return u, rho * (U + (self._signs * change).reshape(U.shape))

    def feasible(self, W: Floats, E: Floats) -> tuple[Floats, Floats]:
        """W (features, columns) and E = A W, moved into the cones along their interior points."""
        E4, W4 = self._split(E), self._split(W)
        heights, ratios = self._sides * E4, np.zeros_like(E4)
        np.divide(-heights, self._margins, out=ratios, where=(heights < 0) & (self._margins > 0))
        length = np.where(W4.any(axis=0), ratios.max(axis=0), 0.0)
        moved = W4 + length * self._interior, E4 + length * self._sides * self._margins
        return moved[0].reshape(W.shape), moved[1].reshape(E.shape)

    def value(self, E: Floats) -> float:
        """Of the loss, at an E within the cones."""
        return self.loss.value((self._signs * self._split(E)).sum(axis=(1, 2)))

    def _split(self, columns: Floats) -> Floats:
        """(rows, signs, gates, outputs)."""
        return columns.reshape(len(columns), 2, -1, self._outputs)

    def _projected(self, B4: Floats) -> tuple[Floats, Floats]:
        """E by nu, and how many units of each sample and output change with it."""
        heights = self._sides * (B4 - self._signs * self._nu[:, np.newaxis, np.newaxis, :])
        crossed = ((heights > 0) & (self._signs != 0)).sum(axis=(1, 2))
        return self._sides * np.maximum(heights, 0.0), crossed

    def _mean(self, of_samples: Floats) -> Floats:
        """Weighted, of each output: for nu, 0 where the intercept fits best; 0 without one."""
        mean = np.sum(self.loss.shares * of_samples, axis=0)
        return np.asarray(mean if self.loss.fit_intercept else np.zeros_like(mean))
