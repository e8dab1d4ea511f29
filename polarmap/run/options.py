"""What the caller of coded_map chose, beside the data and the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code.arguments import is_number, is_one_of
from polarmap.code.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.planning.distributions import Distribution
from polarmap.run.trusted import TRUSTED, TrustedFunctions

# From the leaves of every received result: what entries of each leaf may be off by although f is as
# linear as it should be; inf for a leaf that is not meant to be decoded.
Errors = Callable[[list[list[npt.NDArray[Any]]]], list[float]]


@dataclass(frozen=True)
class Settings:
    """The options of coded_map that the collector follows; see there."""

    verify: bool | str = "auto"
    rtol: float | None = None
    timeout: float | None = None
    retries: int = 1
    deadline: float | None = None  # then estimates, rather than a failure
    errors: Errors | None = None  # none of the options: of an f that is linear up to these
    parity: str = "upfront"
    upfront: int = 0  # parity tasks that start at once although parity is on demand
    subtasks: int = 1  # that each task is cut into
    runtimes: Distribution | None = None  # of one task; None: learned from this map
    trust: TrustedFunctions = TRUSTED  # what earlier maps found functions to be
    trusted: bool = False  # f is ours: what the code assumes of it is true by construction
    shape: tuple[int, ...] | None = None  # of the array that f, which is ours, returns
    row_by_row: bool = False  # f is ours: it gives one row of each result for each row of its block


def checked_settings(
    f: Any, verify: Any, rtol: Any, timeout: Any, retries: Any, deadline: Any = None
) -> Settings:
    """The options that every map has; CodeError for f or an option that cannot be."""
    if not callable(f):
        raise CodeError(f"f must be callable, not {type(f).__name__}")
    if not isinstance(verify, (bool, np.bool_)) and not is_one_of(verify, ("auto",)):
        raise CodeError(f"verify must be 'auto', True or False, not {verify!r}")
    for name, value in (("rtol", rtol), ("timeout", timeout), ("deadline", deadline)):
        if value is not None and not (is_number(value) and value > 0):
            raise CodeError(f"{name} must be a positive number, not {value!r}")
    if not is_integer(retries) or retries < 0:
        raise CodeError(f"retries must be 0 or more, not {retries!r}")
    return Settings(
        verify if isinstance(verify, str) else bool(verify), rtol, timeout, int(retries), deadline
    )
