"""The mathematics: polar codes over the reals. No I/O, clock, thread or executor."""

from polarmap.code import arikan_code, rotation_code  # noqa: F401  each tells PolarCode of its kernel
