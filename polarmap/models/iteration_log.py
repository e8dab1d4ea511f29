"""Show the iterations of a fit, as lines of text or in a live view, and warn if it did not converge."""

from __future__ import annotations

import time
from typing import Any, Self

from sklearn.exceptions import ConvergenceWarning

from polarmap.errors import warn
from polarmap.linalg.operators import CodedOperator
from polarmap.live import activation
from polarmap.models.solvers.solver import Solution


class IterationLog:
    """Prints one line per solver iteration to standard output, and shows the fit in a live view.

    The live view shows the fit only if it is enabled for this program (`polarmap.live.activation`). Use the
    log as a context manager around the solver, so that the view knows when the fit has ended.

    Parameters
    ----------
    label : str
        Name of the model or target, printed in brackets at the start of each line.
    operator : CodedOperator
        Operator that computes the solver's products. With verbose=2, its products are counted.
    verbose : int
        0: print nothing. 1: print the objective, the norm of the gradient, and the duration of each iteration
        in seconds. 2: also print the number of products, and how many blocks the last product decoded.

    Examples
    --------
    >>> with (
    ...     CodedOperator([[1.0], [2.0]]) as operator,
    ...     IterationLog("Ridge", operator, verbose=1) as progress,
    ... ):
    ...     progress.log_iteration(12.5, 0.25)  # doctest: +ELLIPSIS
    [Ridge] iteration 1: objective 1.250000e+01, gradient 2.50e-01, ... s
    """

    def __init__(self, label: str, operator: CodedOperator, verbose: int) -> None:
        self._label, self._operator, self._verbose = label, operator, verbose
        self._n_iter, self._n_products_before = 0, operator.n_products
        self._iteration_started_at = time.perf_counter()
        self._hub = hub = activation.active_hub
        self._live_iteration = (
            None if hub is None else hub.start_iteration(label, lambda: operator.n_products)
        )

    def __bool__(self) -> bool:
        """Return whether iterations are printed or shown in a live view."""
        return self._verbose > 0 or self._live_iteration is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._hub is not None and self._live_iteration is not None:
            self._hub.finish_iteration(self._live_iteration)

    def log_iteration(self, objective: float | None, gradient_norm: float) -> None:
        """Print a line for the iteration that has just finished, and pass it to the live view.

        Parameters
        ----------
        objective : float or None
            Objective after the iteration, or None if the solver does not compute it.
        gradient_norm : float
            The solver's measure of optimality, printed as "gradient".
        """
        if self._live_iteration is not None:
            self._live_iteration.record_step(objective, gradient_norm)
        if self._verbose:
            self._print_iteration(objective, gradient_norm)

    def _print_iteration(self, objective: float | None, gradient_norm: float) -> None:
        finished_at, self._n_iter = time.perf_counter(), self._n_iter + 1
        parts = [] if objective is None else [f"objective {objective:.6e}"]
        parts += [f"gradient {gradient_norm:.2e}", f"{finished_at - self._iteration_started_at:.3f} s"]
        if self._verbose > 1:
            parts += self._format_product_counts()
        print(f"[{self._label}] iteration {self._n_iter}: {', '.join(parts)}", flush=True)
        self._iteration_started_at, self._n_products_before = finished_at, self._operator.n_products

    def _format_product_counts(self) -> list[str]:
        """Return the number of products since the last line and the number of decoded blocks, as text."""
        report: Any = self._operator.report
        parts = [f"{self._operator.n_products - self._n_products_before} products"]
        return parts if report is None else [*parts, f"{len(report.recovered)} of {report.k} blocks decoded"]


def warn_if_not_converged(solution: Solution, max_iter: int, timeout: float | None) -> None:
    """Issue a ConvergenceWarning if the solution does not satisfy `tol`.

    Parameters
    ----------
    solution : Solution
        Result of the solver.
    max_iter : int
        Iteration limit of the fit, quoted in the warning.
    timeout : float or None
        Time limit of the fit in seconds, quoted in the warning.
    """
    if solution.converged:
        return
    distance = f"optimality is {solution.optimality:.3g}, and 0 at the minimum"
    if solution.dual_gap is not None:
        distance = f"the objective is at most {solution.dual_gap:.3g} above its minimum"
    if solution.timed_out:
        reason = f"the fit has stopped at timeout={timeout} s, after {solution.n_iter} iterations"
        advice = "raise timeout or tol"
    else:
        reason = f"the solver has not converged within max_iter={max_iter} iterations, or can get no closer"
        advice = "raise max_iter or tol"
    warn(f"{reason}: {distance}; {advice}", ConvergenceWarning)
