"""What the arguments of callers are, asked so that no type of theirs can make the question fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from polarmap.code.dtypes import is_integer


def is_one_of(value: object, words: Sequence[str]) -> bool:
    """Whether `value` is one of these words; an array, which compares entry by entry, is none.

    >>> is_one_of("auto", ("auto", "rotation")), is_one_of(np.array(["auto"]), ("auto",))
    (True, False)
    """
    return isinstance(value, str) and value in words


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number: no truth value, not NaN.

    >>> is_number(1), is_number(np.float32(1)), is_number(True), is_number(1j), is_number(float("nan"))
    (True, True, False, False, False)
    """
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_real and bool(value == value)


def is_positive(value: object) -> bool:
    """Whether `value` is a real number above 0 and finite."""
    return is_number(value) and 0 < value < np.inf


def is_count(value: object, least: int = 0) -> TypeGuard[int]:
    """Whether `value` is an integer of at least `least`: no truth value.

    >>> is_count(3), is_count(np.int8(0)), is_count(0, least=1), is_count(True), is_count(2.0)
    (True, True, False, False, False)
    """
    return is_integer(value) and bool(value >= least)  # type: ignore[operator]
