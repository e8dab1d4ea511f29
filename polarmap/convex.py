"""Convex optimization whose matrix products run as coded maps: estimators, losses, penalties and a solver.

Projections and proximal operators come from pyproximal.
"""

from polarmap.optional import require_extra

with require_extra("polarmap.convex", "scipy and scikit-learn", "convex"):
    from polarmap.models.estimators.sparse_models import (
        ElasticNet,
        Lasso,
        NonNegativeLeastSquares,
        SparseLogisticRegression,
    )
    from polarmap.models.estimators.svm import LinearSVC
    from polarmap.models.losses import LogisticLoss, SquaredLoss
    from polarmap.models.penalties import AffineSet, ElasticNetPenalty, LinearBoxPenalty
    from polarmap.models.projections import l1_ball, simplex
    from polarmap.models.solvers.proximal_gradient import fista
    from polarmap.models.solvers.solver import Solution

__all__ = [
    "AffineSet",
    "ElasticNet",
    "ElasticNetPenalty",
    "Lasso",
    "LinearBoxPenalty",
    "LinearSVC",
    "LogisticLoss",
    "NonNegativeLeastSquares",
    "Solution",
    "SparseLogisticRegression",
    "SquaredLoss",
    "fista",
    "l1_ball",
    "simplex",
]
