"""What a plan is chosen for, which limits it keeps, and the choice among options by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from polarmap.errors import CodeError
from polarmap.planning.completion import Completion
from polarmap.validation import is_choice, is_real_number

WORKER_SECONDS_SLACK = 0.05  # of plans for the cost, unless another is said
OBJECTIVES = ("mean", "p50", "p95", "p99", "cost")


@dataclass(frozen=True)
class Objective:
    """What a plan is to make small, and the limits it must keep.

    metric : one of OBJECTIVES.
    slack : relative loss accepted in it; None: what balances it with the worker-seconds.
    deadline : seconds within which it (p99 for "cost") must be.
    budget : worker-seconds that may be paid in the mean.
    max_failure_probability : largest probability accepted that too many tasks never end.
    """

    metric: str = "p99"
    slack: float | None = None
    deadline: float = inf
    budget: float = inf
    max_failure_probability: float = 1e-3

    def __post_init__(self) -> None:
        if not is_choice(self.metric, OBJECTIVES):
            raise CodeError(f"objective must be one of {', '.join(OBJECTIVES)}, not {self.metric!r}")
        for name in ("slack", "deadline", "budget", "max_failure_probability"):
            value = getattr(self, name)
            if name == "slack" and value is None:
                continue
            if not is_real_number(value) or value < 0:
                raise CodeError(f"{name} must be at least 0, not {value!r}")

    @property
    def time_metric(self) -> str:
        """The completion time that is compared: the quantity itself, or p99 beside the cost."""
        return "p99" if self.metric == "cost" else self.metric

    def evaluate_candidate(self, candidate: Completion) -> float:
        """What an option is judged by: seconds, or worker-seconds."""
        return float(getattr(candidate, "worker_seconds" if self.metric == "cost" else self.metric))

    def get_completion_time(self, candidate: Completion) -> float:
        """The completion time of an option that the deadline is for."""
        return float(getattr(candidate, self.time_metric))

    def filter_feasible_candidates(self, candidates: Sequence[Completion]) -> list[Completion]:
        """The options within all limits; an error that names the limit that leaves none."""
        error_prefix = (
            f"no plan for k = {candidates[0].k} on at most "
            f"{max(candidate.n for candidate in candidates)} workers: "
        )
        min_failure_probability = min(candidate.failure_probability for candidate in candidates)
        max_failure_probability = self.max_failure_probability
        reliable = _filter_or_raise(
            lambda candidate: candidate.failure_probability <= max_failure_probability,
            candidates,
            f"{error_prefix}the job never completes with a probability of at least "
            f"{min_failure_probability:.3g}, "
            f"above max_failure_probability = {max_failure_probability:g}, because too many tasks never end",
        )
        finite = _filter_or_raise(
            lambda candidate: isfinite(self.evaluate_candidate(candidate)),
            reliable,
            f"{error_prefix}the {self.metric} of the completion time is infinite; plan for a lower quantile",
        )
        timely = _filter_or_raise(
            lambda candidate: self.get_completion_time(candidate) <= self.deadline,
            finite,
            f"{error_prefix}{self.time_metric} is {min(map(self.get_completion_time, finite)):.4g} s at "
            f"best, the deadline {self.deadline:g} s",
        )
        return _filter_or_raise(
            lambda candidate: candidate.worker_seconds <= self.budget,
            timely,
            f"{error_prefix}at least "
            f"{min(candidate.worker_seconds for candidate in timely):.4g} worker-seconds are needed, "
            f"the budget is {self.budget:g}",
        )

    def select_candidate(self, candidates: Sequence[Completion]) -> Completion:
        """The option to recommend.

        With a slack the cheapest whose value is within it of the best; for the cost, the fastest. Without one
        the knee: where time times worker-seconds is least, workers before it saved a larger share of the
        time than they added to the cost, and workers beyond it save a smaller one.
        """
        if self.slack is None and self.metric != "cost":
            return min(candidates, key=self._get_knee_sort_key)
        slack = WORKER_SECONDS_SLACK if self.slack is None else self.slack
        max_value = (1 + slack) * min(map(self.evaluate_candidate, candidates))
        near_optimal = [
            candidate for candidate in candidates if self.evaluate_candidate(candidate) <= max_value
        ]
        secondary_metric = "p99" if self.metric == "cost" else "worker_seconds"
        return min(near_optimal, key=lambda candidate: (getattr(candidate, secondary_metric), candidate.n))

    def _get_knee_sort_key(self, candidate: Completion) -> tuple[float, float, int]:
        """Return time times worker-seconds, then what decides between candidates for which it is equal."""
        worker_seconds = candidate.worker_seconds
        return self.evaluate_candidate(candidate) * worker_seconds, worker_seconds, candidate.n


def _filter_or_raise(
    predicate: Callable[[Completion], bool], candidates: Sequence[Completion], reason: str
) -> list[Completion]:
    matching = [candidate for candidate in candidates if predicate(candidate)]
    if not matching:
        raise CodeError(reason)
    return matching
