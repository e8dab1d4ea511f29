"""Functions that validate arguments. The `is_...` functions accept values of any type without raising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from polarmap.dtypes import is_integer
from polarmap.errors import CodeError


def is_choice(value: object, choices: Sequence[str]) -> bool:
    """Return whether `value`, which may have any type, is one of the strings in `choices`.

    >>> is_choice("auto", ("auto", "rotation")), is_choice(np.array(["auto"]), ("auto",))
    (True, False)
    """
    return isinstance(value, str) and value in choices


def is_real_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is a real number. Booleans and NaN do not count as numbers.

    >>> [is_real_number(value) for value in (1, np.float32(1), True, 1j, float("nan"))]
    [True, True, False, False, False]
    """
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_real and bool(value == value)


def is_nonnegative_int(value: Any) -> bool:
    """Return whether `value` is an integer >= 0.

    >>> [is_nonnegative_int(value) for value in (0, np.int8(3), -1, 1.0, True)]
    [True, True, False, False, False]
    """
    return is_integer(value) and bool(value >= 0)


def check_positive_int(name: str, value: Any) -> int:
    """Return `value` as an int if it is an integer > 0. Otherwise, raise CodeError.

    `name` is the name of the argument, for the error message.

    >>> check_positive_int("tasks", 0)
    Traceback (most recent call last):
    polarmap.errors.CodeError: tasks must be a positive integer, not 0
    """
    if not is_nonnegative_int(value) or value == 0:
        raise CodeError(f"{name} must be a positive integer, not {value!r:.100}")
    return int(value)


def is_positive_number(value: object) -> bool:
    """Return whether `value` is a finite real number > 0."""
    return is_real_number(value) and 0 < value < np.inf
