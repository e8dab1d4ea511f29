"""Into how many blocks to cut so many rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.errors import CodeError

DEFAULT_BLOCKS = 24


def dividing_counts(total: int, near: int) -> list[int]:
    """The numbers of blocks next to `near`, below and above, that divide so many rows; not 1.

    >>> dividing_counts(2000, 24), dividing_counts(11, 4), dividing_counts(13, 26)
    ([20, 25], [11], [13])
    """
    divisors = [count for count in range(2, min(total, 64 * near) + 1) if total % count == 0]
    below, above = [one for one in divisors if one < near], [one for one in divisors if one > near]
    return below[-1:] + above[:1]


def default_block_count(total: int, wanted: int, most: int | None = None) -> int:
    """How many blocks to cut so many rows into: where there is one within a quarter, a number that divides.

    >>> [default_block_count(total, 24) for total in (2000, 1200, 2003, 10)]
    [25, 24, 24, 10]
    >>> default_block_count(2000, 24, most=24)
    20
    """
    wanted = min(wanted, total)
    most = wanted + wanted // 4 if most is None else most
    near = [count for count in range(-(-3 * wanted // 4), most + 1) if total % count == 0]
    return min(near, key=lambda count: (abs(count - wanted), -count), default=wanted)


def checked_count(name: str, value: Any) -> int:
    """`value` if it is a positive integer; `name` stands in the error."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise CodeError(f"{name} must be a positive integer, not {value!r}")
    return int(value)
