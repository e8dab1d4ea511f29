"""Run random maps, arrays, products and sums with random faults, and compare them with numpy.

A case is generated from one integer: `python -m soak --case 17` (with tests/ on the path) describes case 17
and runs it again. Cases run in a separate process (`worker`) under supervision (`watch`), so that hangs are
found, too.
"""
