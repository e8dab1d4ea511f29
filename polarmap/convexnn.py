"""Two-layer neural networks trained by convex optimization. Their matrix products run as coded maps."""

from polarmap.optional import require_extra

with require_extra("polarmap.convexnn", "scipy and scikit-learn", "convex"):
    from polarmap.models.estimators.convex_network import (
        ConvexMLPClassifier,
        ConvexMLPRegressor,
        TwoLayerNetwork,
    )

__all__ = ["ConvexMLPClassifier", "ConvexMLPRegressor", "TwoLayerNetwork"]
