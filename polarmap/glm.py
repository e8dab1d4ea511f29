"""Generalized linear models whose every product with the data is a coded map; scikit-learn's conventions.

Solvers are those of scipy: nothing is optimized by hand here.
"""

from polarmap.clouds.extras import install_command

try:
    from polarmap.models.linear_regression import LeastSquares, Ridge
    from polarmap.models.logistic import LogisticRegression
    from polarmap.models.poisson import PoissonRegression
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("scipy", "sklearn"):
        raise
    raise ImportError(f"polarmap.glm needs scipy and scikit-learn: {install_command('glm')}") from error

__all__ = ["LeastSquares", "LogisticRegression", "PoissonRegression", "Ridge"]
