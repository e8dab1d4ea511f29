"""What the caller of coded_map chose, beside the data and the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from polarmap.planning.distributions import Distribution

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
    trusted: bool = False  # f is ours: what the code assumes of it is true by construction
    shape: tuple[int, ...] | None = None  # of the array that f, which is ours, returns
    row_by_row: bool = False  # f is ours: it gives one row of each result for each row of its block
