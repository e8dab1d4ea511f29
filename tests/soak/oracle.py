"""When numbers are those of a plain map: bit for bit what arrived, within the stated bound the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from plain import leaves, shape_of

SLACK = 16  # times the error bound and the rounding of the largest entry


class Finding(AssertionError):  # noqa: N818 - no error of the soak's
    """Something that must not be, whatever the case."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


def epsilon(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).eps) if dtype.kind in "fc" else 0.0


def check_structure(found: Any, wanted: Any, what: str) -> None:
    if shape_of(found) != shape_of(wanted):
        raise Finding("wrong structure", f"{what} is {shape_of(found)}, a plain map gives {shape_of(wanted)}")


def check_equal(found: Any, wanted: Any, what: str) -> None:
    """Bit for bit, NaN being NaN."""
    check_structure(found, wanted, what)
    for one, other in zip(leaves(found), leaves(wanted)):
        if not np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind in "fc"):
            raise Finding("wrong number", f"{what} is off by {_off(one, other)}; it had arrived")


def check_close(found: Any, wanted: Any, allowed: list[float], what: str) -> None:
    """Integers exactly, every other leaf within what is allowed for it."""
    check_structure(found, wanted, what)
    for one, other, limit in zip(leaves(found), leaves(wanted), allowed):
        if np.asarray(one).dtype.kind not in "fc" and limit < 0.5 and not np.array_equal(one, other):
            raise Finding("wrong number", f"{what} is off by {_off(one, other)}; integers are exact")
        if not _off(one, other) <= max(limit, 0.0) and not np.array_equal(one, other, equal_nan=True):
            raise Finding("wrong number", f"{what} is off by {_off(one, other):.3g}, allowed {limit:.3g}")


def largest(values: Any) -> float:
    array = np.asarray(values)
    return float(np.abs(_wide(array)).max(initial=0))


def _off(one: Any, other: Any) -> float:
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype.kind in "iu":
        gaps = [abs(int(a) - int(b)) for a, b in zip(one.ravel().tolist(), other.ravel().tolist())]
        return float(max(gaps, default=0))
    with np.errstate(all="ignore"):
        apart = np.abs(_wide(one) - _wide(other))
    both = np.isnan(_wide(one)) & np.isnan(_wide(other))
    return float(np.where(both | (_wide(one) == _wide(other)), 0, apart).max(initial=0))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.clongdouble if array.dtype.kind == "c" else np.longdouble)
