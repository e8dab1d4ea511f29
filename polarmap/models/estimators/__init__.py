"""Estimators with the conventions of scikit-learn, and their base classes."""
