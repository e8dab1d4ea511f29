"""Estimators with scikit-learn's interface, and their base classes.

The public ones are exported by `polarmap.glm`, `polarmap.convex` and `polarmap.convexnn`.
"""
