"""Random maps, arrays, products and sums with random faults, judged against numpy.

Every case is made from one integer: `python -m soak --case 17` (with tests/ on the path) runs case 17
again and says what it is. A case runs in a process of its own kind (`worker`), which is watched
(`watch`), so that what hangs is found too.
"""
