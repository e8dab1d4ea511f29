"""Which rows an index of a coded array asks for."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from polarmap.errors import CodeError


def parse_row_index(rows: Any, count: int) -> tuple[int, int, Any]:
    """The first and last of the `count` rows to read for an index `rows`, and the index into those read.

    >>> parse_row_index(-1, 5), parse_row_index(slice(1, None, 2), 5)
    ((4, 5, 0), (1, 5, slice(None, None, 2)))
    """
    if rows is Ellipsis:
        return 0, count, rows
    if isinstance(rows, slice):
        return _parse_slice(rows, count)
    try:
        if isinstance(rows, (bool, np.bool_)):
            raise TypeError
        number = operator.index(rows)
    except TypeError:
        raise CodeError(
            f"rows of a coded array are read by number or slice, not {rows!r}: read the rows from the "
            "first to the last, coded[i:j], and index these"
        ) from None
    if not -count <= number < count:
        raise IndexError(f"row {number} is out of range: the coded array has {count} rows")
    number %= count
    return number, number + 1, 0


def _parse_slice(rows: slice, count: int) -> tuple[int, int, slice]:
    try:
        start, stop, step = rows.indices(count)
    except (TypeError, ValueError) as error:
        raise CodeError(f"rows of a coded array cannot be read by {rows}: {error}") from error
    if step < 1:
        raise CodeError(f"rows of a coded array are read forwards, not with step {step}")
    return start, max(start, stop), slice(None, None, step)
