"""Decide when numbers equal those of a plain map: arrived ones exactly, others within the stated bound."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
from code_oracles import gf2_decodable, real_rank_decodable
from plain import leaves, shape_of

from polarmap.errors import NotDecodableError, PolarmapError

SHORT = ("NotDecodableError", "CodedTimeoutError")  # Errors that too few results may end in.
SLACK = 16  # Factor on the error bound and on the rounding of the largest entry.
TRUSTED_WRONG = "wrong, and trusted to be right"  # The verdict if the report promised no check.


class Finding(AssertionError):  # noqa: N818 - no error of the soak's
    """A violation of an expectation, whatever the case."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


# --- calls -------------------------------------------------------------------------------------


def called(call: Callable[[], Any]) -> tuple[Any, PolarmapError | None, list[str]]:
    """Return the result or the error of a call of the library, and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as error:
            return None, _judged(error), []
    _check_warnings(caught)
    return result, None, [str(one.message) for one in caught]


def _judged(error: Exception) -> PolarmapError:
    """Return an error of the library. An exception raised in every task counts as too few results."""
    if isinstance(error, PolarmapError):
        return error
    notes = [note for note in getattr(error, "__notes__", ()) if note.endswith(" raised this")]
    if notes:
        return NotDecodableError(f"{type(error).__name__}: {error} ({notes[-1]})")
    raise error


def excused(error: PolarmapError, reasons: Iterable[tuple[bool, str, Sequence[str]]]) -> str:
    """Return the verdict on an error that a reason excuses. Raise Finding if none does.

    Parameters
    ----------
    reasons : Iterable[tuple[bool, str, Sequence[str]]]
        (whether it holds, its description, the names of the errors that it excuses).
    """
    name, holding = type(error).__name__, [reason for reason in reasons if reason[0]]
    for _, words, names in holding:
        if name in names:
            return f"{name}: {words}"
    held_reasons = [words for _, words, _ in holding]
    raise Finding("innocent failure", f"{name}: {error} [reasons seen: {held_reasons}]") from error


def _check_warnings(caught: list[warnings.WarningMessage]) -> None:
    """Raise Finding for a warning of numpy or Python that the library should have handled."""
    for warning in caught:
        file, text = str(warning.filename), str(warning.message)
        if "polarmap/" not in file:
            continue
        if not issubclass(warning.category, RuntimeWarning):
            raise Finding("foreign warning", f"{warning.category.__name__}: {text}")
        of_f = any(part in file for part in ("linalg/gram", "linalg/products", "worker/task_execution"))
        if "encountered in" in text and "in scalar" not in text and not of_f:
            raise Finding("foreign warning", f"{text} ({file}:{warning.lineno})")


# --- numbers ------------------------------------------------------------------------------------


def epsilon(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).eps) if dtype.kind in "fc" else 0.0


def check_structure(actual: Any, expected: Any, subject: str) -> None:
    if shape_of(actual) != shape_of(expected):
        raise Finding(
            "wrong structure", f"{subject} is {shape_of(actual)}, a plain map gives {shape_of(expected)}"
        )


def check_equal(actual: Any, expected: Any, subject: str) -> None:
    """Check for equality bit for bit, where NaN equals NaN."""
    check_structure(actual, expected, subject)
    for actual_leaf, expected_leaf in zip(leaves(actual), leaves(expected)):
        if not np.array_equal(
            actual_leaf, expected_leaf, equal_nan=np.asarray(actual_leaf).dtype.kind in "fc"
        ):
            raise Finding(
                "wrong number", f"{subject} is off by {_off(actual_leaf, expected_leaf)}; it had arrived"
            )


def check_close(actual: Any, expected: Any, allowed: list[float], subject: str) -> None:
    """Check integers exactly, and every other leaf within its allowed error."""
    check_structure(actual, expected, subject)
    for actual_leaf, expected_leaf, limit in zip(leaves(actual), leaves(expected), allowed):
        if (
            np.asarray(actual_leaf).dtype.kind not in "fc"
            and limit < 0.5
            and not np.array_equal(actual_leaf, expected_leaf)
        ):
            raise Finding(
                "wrong number", f"{subject} is off by {_off(actual_leaf, expected_leaf)}; integers are exact"
            )
        if not _off(actual_leaf, expected_leaf) <= max(limit, 0.0) and not np.array_equal(
            actual_leaf, expected_leaf, equal_nan=True
        ):
            raise Finding(
                "wrong number",
                f"{subject} is off by {_off(actual_leaf, expected_leaf):.3g}, allowed {limit:.3g}",
            )


def largest(values: Any) -> float:
    return float(np.abs(_wide(np.asarray(values))).max(initial=0))


def is_finite(values: Any) -> bool:
    array = np.asarray(values)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def _off(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.dtype.kind in "iu":
        gaps = [abs(int(a) - int(b)) for a, b in zip(actual.ravel().tolist(), expected.ravel().tolist())]
        return float(max(gaps, default=0))
    with np.errstate(all="ignore"):
        apart = np.abs(_wide(actual) - _wide(expected))
    both = np.isnan(_wide(actual)) & np.isnan(_wide(expected))
    return float(np.where(both | (_wide(actual) == _wide(expected)), 0, apart).max(initial=0))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.clongdouble if array.dtype.kind == "c" else np.longdouble)


# --- what can be decoded ------------------------------------------------------------------------


def is_determined(code: Any, lost: Collection[int], exact: bool = True) -> bool:
    """Return whether the other blocks of a polar code determine the lost ones, over integers if `exact`."""
    arrived = np.array([block not in lost for block in range(code.n)])
    if code.kernel == "rotation":
        return int(arrived.sum()) >= code.k
    return (gf2_decodable if exact else real_rank_decodable)(np.asarray(code.parity_check_matrix), arrived)
