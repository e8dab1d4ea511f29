"""Solve quadratic programs over cones with Clarabel's interior-point method, the oracle of convex fits."""

from __future__ import annotations

from typing import Any

import clarabel
import numpy as np
from scipy import sparse

CONES = {
    "zero": clarabel.ZeroConeT,
    "nonnegative": clarabel.NonnegativeConeT,
    "second order": clarabel.SecondOrderConeT,
    "exponential": lambda size: clarabel.ExponentialConeT(),
}


def conic_minimum(
    P: np.ndarray, q: np.ndarray, constraints: list[tuple[Any, Any, str]]
) -> tuple[np.ndarray, float]:
    """Return the x that minimizes x'Px/2 + q'x, and the minimum.

    Parameters
    ----------
    constraints : list[tuple[Any, Any, str]]
        (G, h, cone) for each constraint h - G x in the cone.
    """
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    settings.max_step_fraction = 0.9  # With 0.99, the solver stalls at a gap of 1e-7 on some processors.
    cones = [CONES[cone](len(h)) for _, h, cone in constraints]
    G = sparse.csc_matrix(np.vstack([np.asarray(G, dtype=float) for G, _, _ in constraints]))
    h = np.concatenate([np.asarray(h, dtype=float) for _, h, _ in constraints])
    upper = sparse.csc_matrix(np.triu(P))
    solution = clarabel.DefaultSolver(upper, np.asarray(q, dtype=float), G, h, cones, settings).solve()
    assert str(solution.status) in ("Solved", "AlmostSolved"), solution.status
    assert abs(solution.obj_val - solution.obj_val_dual) <= 1e-8 * max(1.0, abs(solution.obj_val))
    return np.array(solution.x), float(solution.obj_val)
