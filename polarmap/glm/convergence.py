"""What is said of a solver that has not converged."""

from __future__ import annotations

from sklearn.exceptions import ConvergenceWarning

from polarmap.errors import warn


def warn_if_not_converged(converged: bool, max_iter: int, message: str = "") -> None:
    """Say that a solver stopped short of what `tol` asks for, to the caller of fit()."""
    if not converged:
        warn(
            f"the solver has not converged within max_iter={max_iter} iterations, or can get no closer"
            f"{': ' + message if message else ''}; raise max_iter or tol",
            ConvergenceWarning,
        )
