"""What a fit tells on its way: lines of its iterations, and that it has stopped short."""

from __future__ import annotations

import time
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from polarmap.errors import warn
from polarmap.linalg.operators import CodedOperator


class FitProgress:
    """Lines on standard output, one an iteration of a solver; none with verbose=0.

    name : of what is fitted, before each line.
    operator : whose products the iterations are made of.

    >>> with CodedOperator([[1.0], [2.0]]) as operator:
    ...     progress = FitProgress("Ridge", operator, verbose=1)
    ...     progress.iteration(12.5, 0.25)  # doctest: +ELLIPSIS
    [Ridge] iteration 1: objective 1.250000e+01, gradient 2.50e-01, ... s
    """

    def __init__(self, name: str, operator: CodedOperator, verbose: int) -> None:
        self._name, self._operator, self._verbose = name, operator, verbose
        self._count, self._products, self._began = 0, operator.products, time.perf_counter()

    def __bool__(self) -> bool:
        """Whether anything is printed."""
        return self._verbose > 0

    def iteration(self, objective: float | None, gradient: float) -> None:
        """Print the line of an iteration that has ended; `objective` None where a solver does not know it."""
        now, self._count = time.perf_counter(), self._count + 1
        parts = [] if objective is None else [f"objective {objective:.6e}"]
        parts += [f"gradient {gradient:.2e}", f"{now - self._began:.3f} s"]
        if self._verbose > 1:
            parts += self._of_products()
        print(f"[{self._name}] iteration {self._count}: {', '.join(parts)}", flush=True)
        self._began, self._products = now, self._operator.products

    def _of_products(self) -> list[str]:
        """What a line says of the products since the line before."""
        report: Any = self._operator.report
        parts = [f"{self._operator.products - self._products} products"]
        return parts if report is None else [*parts, f"{len(report.recovered)} of {report.k} blocks decoded"]


def warn_if_not_converged(converged: bool, max_iter: int) -> None:
    """Say that a solver stopped short of what `tol` asks for, to the caller of fit()."""
    if not converged:
        warn(
            f"the solver has not converged within max_iter={max_iter} iterations, or can get no closer; "
            "raise max_iter or tol",
            ConvergenceWarning,
        )
