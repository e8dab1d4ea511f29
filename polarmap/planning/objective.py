"""The goal of a plan (a quantity to minimize, and limits), and the choice of the best candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from polarmap.errors import CodeError
from polarmap.planning.completion import Completion
from polarmap.validation import is_choice, is_real_number

WORKER_SECONDS_SLACK = 0.05  # The default `slack` for the objective "cost".
OBJECTIVES = ("mean", "p50", "p95", "p99", "cost")


@dataclass(frozen=True)
class Objective:
    """The goal by which `plan` chooses a number of workers: a quantity to minimize, and limits to meet.

    Parameters
    ----------
    metric : str
        The quantity to minimize, one of OBJECTIVES: the mean or a quantile of the completion time, or "cost"
        for the worker-seconds (the sum of the run times of all workers).
    slack : float, optional
        The fraction by which the metric may exceed its minimum; 0.1 means 10 %. By default, a completion time
        is balanced against the worker-seconds, and the slack of "cost" is 0.05.
    deadline : float
        The maximum acceptable completion time in seconds: that of the metric, or the p99 for "cost".
    budget : float
        The maximum acceptable mean worker-seconds.
    max_failure_probability : float
        The maximum acceptable probability that the job never completes.
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
        """The name of the completion time to compare: "mean", "p50", "p95" or "p99".

        It is the metric itself, or "p99" if the metric is "cost".
        """
        return "p99" if self.metric == "cost" else self.metric

    def evaluate_candidate(self, candidate: Completion) -> float:
        """Return the value of the metric for a candidate, in seconds or worker-seconds."""
        return float(getattr(candidate, "worker_seconds" if self.metric == "cost" else self.metric))

    def get_completion_time(self, candidate: Completion) -> float:
        """Return the completion time of a candidate, in seconds, that is compared with the deadline."""
        return float(getattr(candidate, self.time_metric))

    def filter_feasible_candidates(self, candidates: Sequence[Completion]) -> list[Completion]:
        """Return the candidates that meet all limits.

        Raises CodeError if no candidate does. The message names the limit and the best possible value.
        """
        error_prefix = (
            f"no plan for k = {candidates[0].k} on at most "
            f"{max(candidate.n for candidate in candidates)} workers: "
        )
        min_failure_probability = min(candidate.failure_probability for candidate in candidates)
        max_failure_probability = self.max_failure_probability
        reliable = _filter_candidates(
            lambda candidate: candidate.failure_probability <= max_failure_probability,
            candidates,
            f"{error_prefix}too many tasks never complete, so the job fails with a probability of at least "
            f"{min_failure_probability:.3g}, above max_failure_probability = {max_failure_probability:g}. "
            "Raise the limit, or allow more workers",
        )
        finite = _filter_candidates(
            lambda candidate: isfinite(self.evaluate_candidate(candidate)),
            reliable,
            f"{error_prefix}the {self.metric} of the completion time is infinite. Plan for a lower quantile",
        )
        timely = _filter_candidates(
            lambda candidate: self.get_completion_time(candidate) <= self.deadline,
            finite,
            f"{error_prefix}{self.time_metric} is at least {min(map(self.get_completion_time, finite)):.4g} "
            "s, "
            f"later than the deadline of {self.deadline:g} s. Extend the deadline, or allow more workers",
        )
        return _filter_candidates(
            lambda candidate: candidate.worker_seconds <= self.budget,
            timely,
            f"{error_prefix}at least "
            f"{min(candidate.worker_seconds for candidate in timely):.4g} worker-seconds are needed, "
            f"more than the budget of {self.budget:g}",
        )

    def select_candidate(self, candidates: Sequence[Completion]) -> Completion:
        """Choose the candidate to recommend.

        With a slack, candidates are considered whose metric exceeds the minimum by at most this fraction. The
        cheapest of them is chosen, or the one with the smallest p99 if the metric is "cost".

        Without a slack, the candidate with the smallest product of time and worker-seconds is chosen. More
        workers would increase the cost by a larger factor than they would reduce the time.
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
        """Return a sort key that is smallest for the candidate with the best balance of time and cost.

        The key is the product of time and cost, followed by two values that break ties.
        """
        worker_seconds = candidate.worker_seconds
        return self.evaluate_candidate(candidate) * worker_seconds, worker_seconds, candidate.n


def _filter_candidates(
    predicate: Callable[[Completion], bool], candidates: Sequence[Completion], reason: str
) -> list[Completion]:
    matching = [candidate for candidate in candidates if predicate(candidate)]
    if not matching:
        raise CodeError(reason)
    return matching
