"""Fast linear combinations of blocks: butterflies, matrix products, and programs of row operations.

The codes define which combinations they need, and the modules here compute them, tile by tile and on all
cores.
"""
