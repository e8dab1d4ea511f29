"""The objective and the limits of a plan, and the selection of a candidate by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from polarmap.errors import CodeError
from polarmap.planning.completion import Completion
from polarmap.validation import is_choice, is_real_number

WORKER_SECONDS_SLACK = 0.05  # The default slack of plans for the cost.
OBJECTIVES = ("mean", "p50", "p95", "p99", "cost")


@dataclass(frozen=True)
class Objective:
    """The quantity that a plan minimizes, and the limits that it must meet.

    Parameters
    ----------
    metric : str
        One of OBJECTIVES: a completion time, or "cost" for the worker-seconds.
    slack : float, optional
        The accepted relative increase of the metric above its minimum. By default, a completion time is
        balanced with the worker-seconds, and the slack of "cost" is 0.05.
    deadline : float
        The largest completion time (that of the metric; p99 for "cost"), in seconds.
    budget : float
        The largest mean worker-seconds.
    max_failure_probability : float
        The largest probability that the job never completes.
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
                raise CodeError(f"{name} must be a number of at least 0, not {value!r}")

    @property
    def time_metric(self) -> str:
        """The completion time that candidates are compared by: the metric, or p99 for "cost"."""
        return "p99" if self.metric == "cost" else self.metric

    def evaluate_candidate(self, candidate: Completion) -> float:
        """Return the metric of a candidate, in seconds or worker-seconds."""
        return float(getattr(candidate, "worker_seconds" if self.metric == "cost" else self.metric))

    def get_completion_time(self, candidate: Completion) -> float:
        """Return the completion time of a candidate that must meet the deadline, in seconds."""
        return float(getattr(candidate, self.time_metric))

    def filter_feasible_candidates(self, candidates: Sequence[Completion]) -> list[Completion]:
        """Return the candidates within all limits, or raise CodeError with the limit that none meets."""
        error_prefix = (
            f"no plan for k = {candidates[0].k} on at most "
            f"{max(candidate.n for candidate in candidates)} workers: "
        )
        min_failure_probability = min(candidate.failure_probability for candidate in candidates)
        max_failure_probability = self.max_failure_probability
        reliable = _filter_or_raise(
            lambda candidate: candidate.failure_probability <= max_failure_probability,
            candidates,
            f"{error_prefix}too many tasks never complete, so the job fails with a probability of at least "
            f"{min_failure_probability:.3g}, above max_failure_probability = {max_failure_probability:g}. "
            "Raise the limit, or allow more workers",
        )
        finite = _filter_or_raise(
            lambda candidate: isfinite(self.evaluate_candidate(candidate)),
            reliable,
            f"{error_prefix}the {self.metric} of the completion time is infinite. Plan for a lower quantile",
        )
        timely = _filter_or_raise(
            lambda candidate: self.get_completion_time(candidate) <= self.deadline,
            finite,
            f"{error_prefix}{self.time_metric} is at least {min(map(self.get_completion_time, finite)):.4g} "
            "s, "
            f"later than the deadline of {self.deadline:g} s. Extend the deadline, or allow more workers",
        )
        return _filter_or_raise(
            lambda candidate: candidate.worker_seconds <= self.budget,
            timely,
            f"{error_prefix}at least "
            f"{min(candidate.worker_seconds for candidate in timely):.4g} worker-seconds are needed, "
            f"more than the budget of {self.budget:g}",
        )

    def select_candidate(self, candidates: Sequence[Completion]) -> Completion:
        """Return the candidate to recommend.

        With a slack, this is the cheapest candidate whose metric is within the slack of the minimum; for
        "cost", it is the one with the smallest p99. Without a slack, it is the knee, where time *
        worker-seconds is smallest: further workers would add a larger fraction to the cost than they save of
        the time.
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
        """Return time * worker-seconds, followed by two values that break ties."""
        worker_seconds = candidate.worker_seconds
        return self.evaluate_candidate(candidate) * worker_seconds, worker_seconds, candidate.n


def _filter_or_raise(
    predicate: Callable[[Completion], bool], candidates: Sequence[Completion], reason: str
) -> list[Completion]:
    matching = [candidate for candidate in candidates if predicate(candidate)]
    if not matching:
        raise CodeError(reason)
    return matching
