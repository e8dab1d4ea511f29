"""Generalized linear models with coded matrix products, as scikit-learn estimators.

They are fitted by solvers of scipy, followed by Newton steps if the Gram matrix is small.
"""

from polarmap.optional import require_extra

with require_extra("polarmap.glm", "scipy and scikit-learn", "glm"):
    from polarmap.models.estimators.linear_regression import LeastSquares, Ridge
    from polarmap.models.estimators.logistic import LogisticRegression
    from polarmap.models.estimators.poisson import PoissonRegression

__all__ = ["LeastSquares", "LogisticRegression", "PoissonRegression", "Ridge"]
