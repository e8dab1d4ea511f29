"""Networks of two layers trained to the global optimum, whose every product with the data is a coded map."""

from polarmap.clouds.extras import install_command

try:
    from polarmap.convexnn.classifier import ConvexMLPClassifier
    from polarmap.convexnn.network import TwoLayerNetwork
    from polarmap.convexnn.regressor import ConvexMLPRegressor
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("pylops", "pyproximal", "scipy", "sklearn"):
        raise
    raise ImportError(
        f"polarmap.convexnn needs pyproximal, scipy and scikit-learn: {install_command('convex')}"
    ) from error

__all__ = ["ConvexMLPClassifier", "ConvexMLPRegressor", "TwoLayerNetwork"]
