"""Iterative methods that minimize a loss with a penalty or within constraints, by products with the data."""
