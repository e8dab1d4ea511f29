"""Generalized linear models as scikit-learn estimators. Their matrix products run as coded maps.

The models are fitted by solvers of scipy. If the number of features is small, Newton steps follow.
"""

from polarmap.optional import require_extra

with require_extra("polarmap.glm", "scipy and scikit-learn", "glm"):
    from polarmap.models.estimators.linear_regression import LeastSquares, Ridge
    from polarmap.models.estimators.logistic import LogisticRegression
    from polarmap.models.estimators.poisson import PoissonRegression

__all__ = ["LeastSquares", "LogisticRegression", "PoissonRegression", "Ridge"]
