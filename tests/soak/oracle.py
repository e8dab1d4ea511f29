"""When numbers are those of a plain map: bit for bit what arrived, within the stated bound the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from plain import leaves, shape_of

from polarmap.errors import NotDecodableError, PolarmapError

SLACK = 16  # times the error bound and the rounding of the largest entry
TRUSTED_WRONG = "wrong, and trusted to be right"  # the verdict where nothing was promised to be checked


class Finding(AssertionError):  # noqa: N818 - no error of the soak's
    """Something that must not be, whatever the case."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


# --- what a call gives --------------------------------------------------------------------------


def called(call: Callable[[], Any]) -> tuple[Any, PolarmapError | None, list[str]]:
    """What a call of the library returns or raises, and what it warns of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = call()
        except Exception as error:
            return None, _judged(error), []
    _check_warnings(told)
    return found, None, [str(one.message) for one in told]


def _judged(error: Exception) -> PolarmapError:
    """An error of the library; what f or a fault raised everywhere counts as too few results."""
    if isinstance(error, PolarmapError):
        return error
    notes = [note for note in getattr(error, "__notes__", ()) if note.endswith(" raised this")]
    if notes:
        return NotDecodableError(f"{type(error).__name__}: {error} ({notes[-1]})")
    raise error


def _check_warnings(told: list[warnings.WarningMessage]) -> None:
    """Words of numpy or Python that were meant for us."""
    for one in told:
        file, text = str(one.filename), str(one.message)
        if "polarmap/" not in file:
            continue
        if not issubclass(one.category, RuntimeWarning):
            raise Finding("foreign warning", f"{one.category.__name__}: {text}")
        of_f = "linalg/gram" in file or "linalg/products" in file
        if "encountered in" in text and "in scalar" not in text and not of_f:
            raise Finding("foreign warning", f"{text} ({file}:{one.lineno})")


# --- numbers ------------------------------------------------------------------------------------


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
    return float(np.abs(_wide(np.asarray(values))).max(initial=0))


def is_finite(values: Any) -> bool:
    array = np.asarray(values)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


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


# --- what can be decoded ------------------------------------------------------------------------


def is_determined(code: Any, lost: Collection[int], exact: bool = True) -> bool:
    """Whether the other blocks of a polar code determine those, with integers if `exact`."""
    missing = [block for block in lost if block < code.k]
    parity = [block - code.k for block in range(code.k, code.n) if block not in lost]
    if not missing or len(missing) > len(parity) or code.kernel == "rotation":
        return len(missing) <= len(parity)
    lines = code.coefficients[np.ix_(parity, missing)]
    rank = rank_mod_2(lines) if exact else np.linalg.matrix_rank(np.asarray(lines, float))
    return int(rank) == len(missing)


def rank_mod_2(matrix: np.ndarray) -> int:
    """Which is full exactly if integers modulo a power of two can be solved for."""
    rows, rank = (np.abs(matrix) % 2).astype(bool), 0
    for column in range(rows.shape[1]):
        pivots = np.flatnonzero(rows[rank:, column]) + rank
        if len(pivots):
            rows[[rank, pivots[0]]] = rows[[pivots[0], rank]]
            others = np.flatnonzero(rows[:, column])
            rows[others[others != rank]] ^= rows[rank]
            rank += 1
    return rank
