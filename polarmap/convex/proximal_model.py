"""What convex models share: a minimum by products with their coded data, and what they tell of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.convex.proximal_gradient import Solution, fista
from polarmap.glm.coded_model import CodedModel
from polarmap.glm.convergence import warn_if_not_converged
from polarmap.glm.progress import Progress
from polarmap.glm.scaled_operator import ScaledOperator
from polarmap.linalg.operators import CodedOperator

Floats = npt.NDArray[np.float64]


class ProximalModel(CodedModel):
    """A model whose coefficients minimize a smooth loss plus a penalty or a constraint."""

    def _solve(
        self,
        coded: CodedOperator | ScaledOperator,
        operator: Any,
        loss: Any,
        penalty: Any,
        start: Floats,
        minimize: Callable[..., Solution] = fista,
    ) -> Solution:
        """The minimum; sets n_iter_, objective_, dual_gap_, gradient_map_ and report_.

        coded : whose products those of `operator` are made of.
        minimize : called as `fista` is.
        """
        self._check_numbers(tol=0.0, max_iter=1, verbose=0)
        progress = Progress(type(self).__name__, coded, self.verbose)
        found = minimize(
            operator,
            loss,
            penalty,
            start,
            tol=self.tol,
            max_iter=self.max_iter,
            callback=progress.iteration if progress else None,
        )
        warn_if_not_converged(found.converged, self.max_iter)
        self.n_iter_, self.objective_ = found.n_iter, found.objective
        self.dual_gap_, self.gradient_map_ = found.gap, found.gradient_map
        self.report_ = coded.report
        return found
