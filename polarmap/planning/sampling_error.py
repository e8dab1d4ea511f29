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

FEW_TASKS = 20  # completed tasks below which a plan shows a range
RESAMPLES = 200
COVERAGE = 0.90  # share of the resamples whose choice lies within the range
CONFIDENCE = 0.95  # with which slow tasks that did not occur are rarer than is said
TAIL_STEPS = 16  # times in place of a continuous tail beyond the last observation
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class SizeRange(NamedTuple):
    """Between which numbers of workers a recommendation may lie.

    Attributes
    ----------
    low, high
        The smallest and the largest number of workers.
    unseen
        The largest share of slow tasks that may well have produced none among the observations.
    """

    low: int
    high: int
    unseen: float

    def __str__(self) -> str:
        return (
            f"{self.counts} workers ({COVERAGE:.0%} percentile bootstrap); slow tasks of up to "
            f"{self.unseen:.0%} may be unseen"
        )

    @property
    def counts(self) -> str:
        """The range as text, one number if it has no other."""
        return f"{self.low} to {self.high}" if self.low < self.high else str(self.low)


def bootstrap_sizes(
    observed: Empirical,
    sizes: Sequence[int],
    aim: Objective,
    chosen: int,
    seed: int = 0,
    has_tail: bool = False,
) -> SizeRange:
    """Return the range of the number of workers that start, around the `chosen` one.

    Of another code or schedule than is resampled here, the choice is taken to be off by as many workers.

    sizes : the numbers of workers to choose from, ascending; the first is that of a plain map.
    has_tail : whether an exponential tail continues the observations, as in `Empirical.with_tail`.

    >>> bootstrap_sizes(Empirical([1.0] * 10), range(8, 17), Objective(), 8)[:2]
    (8, 8)
    """
    stream = np.random.default_rng(seed)
    samples = [sample for _ in range(RESAMPLES) if (sample := observed.resampled(stream)) is not None]
    center, *found = _choices([observed, *samples], sizes, aim, has_tail)
    choices = [one for one in found if one is not None]
    low = high = chosen
    if choices:
        tails = (1 - COVERAGE) / 2
        ends = np.quantile(choices, [tails, 1 - tails], method="nearest").astype(int).tolist()
        offset = 0 if center is None else chosen - center
        low = max(sizes[0], min(chosen, ends[0] + offset))
        high = min(sizes[-1], max(chosen, ends[1] + offset))
    return SizeRange(low, high, 1 - (1 - CONFIDENCE) ** (1 / observed.completed))


def _choices(
    samples: Sequence[Empirical], sizes: Sequence[int], aim: Objective, has_tail: bool
) -> Iterator[int | None]:
    """Yield the number of workers that is chosen for each sample, None where none meets the limits."""
    steps = [_steps(sample, has_tail) for sample in samples]
    most = max(len(times) for times, _ in steps)
    times, below = (
        np.array([np.pad(step[part], (0, most - len(step[part])), mode="edge") for step in steps])
        for part in (0, 1)
    )
    for options in zip(*completions(times, below, sizes)):
        try:
            yield aim.choice(aim.possible(options)).n
        except CodeError:
            yield None


def completions(times: Floats, below: Floats, sizes: Sequence[int]) -> list[list[Completion]]:
    """Return for each number of workers what to expect of a map that ends with the k-th result.

    With S(t) the probability that a task takes longer than t, and T the k-th arrival of n, the mean is the
    integral of P(T > t), and the worker-seconds are n times that of P(a task and T take longer than t).

    times, below : distributions, one in each row: ascending times, and the shares of tasks that end by each.
    sizes : numbers of workers, ascending; the first is k.
    """
    k, found = sizes[0], []
    widths = np.diff(times, axis=1, prepend=0.0)
    survival = 1 - _just_before(below)
    with np.errstate(divide="ignore"):
        arrived, missing = np.log(below), np.log1p(-below)
    done = np.zeros(below.shape)  # probability that k of the n tasks have ended, for growing n
    log_next = (k - 1) * arrived if k > 1 else np.zeros(below.shape)  # of exactly k - 1 of n - 1
    for n in range(k, sizes[-1] + 1):
        done_by_others, done = done, done + below * np.exp(log_next)
        log_next = log_next + missing + np.log(n / (n - k + 1))
        if n in sizes:
            mean = (widths * (1 - _just_before(done))).sum(axis=1)
            paid = n * (widths * survival * (1 - _just_before(done_by_others))).sum(axis=1)
            quantiles = {name: _first(times, done, share) for name, share in QUANTILES.items()}
            rows = zip(mean, paid, *quantiles.values(), 1 - done[:, -1], strict=True)
            found.append(
                [
                    Completion("rotation", n, k, mean, 0.0, p50, p95, p99, paid, k, n, fails)
                    for mean, paid, p50, p95, p99, fails in rows
                ]
            )
    return found


def _steps(sample: Empirical, has_tail: bool) -> tuple[Floats, Floats]:
    """Return ascending times, and the share of tasks that end by each; all end if there is a tail."""
    left = sample.failure_probability
    times, below = sample.values, (1 - left) * np.minimum(np.cumsum(sample.masses), 1.0)
    if has_tail and left:
        shares = (np.arange(TAIL_STEPS) + 0.5) / TAIL_STEPS
        times = np.append(times, times[-1] - sample.tail * np.log1p(-shares))
        below = np.append(below, 1 - left + left * np.arange(1, TAIL_STEPS + 1) / TAIL_STEPS)
    return times, below


def _just_before(shares: Floats) -> Floats:
    """Return what holds until each step: shares as of the step before, 0 before the first."""
    return np.pad(shares[:, :-1], ((0, 0), (1, 0)))


def _first(times: Floats, done: Floats, share: float) -> Floats:
    """Return the first time by which a job is done with this probability; inf where it never is."""
    is_done = done >= share - 1e-12
    first = np.take_along_axis(times, is_done.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(is_done.any(axis=1), first, np.inf)
