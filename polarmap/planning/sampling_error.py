"""How uncertain a recommended number of workers is if it is based on few observed run times.

The range is estimated by a percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13): the observations are resampled with replacement many times, and the number of workers is
chosen for each resample. All choices assume that any k results can be decoded, so each of them is exact and
fast.
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

SMALL_SAMPLE_SIZE = 20  # A plan shows a range of worker counts if fewer completed tasks were observed.
N_RESAMPLES = 200
COVERAGE = 0.90  # The fraction of bootstrap samples whose best number of workers is within the range.
CONFIDENCE = 0.95  # The confidence level of the upper bound `WorkerCountRange.max_unseen_fraction`.
TAIL_STEPS = 16  # The number of steps that approximate an exponential tail beyond the longest run time.
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class WorkerCountRange(NamedTuple):
    """A range that probably contains the best number of workers for a map.

    A plan shows it instead of a single number if it is based on few observed run times.

    Attributes
    ----------
    min_workers, max_workers : int
        The ends of the range.
    max_unseen_fraction : float
        Upper 95 % confidence bound on the fraction of tasks that are slower than all observed ones.
    """

    min_workers: int
    max_workers: int
    max_unseen_fraction: float

    def __str__(self) -> str:
        return (
            f"{self.range_text} workers ({COVERAGE:.0%} range of a bootstrap); up to "
            f"{self.max_unseen_fraction:.0%} of tasks may be even slower"
        )

    @property
    def range_text(self) -> str:
        """The range as text, such as "28 to 31", or a single number if both ends are equal."""
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
    """Estimate the range of the best number of workers by bootstrapping.

    Run times are drawn at random from the observed ones, with replacement, many times. For each of these
    samples, the best number of workers is computed for a job that uses a rotation code and starts all tasks
    at once. If the recommended number was chosen for a different code or schedule, the range is shifted by
    the difference.

    Parameters
    ----------
    observations : Empirical
        The observed run times.
    worker_counts : sequence of int
        The numbers of workers to choose from, in ascending order. The first is k, that of a plain map without
        a code.
    objective : Objective
        What to minimize.
    chosen_count : int
        The recommended number of workers.
    seed : int
        The random seed.
    has_tail : bool
        Whether to extrapolate by an exponential tail (`Empirical.with_exponential_tail`).

    Examples
    --------
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
    """Yield the best number of workers for each sample, or None if no number meets the limits."""
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
    """Compute the time and cost of a job that needs any k results, for many run-time distributions at once.

    All n tasks start at once. Let T be the time of the k-th result, which completes the job. Its mean is the
    integral of P(T > t) over t. A worker is busy at time t if its task takes longer than t and T > t. The
    worker-seconds are n times the integral of the probability of this event.

    Parameters
    ----------
    times, cdf : arrays (distributions, steps)
        One step function per distribution: ascending times, and the fraction of tasks completed by each time.
    worker_counts : sequence of int
        The numbers of workers n, in ascending order. The first is k.

    Returns
    -------
    list of list of Completion
        One list for each number of workers, with one entry for each distribution.
    """
    k, completions = worker_counts[0], []
    widths = np.diff(times, axis=1, prepend=0.0)
    survival = 1 - _compute_left_limits(cdf)
    with np.errstate(divide="ignore"):
        log_arrived, log_missing = np.log(cdf), np.log1p(-cdf)
    # The probability that at least k of n tasks have completed at each time. The loop below increases n.
    completed_cdf = np.zeros(cdf.shape)
    # The log probability that exactly k - 1 of the first n - 1 tasks have completed at each time. If task n
    # has also completed, there are k results.
    log_next = (k - 1) * log_arrived if k > 1 else np.zeros(cdf.shape)
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
    """Return the cdf of observed run times as two arrays: times, and the fraction completed by each time.

    If `has_tail` is True, steps of an exponential tail are appended, and the last fraction is 1.
    """
    failure_probability = sample.failure_probability
    times, cdf = sample.values, (1 - failure_probability) * np.minimum(np.cumsum(sample.probabilities), 1.0)
    if has_tail and failure_probability:
        tail_probabilities = (np.arange(TAIL_STEPS) + 0.5) / TAIL_STEPS
        times = np.append(times, times[-1] - sample.tail_scale * np.log1p(-tail_probabilities))
        tail_cdf = failure_probability * np.arange(1, TAIL_STEPS + 1) / TAIL_STEPS
        cdf = np.append(cdf, 1 - failure_probability + tail_cdf)
    return times, cdf


def _compute_left_limits(values: Floats) -> Floats:
    """Return the value of each step function just before each of its steps (the left limit).

    `values` are the values after each step, and the functions begin at 0.
    """
    return np.pad(values[:, :-1], ((0, 0), (1, 0)))


def _find_quantile(times: Floats, cdf: Floats, probability: float) -> Floats:
    """Return the first time at which each cdf reaches `probability`, or inf if it never does."""
    reached_mask = cdf >= probability - 1e-12
    quantiles = np.take_along_axis(times, reached_mask.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(reached_mask.any(axis=1), quantiles, np.inf)
