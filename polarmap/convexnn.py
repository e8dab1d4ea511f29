"""Networks of two layers trained to the global optimum, whose every product with the data is a coded map."""

from polarmap.clouds.extras import install_command

try:
    from polarmap.models.convex_network import ConvexMLPClassifier, ConvexMLPRegressor, TwoLayerNetwork
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("pylops", "pyproximal", "scipy", "sklearn"):
        raise
    raise ImportError(
        f"polarmap.convexnn needs pyproximal, scipy and scikit-learn: {install_command('convex')}"
    ) from error

__all__ = ["ConvexMLPClassifier", "ConvexMLPRegressor", "TwoLayerNetwork"]
