"""Networks of two layers trained to the global optimum, whose every product with the data is a coded map."""

from polarmap.optional import require_extra

with require_extra("polarmap.convexnn", "scipy and scikit-learn", "convex"):
    from polarmap.models.estimators.convex_network import (
        ConvexMLPClassifier,
        ConvexMLPRegressor,
        TwoLayerNetwork,
    )

__all__ = ["ConvexMLPClassifier", "ConvexMLPRegressor", "TwoLayerNetwork"]
