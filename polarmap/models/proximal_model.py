"""Models whose coefficients minimize a smooth loss plus a penalty, and by which method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from polarmap.code.dtypes import Floats
from polarmap.linalg.operators import CodedOperator
from polarmap.models.coded_model import CodedModel
from polarmap.models.fit_progress import FitProgress, warn_if_not_converged
from polarmap.models.proximal_gradient import Solution
from polarmap.models.proximal_newton import proximal_newton


@dataclass(eq=False, repr=False)
class ProximalModel(CodedModel):
    """A model whose coefficients minimize a smooth loss plus a penalty or a constraint."""

    _: KW_ONLY
    tol: float = 1e-6
    max_iter: int = 5000

    def _solve(self, coded: CodedOperator, operator: Any, loss: Any, penalty: Any, start: Floats) -> Floats:
        """The minimum.

        coded : whose products those of `operator` are made of.
        """
        return self._minimized(coded, partial(proximal_newton, operator, loss, penalty, start))

    def _minimized(self, coded: CodedOperator, minimize: Callable[..., Solution]) -> Floats:
        """What is found; sets n_iter_, objective_, dual_gap_, gradient_map_ and report_.

        minimize : of tol, max_iter and callback, as those of `fista`.
        """
        progress = FitProgress(type(self).__name__, coded, self.verbose)
        found = minimize(
            tol=self.tol, max_iter=self.max_iter, callback=progress.iteration if progress else None
        )
        warn_if_not_converged(found.converged, self.max_iter)
        self.n_iter_, self.objective_ = found.n_iter, found.objective
        self.dual_gap_, self.gradient_map_ = found.gap, found.gradient_map
        self.report_ = coded.report
        return found.x
