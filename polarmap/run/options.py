"""What the caller of a map chose beside the data and the code: checked, and as the loop reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from polarmap.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors.encryption_keys import check_key
from polarmap.run.lateness import RunTimes
from polarmap.validation import is_choice, is_nonnegative_int, is_real_number

if TYPE_CHECKING:
    from polarmap.blocks.code_choice import CodeOptions

Verify = bool | Literal["auto"]
ScheduleName = Literal["upfront", "on_demand"]
OnTimeout = Literal["raise", "estimate"]

# From the leaves of every received result: what entries of each leaf may be off by although f is as
# linear as it should be; inf for a leaf that is not meant to be decoded.
Errors = Callable[[list[list[npt.NDArray[Any]]]], list[float]]


class MapPlan(ABC):
    """A schedule that says the sizes and the code of a map too, as `polarmap.planning.Plan` does.

    schedule : "upfront" or "on_demand".
    n_upfront_parity : parity tasks that start with the data, on demand.
    run_times : of one task, which tells when one is late; None: the tasks of the map tell.
    """

    schedule: str
    n_upfront_parity: int
    run_times: RunTimes | None

    @abstractmethod
    def apply_to(self, code_options: CodeOptions) -> CodeOptions:
        """`code_options` with its sizes and its code; CodeError where the caller asks for others too."""


Schedule = ScheduleName | MapPlan


@dataclass(frozen=True)
class KnownFunction:
    """What is known of an f that is ours; of any other f nothing is."""

    fits: bool = False  # what the code assumes of it is true by construction
    errors: Errors | None = None  # it is linear up to these
    shape: tuple[int, ...] | None = None  # of the array that it returns
    row_by_row: bool = False  # it gives one row of each result for each row of its block


@dataclass(frozen=True)
class MapOptions:
    """What the caller of a map chose, as `coded_map` describes it, and what is known of f."""

    verify: Verify = "auto"
    rtol: float | None = None
    timeout: float = inf
    retries: int = 1
    estimates: bool = False  # after the timeout, rather than to fail
    schedule: str = "upfront"
    upfront: int = 0  # parity tasks that start with the data, on demand
    runtimes: RunTimes | None = None  # of one task, where a plan knows them
    parity_for: str = ""  # which choice asks for parity, so that copies of late tasks will not do
    key: str | bytes | None = None
    known: KnownFunction = KnownFunction()


def check_function(f: Any) -> None:
    """CodeError for what cannot be called."""
    if not callable(f):
        raise CodeError(f"f must be callable, not {type(f).__name__}")


def checked_options(
    verify: Any,
    rtol: Any,
    timeout: Any,
    retries: Any,
    on_timeout: Any = "raise",
    schedule: Any = "upfront",
    key: Any = None,
) -> MapOptions:
    """The options of a map; CodeError for one that cannot be."""
    if not isinstance(verify, (bool, np.bool_)) and not is_choice(verify, ("auto",)):
        raise CodeError(f"verify must be 'auto', True or False, not {verify!r}")
    for name, value in (("rtol", rtol), ("timeout", timeout)):
        if value is not None and not (is_real_number(value) and value > 0):
            raise CodeError(f"{name} must be a positive number, not {value!r}")
    if not is_nonnegative_int(retries):
        raise CodeError(f"retries must be 0 or more, not {retries!r}")
    if not is_choice(on_timeout, ("raise", "estimate")):
        raise CodeError(f"on_timeout must be 'raise' or 'estimate', not {on_timeout!r}")
    estimates = on_timeout == "estimate"
    if estimates and timeout is None:
        raise CodeError("on_timeout='estimate' needs timeout=: the seconds after which to estimate")
    if not (isinstance(schedule, MapPlan) or is_choice(schedule, ("upfront", "on_demand"))):
        advice = ""
        if is_integer(schedule):
            advice = f": for tasks of less work, use blocks={schedule} * ... and tasks={schedule} * ..."
        raise CodeError(
            "schedule must be 'upfront', 'on_demand' or a Plan as polarmap.plan returns it, not "
            f"{schedule!r}{advice}"
        )
    verify = verify if isinstance(verify, str) else bool(verify)
    name, upfront, runtimes = schedule, 0, None
    asks = "schedule='on_demand'" if schedule == "on_demand" else ""
    if isinstance(schedule, MapPlan):
        name, upfront, runtimes, asks = (
            schedule.schedule,
            schedule.n_upfront_parity,
            schedule.run_times,
            "the plan",
        )
    asks = "on_timeout='estimate'" if estimates else asks
    seconds = inf if timeout is None else timeout
    key = None if key is None else check_key(key)
    return MapOptions(verify, rtol, seconds, int(retries), estimates, name, upfront, runtimes, asks, key)


def planned(options: CodeOptions, schedule: Schedule) -> CodeOptions:
    """`options`, or what a plan makes of them."""
    return schedule.apply_to(options) if isinstance(schedule, MapPlan) else options
