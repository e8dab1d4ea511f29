"""How far the recommended number of workers may be off because few run times were observed.

The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13):
observations, censored ones included, are drawn again with replacement, and the choice is made anew for each
such sample.
Any k results are taken to determine the others, so each choice is exact and quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polarmap.errors import CodeError
from polarmap.planning.completion import Completion
from polarmap.planning.distributions import Floats
from polarmap.planning.empirical import Empirical
from polarmap.planning.objective import Objective

SMALL_SAMPLE_SIZE = 20  # completed tasks below which a plan shows a range
N_RESAMPLES = 200
COVERAGE = 0.90  # share of the resamples whose choice lies within the range
CONFIDENCE = 0.95  # with which slow tasks that did not occur are rarer than is said
TAIL_STEPS = 16  # times in place of a continuous tail beyond the last observation
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class WorkerCountRange(NamedTuple):
    """Between which numbers of workers a recommendation may lie.

    Attributes
    ----------
    min_workers, max_workers
        The smallest and the largest number of workers.
    max_unseen_fraction
        The largest share of slow tasks that may well have produced none among the observations.
    """

    min_workers: int
    max_workers: int
    max_unseen_fraction: float

    def __str__(self) -> str:
        return (
            f"{self.range_text} workers ({COVERAGE:.0%} percentile bootstrap); slow tasks of up to "
            f"{self.max_unseen_fraction:.0%} may be unseen"
        )

    @property
    def range_text(self) -> str:
        """The range as text, one number if it has no other."""
        return (
            f"{self.min_workers} to {self.max_workers}"
            if self.min_workers < self.max_workers
            else str(self.min_workers)
        )


def bootstrap_worker_count_range(
    observations: Empirical,
    worker_counts: Sequence[int],
    objective: Objective,
    chosen_count: int,
    seed: int = 0,
    has_tail: bool = False,
) -> WorkerCountRange:
    """Return the range of the number of workers that start, around the `chosen_count` one.

    Of another code or schedule than is resampled here, the choice is taken to be off by as many workers.

    worker_counts : the numbers of workers to choose from, ascending; the first is that of a plain map.
    has_tail : whether an exponential tail continues the observations, as in
        `Empirical.with_exponential_tail`.

    >>> bootstrap_worker_count_range(Empirical([1.0] * 10), range(8, 17), Objective(), 8)[:2]
    (8, 8)
    """
    rng = np.random.default_rng(seed)
    samples = [sample for _ in range(N_RESAMPLES) if (sample := observations.resample(rng)) is not None]
    all_samples = [observations, *samples]
    reference_size, *sizes = _choose_worker_counts(all_samples, worker_counts, objective, has_tail)
    feasible_sizes = [size for size in sizes if size is not None]
    low = high = chosen_count
    if feasible_sizes:
        tail = (1 - COVERAGE) / 2
        percentiles = np.quantile(feasible_sizes, [tail, 1 - tail], method="nearest")
        min_size, max_size = percentiles.astype(int).tolist()
        offset = 0 if reference_size is None else chosen_count - reference_size
        low = max(worker_counts[0], min(chosen_count, min_size + offset))
        high = min(worker_counts[-1], max(chosen_count, max_size + offset))
    return WorkerCountRange(low, high, 1 - (1 - CONFIDENCE) ** (1 / observations.n_completed))


def _choose_worker_counts(
    samples: Sequence[Empirical], worker_counts: Sequence[int], objective: Objective, has_tail: bool
) -> Iterator[int | None]:
    """Yield the number of workers that is chosen for each sample, None where none meets the limits."""
    step_functions = [_compute_empirical_cdf_steps(sample, has_tail) for sample in samples]
    max_steps = max(len(times) for times, _ in step_functions)
    padded = [
        [np.pad(values, (0, max_steps - len(values)), mode="edge") for values in step_function]
        for step_function in step_functions
    ]
    times, cdf = np.array(padded).swapaxes(0, 1)
    for candidates in zip(*compute_completions_by_worker_count(times, cdf, worker_counts)):
        try:
            yield objective.select_candidate(objective.filter_feasible_candidates(candidates)).n
        except CodeError:
            yield None


def compute_completions_by_worker_count(
    times: Floats, cdf: Floats, worker_counts: Sequence[int]
) -> list[list[Completion]]:
    """Return for each number of workers what to expect of a map that ends with the k-th result.

    With S(t) the probability that a task takes longer than t, and T the k-th arrival of n, the mean is the
    integral of P(T > t), and the worker-seconds are n times that of P(a task and T take longer than t).

    times, cdf : distributions, one in each row: ascending times, and the shares of tasks that end by each.
    worker_counts : numbers of workers, ascending; the first is k.
    """
    k, completions = worker_counts[0], []
    widths = np.diff(times, axis=1, prepend=0.0)
    survival = 1 - _compute_left_limits(cdf)
    with np.errstate(divide="ignore"):
        log_arrived, log_missing = np.log(cdf), np.log1p(-cdf)
    completed_cdf = np.zeros(cdf.shape)  # probability that k of the n tasks have ended, for growing n
    log_next = (k - 1) * log_arrived if k > 1 else np.zeros(cdf.shape)  # of exactly k - 1 of n - 1
    for n in range(k, worker_counts[-1] + 1):
        others_cdf, completed_cdf = completed_cdf, completed_cdf + cdf * np.exp(log_next)
        log_next = log_next + log_missing + np.log(n / (n - k + 1))
        if n in worker_counts:
            mean = (widths * (1 - _compute_left_limits(completed_cdf))).sum(axis=1)
            worker_seconds = n * (widths * survival * (1 - _compute_left_limits(others_cdf))).sum(axis=1)
            quantiles = {
                name: _find_quantile(times, completed_cdf, probability)
                for name, probability in QUANTILES.items()
            }
            rows = zip(mean, worker_seconds, *quantiles.values(), 1 - completed_cdf[:, -1], strict=True)
            completions.append(
                [
                    Completion("rotation", n, k, mean, 0.0, p50, p95, p99, seconds, k, n, failure_probability)
                    for mean, seconds, p50, p95, p99, failure_probability in rows
                ]
            )
    return completions


def _compute_empirical_cdf_steps(sample: Empirical, has_tail: bool) -> tuple[Floats, Floats]:
    """Return ascending times, and the share of tasks that end by each; all end if there is a tail."""
    failure_probability = sample.failure_probability
    times, cdf = sample.values, (1 - failure_probability) * np.minimum(np.cumsum(sample.probabilities), 1.0)
    if has_tail and failure_probability:
        tail_probabilities = (np.arange(TAIL_STEPS) + 0.5) / TAIL_STEPS
        times = np.append(times, times[-1] - sample.tail_scale * np.log1p(-tail_probabilities))
        tail_cdf = failure_probability * np.arange(1, TAIL_STEPS + 1) / TAIL_STEPS
        cdf = np.append(cdf, 1 - failure_probability + tail_cdf)
    return times, cdf


def _compute_left_limits(values: Floats) -> Floats:
    """Return what holds until each step: shares as of the step before, 0 before the first."""
    return np.pad(values[:, :-1], ((0, 0), (1, 0)))


def _find_quantile(times: Floats, cdf: Floats, probability: float) -> Floats:
    """Return the first time by which a job is done with this probability; inf where it never is."""
    reached_mask = cdf >= probability - 1e-12
    quantiles = np.take_along_axis(times, reached_mask.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(reached_mask.any(axis=1), quantiles, np.inf)
