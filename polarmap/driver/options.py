"""The options of a map other than the data and the code, such as `timeout` and `retries`.

Map functions check the arguments of their caller here, and pass them on as one `MapOptions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from polarmap.driver.lateness import RunTimeQuantiles
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError
from polarmap.executors.encryption_keys import check_encryption_key
from polarmap.validation import is_choice, is_nonnegative_int, is_real_number

if TYPE_CHECKING:
    from polarmap.blocks.code_choice import CodeOptions

Verify = bool | Literal["auto"]
ScheduleName = Literal["upfront", "on_demand"]
OnTimeout = Literal["raise", "estimate"]
Progress = bool | Literal["live"] | None

# The type of a function that computes the tolerances of linearity checks. It is called with the arrays
# (leaves) of all received results, and returns the maximum error to tolerate in each array, or inf for an
# array that is not decoded.
LeafErrorBounds = Callable[[list[list[npt.NDArray[Any]]]], list[float]]


class PlannedSchedule(ABC):
    """Base class of schedules, such as `Plan`, that also set the number of blocks and the code.

    Attributes
    ----------
    schedule : {"upfront", "on_demand"}
        When parity tasks start.
    n_upfront_parity : int
        The number of parity tasks that start together with the data tasks, if `schedule` is "on_demand".
    run_times : RunTimeQuantiles or None
        The distribution of task run times, which decides when a task is late. None to estimate it from the
        map's own tasks.
    """

    schedule: str
    n_upfront_parity: int
    run_times: RunTimeQuantiles | None

    @abstractmethod
    def apply_to(self, code_options: CodeOptions) -> CodeOptions:
        """Return `code_options` with the numbers of blocks and tasks and the code of this plan.

        Raise CodeError if they conflict.
        """


Schedule = ScheduleName | PlannedSchedule


@dataclass(frozen=True)
class FunctionTraits:
    """Known properties of a mapped function f. The defaults hold for arbitrary functions.

    Attributes
    ----------
    meets_requirement : bool
        Whether f is known to meet the assumption of the code, for example to be linear.
    error_bounds : callable or None
        Computes the tolerances for checking whether f is linear, as `LeafErrorBounds` describes. None for the
        default tolerance.
    result_shape : tuple of int, or None
        The shape of the array that f returns, or None if unknown.
    is_rowwise : bool
        Whether f returns one row for each row of its block.
    """

    meets_requirement: bool = False
    error_bounds: LeafErrorBounds | None = None
    result_shape: tuple[int, ...] | None = None
    is_rowwise: bool = False


@dataclass(frozen=True)
class MapOptions:
    """The validated options of a map, as for `coded_map`, and the known properties of its function."""

    verify: Verify = "auto"
    rtol: float | None = None
    timeout: float = inf
    retries: int = 1
    retry_delay: float = 0.0  # the delay in seconds before the first retry, doubled for each further one
    estimate_on_timeout: bool = False  # whether to return estimates at the timeout instead of failing
    schedule: str = "upfront"
    n_upfront_parity: int = 0  # if "on_demand", the number of parity tasks that start with the data tasks
    run_times: RunTimeQuantiles | None = None  # the distribution of task run times, from a plan

    # The option that requires parity tasks, or "". The error message names it if the data cannot be coded.
    parity_required_by: str = ""
    key: str | bytes | None = None
    traits: FunctionTraits = FunctionTraits()


def check_function(f: Any) -> None:
    """Raise CodeError if `f` is not callable."""
    if not callable(f):
        raise CodeError(f"f must be callable, not {type(f).__name__}")


def check_on_result(on_result: Any) -> None:
    """Raise CodeError unless `on_result` is a function or None."""
    if on_result is not None and not callable(on_result):
        raise CodeError(f"on_result must be a function of (index, result) or None, got {on_result!r:.100}")


def check_retry_delay(retry_delay: Any) -> float:
    """Return `retry_delay` as a float. Raise CodeError unless it is finite and at least 0."""
    if not (is_real_number(retry_delay) and 0 <= retry_delay < inf):
        raise CodeError(f"retry_delay must be a finite number of seconds >= 0, got {retry_delay!r}")
    return float(retry_delay)


def check_options(
    verify: Any,
    rtol: Any,
    timeout: Any,
    retries: Any,
    on_timeout: Any = "raise",
    schedule: Any = "upfront",
    key: Any = None,
    *,
    retry_delay: Any = 0.0,
) -> MapOptions:
    """Validate the options of a map and return them. Raise CodeError if an option is invalid."""
    if not isinstance(verify, (bool, np.bool_)) and not is_choice(verify, ("auto",)):
        raise CodeError(f"verify must be 'auto', True or False, not {verify!r}")
    for name, value in (("rtol", rtol), ("timeout", timeout)):
        if value is not None and not (is_real_number(value) and value > 0):
            raise CodeError(f"{name} must be a positive number, not {value!r}")
    if not is_nonnegative_int(retries):
        raise CodeError(f"retries must be 0 or more, not {retries!r}")
    if not is_choice(on_timeout, ("raise", "estimate")):
        raise CodeError(f"on_timeout must be 'raise' or 'estimate', not {on_timeout!r}")
    estimate_on_timeout = on_timeout == "estimate"
    if estimate_on_timeout and timeout is None:
        raise CodeError("on_timeout='estimate' needs timeout=: the seconds after which to estimate")
    if not (isinstance(schedule, PlannedSchedule) or is_choice(schedule, ("upfront", "on_demand"))):
        advice = ""
        if is_integer(schedule):
            advice = f": for tasks of less work, use blocks={schedule} * ... and tasks={schedule} * ..."
        raise CodeError(
            "schedule must be 'upfront', 'on_demand' or a Plan as polarmap.plan returns it, not "
            f"{schedule!r}{advice}"
        )
    verify = verify if isinstance(verify, str) else bool(verify)
    name, n_upfront_parity, run_times = schedule, 0, None
    parity_required_by = "schedule='on_demand'" if schedule == "on_demand" else ""
    if isinstance(schedule, PlannedSchedule):
        name, parity_required_by = schedule.schedule, "the plan"
        n_upfront_parity, run_times = schedule.n_upfront_parity, schedule.run_times
    parity_required_by = "on_timeout='estimate'" if estimate_on_timeout else parity_required_by
    timeout_seconds = inf if timeout is None else timeout
    key = None if key is None else check_encryption_key(key)
    return MapOptions(
        verify,
        rtol,
        timeout_seconds,
        int(retries),
        check_retry_delay(retry_delay),
        estimate_on_timeout,
        name,
        n_upfront_parity,
        run_times,
        parity_required_by,
        key,
    )


def apply_plan(code_options: CodeOptions, schedule: Schedule) -> CodeOptions:
    """Return `code_options`, completed with the block counts and code of `schedule` if it is a plan."""
    return schedule.apply_to(code_options) if isinstance(schedule, PlannedSchedule) else code_options
