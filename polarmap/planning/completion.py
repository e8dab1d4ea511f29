"""When a job of n workers is complete, and what it costs, under a distribution of run times.

A scheme is known by the number of arrivals it needs. Where that is certain (no code, an MDS code)
everything follows from order statistics, exactly; where it depends on the order of arrival, the
number is simulated once per code and then integrated exactly, with a standard error.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.checks import is_count, is_number, is_one_of
from polarmap.codes.dtypes import is_integer
from polarmap.codes.uncoded import BACKUPS
from polarmap.errors import CodeError, without_our_frames
from polarmap.planning import backups, decodability, unequal
from polarmap.planning.decodability import ArrivalsNeeded
from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.empirical import as_runtimes
from polarmap.planning.on_demand import simulate_on_demand
from polarmap.planning.order_statistics import decoded_by, quantiles, rank_means
from polarmap.planning.small_blocks import check_task_price, simulate_small_blocks
from polarmap.run.lateness import backup_lateness

MOST_TRIED = 1 << 20  # workers or trials: beyond, not even a forecast ends soon
QUANTILES = np.array([0.5, 0.95, 0.99])
RIVALS = {"backup-cubed": backups.CUBED, "backup-spark": backups.SPARK}
RULES = ("backup", *RIVALS)
CODES = unequal.SCHEMES
SCHEMES = (*CODES, "on_demand", "small_blocks", "replication", *RULES)


class Completion(NamedTuple):
    """What one scheme gives; seconds, over the jobs that complete.

    Attributes
    ----------
    scheme, n, k
        What was run: n workers at the start, k blocks of data.
    mean
        Expected completion time.
    error
        Its standard error; 0 where it is exact.
    p50, p95, p99
        Quantiles over all jobs; inf where fewer complete.
    paid
        Expected worker-seconds; whatever runs is stopped at completion.
    arrivals
        Expected number of results awaited; of copies, those that win.
    started
        Expected number of tasks started.
    failure_probability
        Probability that the job never completes, because too many tasks never end.
    upfront
        Of parity on demand: parity tasks that start at once.
    pieces
        Of small blocks: by how much there are more blocks than k, and tasks than n.
    """

    scheme: str
    n: int
    k: int
    mean: float
    error: float
    p50: float
    p95: float
    p99: float
    paid: float
    arrivals: float
    started: float
    failure_probability: float
    upfront: int = 0
    pieces: int = 1

    def __str__(self) -> str:
        error = f" +- {self.error:.2g}" if self.error else ""
        failing = self.failure_probability
        fails = f", fails with probability {failing:.2g}" if failing else ""
        return (
            f"{self.scheme} ({self.n}, {self.k}): mean {self.mean:.4g}{error} s, p50 {self.p50:.4g}, "
            f"p99 {self.p99:.4g}, {self.paid:.4g} worker-seconds{fails}"
        )


def completion_time(
    n: int,
    k: int,
    scheme: str,
    runtimes: object,
    *,
    erasure: float | None = None,
    upfront: int = 0,
    pieces: int = 8,
    task_price: float = 0.0,
    trials: int = 1000,
    seed: int = 0,
) -> Completion:
    """When and at what cost n workers give the results of k blocks.

    Parameters
    ----------
    n, k : int
        Workers started at once, and data blocks.
    scheme : str
        "uncoded" (n = k): wait for all. "mds": the k-th arrival, T_(k:n), below which no
        one-shot code of all-or-nothing workers can be. "rotation": the same, for almost any k
        arrivals of that kernel decode. "sequential", "optimal", "integers": the arikan kernel
        with the papers' decoder, the best there is, or the best for integers modulo 2^64.
        "on_demand": rotation, but parity tasks start when data tasks are late (`ParityRule`).
        "small_blocks": rotation, of `pieces` times as many blocks and tasks on n workers that stay, each of
        which takes the next task when it is done.
        "replication": n / k copies of each task. "backup" (n = k): late tasks are started again as
        by `hedged_map`; "backup-cubed", "backup-spark": by the rule of cubed or of Spark 4.
    runtimes : Distribution, run times in seconds, or reports of coded maps
        A sequence of n Distributions, one for each worker, where they are not alike: then jobs are
        simulated, 2,000 or more, of the schemes that are codes.
    erasure : float, optional
        For which the arikan code is designed. By default (n - k) / n; for workers that are not alike
        that of each when k of them are expected back (`PolarCode(erasure=)`).
    upfront : int
        "on_demand": parity tasks that start at once all the same.
    pieces, task_price
        As for `simulate_small_blocks`.
    trials, seed : int
        Orders of arrival, or jobs, simulated where there is no formula.

    Returns
    -------
    Completion

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> print(completion_time(512, 256, "rotation", ShiftedExponential(1.0, 1.0)))
    rotation (512, 256): mean 1.692 s, p50 1.691, p99 1.799, 768 worker-seconds
    """
    with without_our_frames:
        _check_scheme(n, k, scheme, trials)
        _check_options(seed, upfront, pieces, task_price, erasure)
        if unequal.is_sequence_of_distributions(runtimes):
            workers = unequal.UnequalWorkers(runtimes)
            _check_one_each(n, workers)
            if not workers.are_alike:
                jobs, arrivals = unequal.simulate_unequal(workers, k, scheme, erasure, trials, seed)
                return completion_of_jobs(scheme, n, k, jobs, arrivals)
            runtimes = workers.together
        distribution = as_runtimes(runtimes)
        if distribution.failure_probability == 1:
            return _hopeless(scheme, n, k)
        rng = np.random.default_rng(seed)
        if scheme in RULES:
            return completion_of_jobs(scheme, k, k, _backed_up(k, distribution, scheme, trials, rng))
        if scheme == "on_demand":
            jobs = simulate_on_demand(
                distribution.sample(rng, (trials, k)),
                distribution.sample(rng, (trials, n - k)),
                upfront,
                distribution,
            )
            return completion_of_jobs(scheme, n, k, jobs)._replace(upfront=upfront)
        if scheme == "small_blocks":
            times = distribution.sample(rng, (trials, n))
            jobs = simulate_small_blocks(times, k, pieces, task_price)
            return completion_of_jobs(scheme, n, k, jobs)._replace(arrivals=float(k * pieces), pieces=pieces)
        if scheme == "replication":
            return _replicated(n, k, distribution)
        needed = arrivals_needed(n, k, scheme, erasure=erasure, trials=trials, seed=seed)
        return completion_after(needed, n, k, distribution, scheme)


def arrivals_needed(
    n: int, k: int, scheme: str, *, erasure: float | None = None, trials: int = 1000, seed: int = 0
) -> ArrivalsNeeded:
    """The distribution of the number of arrivals a code needs; parameters as for `completion_time`.

    Examples
    --------
    >>> arrivals_needed(8, 6, "rotation").ranks.tolist()
    [6.0]
    """
    _check_scheme(n, k, scheme, trials)
    if scheme in decodability.DECODED and n > k:
        return decodability.simulated(n, k, scheme, erasure, trials, seed)
    if scheme not in CODES:
        raise CodeError(f"{scheme} is no code: which results it awaits is not a matter of their number")
    return ArrivalsNeeded(np.array([float(k)]), np.ones(1), 0)  # any k, and no fewer


def completion_after(
    needed: ArrivalsNeeded, n: int, k: int, runtimes: object, scheme: str = "coded"
) -> Completion:
    """When a job is complete that needs a random number of arrivals: for any code you can simulate.

    Parameters
    ----------
    needed : ArrivalsNeeded
        Weights that sum to less than one leave jobs that not even n arrivals complete.
    n, k, runtimes
        As for `completion_time`.
    scheme : str
        What to call it.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> lossy = ArrivalsNeeded(np.array([3.0]), np.array([0.9]), 1000)
    >>> completion_after(lossy, 4, 3, ShiftedExponential(1.0, 1.0)).failure_probability
    0.1
    """
    distribution = as_runtimes(runtimes)
    if distribution.failure_probability == 1:
        return _hopeless(scheme, n, k)
    at = rank_means(distribution, n, needed.ranks)
    # Jobs that complete are fewer at the ranks that seldom do.
    weights = needed.weights * (1 - at.failure_probability)
    completes = weights.sum()
    if completes < 1e-300:
        return _hopeless(scheme, n, k)
    mean = float(weights @ at.time / completes)
    spread = needed.weights @ (at.time - mean) ** 2 if np.isfinite(mean) and needed.trials else 0.0
    p50, p95, p99 = quantiles(distribution, n, needed.decodes(n), QUANTILES).tolist()
    undecodable = 1 - float(needed.weights.sum())
    return Completion(
        scheme=scheme,
        n=n,
        k=k,
        mean=mean,
        error=sqrt(spread / needed.trials) if needed.trials else 0.0,
        p50=p50,
        p95=p95,
        p99=p99,
        paid=float(weights @ at.paid / completes),
        arrivals=float(weights @ needed.ranks / completes),
        started=float(n),
        failure_probability=float(needed.weights @ at.failure_probability)
        + (round(undecodable, 12) if undecodable > 1e-12 else 0.0),
    )


def completion_cdf(
    n: int, k: int, scheme: str, runtimes: object, times: npt.ArrayLike, *, trials: int = 1000, seed: int = 0
) -> Floats:
    """P(the job is complete by t), in the shape of `times`; for the codes among the schemes.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> completion_cdf(2, 1, "mds", ShiftedExponential(0.0, 1.0), [1.0]).round(4).tolist()  # a minimum
    [0.8647]
    """
    decodes = arrivals_needed(n, k, scheme, trials=trials, seed=seed).decodes(n)
    return decoded_by(n, decodes, np.asarray(as_runtimes(runtimes).cdf(times)))


def lower_bound(n: int, k: int, runtimes: object) -> float:
    """The expected T_(k:n): no code of n workers that each return all or nothing is faster.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> round(lower_bound(4, 2, ShiftedExponential(0.0, 1.0)), 6)  # 1/4 + 1/3
    0.583333
    """
    return completion_time(n, k, "mds", runtimes).mean


def _backed_up(
    k: int, runtimes: Distribution, scheme: str, trials: int, rng: np.random.Generator
) -> backups.SimulatedJobs:
    """Jobs of k tasks, all started at once, whose late tasks are started again."""
    first = np.sort(runtimes.sample(rng, (trials, k)), axis=1)

    def again(late: npt.NDArray[np.bool_]) -> Floats:
        return runtimes.sample(rng, int(late.sum()))

    if scheme in RIVALS:
        return backups.simulate_backups(first, again, RIVALS[scheme])
    return backups.simulate_backups(first, again, backup_lateness(k), BACKUPS)


def _replicated(n: int, k: int, distribution: Distribution) -> Completion:
    job, one = (backups.Replicated(tasks, n // k, distribution) for tasks in (k, 1))
    p50, p95, p99 = job.quantile(QUANTILES).tolist()
    paid, fails = n * one.mean(), job.failure_probability
    return Completion("replication", n, k, job.mean(), 0.0, p50, p95, p99, paid, float(k), float(n), fails)


def completion_of_jobs(
    scheme: str, n: int, k: int, jobs: backups.SimulatedJobs, arrivals: Floats | None = None
) -> Completion:
    """What simulated jobs give; `arrivals`: results that each has awaited, k by default."""
    ended = np.isfinite(jobs.time)
    if not ended.any():
        return _hopeless(scheme, n, k)
    time, count = jobs.time[ended], int(ended.sum())
    p50, p95, p99 = np.quantile(jobs.time, QUANTILES, method="higher").tolist()
    return Completion(
        scheme=scheme,
        n=n,
        k=k,
        mean=float(time.mean()),
        error=float(time.std() / sqrt(count)),
        p50=p50,
        p95=p95,
        p99=p99,
        paid=float(jobs.paid[ended].mean()),
        arrivals=float(k) if arrivals is None else float(arrivals[ended].mean()),
        started=float(jobs.started[ended].mean()),
        failure_probability=1 - count / len(jobs.time),
    )


def _hopeless(scheme: str, n: int, k: int) -> Completion:
    inf = np.inf
    return Completion(scheme, n, k, inf, 0.0, inf, inf, inf, inf, float(k), float(n), 1.0)


def _check_one_each(n: int, workers: unequal.UnequalWorkers) -> None:
    count = len(workers.runtimes)
    if count != n:
        raise CodeError(
            f"runtimes has {count} distributions, and there are n = {n} workers: give one for each"
        )


def _check_options(seed: Any, upfront: Any, pieces: Any, task_price: Any, erasure: Any) -> None:
    if not is_count(seed):
        raise CodeError(f"seed must be an integer of at least 0, not {seed!r}")
    for name, value, least in (("upfront", upfront, 0), ("pieces", pieces, 1)):
        if not is_count(value) or not least <= value <= MOST_TRIED:
            raise CodeError(f"{name} must be an integer from {least} to {MOST_TRIED:,}, not {value!r}")
    check_task_price(task_price)
    if erasure is not None and not (is_number(erasure) and 0 < erasure < 1):
        raise CodeError(f"erasure must lie strictly between 0 and 1, not {erasure!r}")


def _check_scheme(n: int, k: int, scheme: str, trials: int) -> None:
    if not is_one_of(scheme, SCHEMES):
        raise CodeError(f"scheme must be one of {', '.join(SCHEMES)}, not {scheme!r}")
    for name, value in (("n", n), ("k", k), ("trials", trials)):
        if not is_integer(value):
            raise CodeError(f"{name} must be an integer, not {value!r}")
    if not n <= MOST_TRIED >= trials:
        raise CodeError(f"n and trials go up to {MOST_TRIED:,}, not to n = {n} and trials = {trials}")
    if not 1 <= k <= n:
        raise CodeError(f"the results of k = {k} blocks need at least k workers, not n = {n}")
    if n != k and (scheme == "uncoded" or scheme in RULES):
        raise CodeError(f"{scheme!r} starts as many workers as there are blocks: n = k = {k}, not n = {n}")
    if n % k and scheme == "replication":
        raise CodeError(f"replication starts a multiple of k = {k} workers, not {n}")
    if trials < 1:
        raise CodeError(f"trials must be at least 1, not {trials}")
