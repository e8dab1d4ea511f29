"""Compute sums of blocks fast: transforms, tiles, products and programs of row operations.

The codes say which sums they need; the modules here only make them fast.
"""
