"""Iterative methods that minimize a loss plus a penalty, or a loss under constraints.

All of them access the data through the products of a linear operator. `solver` has their common interface and
the loop that runs them; the estimators choose one by their loss and penalty.
"""
