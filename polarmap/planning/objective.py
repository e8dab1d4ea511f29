"""What a plan is chosen for, which limits it keeps, and the choice among options by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from polarmap.codes.checks import is_number, is_one_of
from polarmap.errors import CodeError
from polarmap.planning.completion import Completion

COST_SLACK = 0.05  # of plans for the cost, unless another is said
OBJECTIVES = ("mean", "p50", "p95", "p99", "cost")


@dataclass(frozen=True)
class Objective:
    """What a plan is to make small, and the limits it must keep.

    quantity : one of OBJECTIVES.
    slack : relative loss accepted in it; None: what balances it with the worker-seconds.
    deadline : seconds within which it (p99 for "cost") must be.
    budget : worker-seconds that may be paid in the mean.
    max_failure_probability : largest probability accepted that too many tasks never end.
    """

    quantity: str = "p99"
    slack: float | None = None
    deadline: float = inf
    budget: float = inf
    max_failure_probability: float = 1e-3

    def __post_init__(self) -> None:
        if not is_one_of(self.quantity, OBJECTIVES):
            raise CodeError(f"objective must be one of {', '.join(OBJECTIVES)}, not {self.quantity!r}")
        for name in ("slack", "deadline", "budget", "max_failure_probability"):
            limit = getattr(self, name)
            if name == "slack" and limit is None:
                continue
            if not is_number(limit) or limit < 0:
                raise CodeError(f"{name} must be at least 0, not {limit!r}")

    @property
    def clock(self) -> str:
        """The completion time that is compared: the quantity itself, or p99 beside the cost."""
        return "p99" if self.quantity == "cost" else self.quantity

    def value(self, option: Completion) -> float:
        """What an option is judged by: seconds, or worker-seconds."""
        return float(getattr(option, "paid" if self.quantity == "cost" else self.quantity))

    def seconds(self, option: Completion) -> float:
        """The completion time of an option that the deadline is for."""
        return float(getattr(option, self.clock))

    def possible(self, options: Sequence[Completion]) -> list[Completion]:
        """The options within all limits; an error that names the limit that leaves none."""
        without = f"no plan for k = {options[0].k} on at most {max(option.n for option in options)} workers: "
        safest = min(option.failure_probability for option in options)
        allowed = self.max_failure_probability
        reliable = _those(
            lambda option: option.failure_probability <= allowed,
            options,
            f"{without}the job never completes with a probability of at least {safest:.3g}, "
            f"above max_failure_probability = {allowed:g}, because too many tasks never end",
        )
        finite = _those(
            lambda option: isfinite(self.value(option)),
            reliable,
            f"{without}the {self.quantity} of the completion time is infinite; plan for a lower quantile",
        )
        timely = _those(
            lambda option: self.seconds(option) <= self.deadline,
            finite,
            f"{without}{self.clock} is {min(map(self.seconds, finite)):.4g} s at best, "
            f"the deadline {self.deadline:g} s",
        )
        return _those(
            lambda option: option.paid <= self.budget,
            timely,
            f"{without}at least {min(option.paid for option in timely):.4g} worker-seconds are needed, "
            f"the budget is {self.budget:g}",
        )

    def choice(self, options: Sequence[Completion]) -> Completion:
        """The option to recommend.

        With a slack the cheapest whose value is within it of the best; for the cost, the fastest. Without one
        the knee: where time times worker-seconds is least, workers before it saved a larger share of the
        time than they added to the cost, and workers beyond it save a smaller one.
        """
        if self.slack is None and self.quantity != "cost":
            return min(options, key=lambda option: (self.value(option) * option.paid, option.paid, option.n))
        limit = (1 + (COST_SLACK if self.slack is None else self.slack)) * min(map(self.value, options))
        near = [option for option in options if self.value(option) <= limit]
        other = "p99" if self.quantity == "cost" else "paid"
        return min(near, key=lambda option: (getattr(option, other), option.n))


def _those(
    keeps: Callable[[Completion], bool], options: Sequence[Completion], reason: str
) -> list[Completion]:
    kept = [option for option in options if keeps(option)]
    if not kept:
        raise CodeError(reason)
    return kept
