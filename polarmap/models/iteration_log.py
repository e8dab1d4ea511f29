"""What a fit tells on its way: lines of its iterations, and that it has stopped short."""

from __future__ import annotations

import time
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from polarmap.errors import warn
from polarmap.linalg.operators import CodedOperator


class IterationLog:
    """Lines on standard output, one an iteration of a solver; none with verbose=0.

    label : of what is fitted, before each line.
    operator : whose products the iterations are made of.

    >>> with CodedOperator([[1.0], [2.0]]) as operator:
    ...     progress = IterationLog("Ridge", operator, verbose=1)
    ...     progress.log_iteration(12.5, 0.25)  # doctest: +ELLIPSIS
    [Ridge] iteration 1: objective 1.250000e+01, gradient 2.50e-01, ... s
    """

    def __init__(self, label: str, operator: CodedOperator, verbose: int) -> None:
        self._label, self._operator, self._verbose = label, operator, verbose
        self._n_iter, self._n_products_before = 0, operator.n_products
        self._iteration_started_at = time.perf_counter()

    def __bool__(self) -> bool:
        """Whether anything is printed."""
        return self._verbose > 0

    def log_iteration(self, objective: float | None, gradient_norm: float) -> None:
        """Print the line of an iteration that has ended; `objective` None where a solver does not know it."""
        finished_at, self._n_iter = time.perf_counter(), self._n_iter + 1
        parts = [] if objective is None else [f"objective {objective:.6e}"]
        parts += [f"gradient {gradient_norm:.2e}", f"{finished_at - self._iteration_started_at:.3f} s"]
        if self._verbose > 1:
            parts += self._format_product_counts()
        print(f"[{self._label}] iteration {self._n_iter}: {', '.join(parts)}", flush=True)
        self._iteration_started_at, self._n_products_before = finished_at, self._operator.n_products

    def _format_product_counts(self) -> list[str]:
        """What a line says of the products since the line before."""
        report: Any = self._operator.report
        parts = [f"{self._operator.n_products - self._n_products_before} products"]
        return parts if report is None else [*parts, f"{len(report.recovered)} of {report.k} blocks decoded"]


def warn_if_not_converged(converged: bool, max_iter: int) -> None:
    """Say that a solver stopped short of what `tol` asks for, to the caller of fit()."""
    if not converged:
        warn(
            f"the solver has not converged within max_iter={max_iter} iterations, or can get no closer; "
            "raise max_iter or tol",
            ConvergenceWarning,
        )
