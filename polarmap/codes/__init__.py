"""The mathematics: polar codes over the reals. No I/O, clock, thread or executor.

`polar` says C x = 0, `algebra` what follows where results are missing, `recovery` how they are found.
"""

from polarmap.codes import arikan_code, rotation_code  # noqa: F401  each tells PolarCode of its kernel
