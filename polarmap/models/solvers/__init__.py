"""Iterative methods that minimize a loss plus a penalty, or a loss under constraints.

They access the data only through products of a linear operator. `solver` defines their common interface and
the loop that runs them. Estimators choose a solver that suits their loss and penalty.
"""
