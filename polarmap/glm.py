"""Generalized linear models whose every product with the data is a coded map; scikit-learn's conventions.

Solvers are those of scipy, and Newton steps where Gram matrices are small.
"""

from polarmap.optional import require_extra

with require_extra("polarmap.glm", "scipy and scikit-learn", "glm"):
    from polarmap.models.estimators.linear_regression import LeastSquares, Ridge
    from polarmap.models.estimators.logistic import LogisticRegression
    from polarmap.models.estimators.poisson import PoissonRegression

__all__ = ["LeastSquares", "LogisticRegression", "PoissonRegression", "Ridge"]
