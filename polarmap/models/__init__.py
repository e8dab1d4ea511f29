"""Estimators whose every product with the data is a coded map: behind polarmap.glm, .convex and .convexnn."""
