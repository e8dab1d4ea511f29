"""Fast linear combinations of blocks: butterflies, matrix products, and programs of row operations.

The codes decide which combinations they need. The modules here compute them on all cores, in tiles that fit
into the cache.
"""
