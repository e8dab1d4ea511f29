"""Forecast how long a job on n workers takes, and how many worker-seconds it costs.

The input is the probability distribution of the run time of one task. A scheme (a way to run the job, such as
a code or replication) is described by how many results it has to wait for. If that number is fixed, as
without a code or with an MDS code, the forecast is exact and follows from order statistics. If the number
depends on which results arrive first, its distribution is simulated once per code, and the forecast has a
standard error.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.polar import choose_n_groups
from polarmap.codes.uncoded import DEFAULT_BACKUPS
from polarmap.driver.lateness import make_backup_lateness_rule
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError, trimmed_tracebacks
from polarmap.planning.decodability import ARIKAN_SCHEMES, ArrivalsNeeded, simulate_arrivals_needed
from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.empirical import as_distribution
from polarmap.planning.group_arrivals import compute_group_arrivals_needed
from polarmap.planning.heterogeneous import (
    CODE_SCHEMES,
    HeterogeneousWorkers,
    is_sequence_of_distributions,
    simulate_heterogeneous_workers,
)
from polarmap.planning.order_statistics import (
    compute_completion_quantiles,
    compute_decoding_probability,
    compute_order_statistic_means,
)
from polarmap.planning.replication import ReplicatedJob
from polarmap.planning.simulation.backups import CUBED_RULE, SPARK_RULE, simulate_backups
from polarmap.planning.simulation.jobs import SimulatedJobs
from polarmap.planning.simulation.on_demand import simulate_on_demand
from polarmap.planning.simulation.overdecomposition import check_task_overhead, simulate_overdecomposition
from polarmap.validation import is_choice, is_nonnegative_int, is_real_number

# The maximum number of workers (n) and of simulated jobs (n_trials), so that computing a completion time does
# not take too long.
MAX_WORKERS_OR_TRIALS = 1 << 20
QUANTILES = np.array([0.5, 0.95, 0.99])
FRAMEWORK_RULES = {"backup-cubed": CUBED_RULE, "backup-spark": SPARK_RULE}
BACKUP_SCHEMES = ("backup", *FRAMEWORK_RULES)
SCHEMES = (*CODE_SCHEMES, "on_demand", "small_blocks", "replication", *BACKUP_SCHEMES)


class Completion(NamedTuple):
    """The expected completion time and cost of a job under a given scheme, as returned by `completion_time`.

    All times are in seconds. Means are conditional on the job completing.

    Attributes
    ----------
    scheme : str
        The scheme, such as "rotation" or "replication" (see `completion_time`).
    n : int
        The number of workers that start at time 0.
    k : int
        The number of data blocks.
    mean : float
        Expected completion time.
    std_error : float
        Standard error of the mean; 0 if the mean is exact.
    p50, p95, p99 : float
        Quantiles of the completion time over all jobs; inf if too few jobs complete.
    worker_seconds : float
        Expected cost: the sum of the run times of all workers. Tasks still running when the job completes are
        stopped.
    n_results_awaited : float
        Expected number of results that the job waits for, counting one result per replicated task.
    n_tasks_started : float
        Expected number of tasks started.
    failure_probability : float
        Probability that the job never completes, because too many tasks never complete.
    n_upfront_parity : int
        For "on_demand": the number of parity tasks that start with the data tasks.
    tasks_per_worker : int
        For "small_blocks": the number of tasks per worker, and of small blocks per data block.
    """

    scheme: str
    n: int
    k: int
    mean: float
    std_error: float
    p50: float
    p95: float
    p99: float
    worker_seconds: float
    n_results_awaited: float
    n_tasks_started: float
    failure_probability: float
    n_upfront_parity: int = 0
    tasks_per_worker: int = 1

    def __str__(self) -> str:
        error_text = f" +- {self.std_error:.2g}" if self.std_error else ""
        failure_probability = self.failure_probability
        failure_text = f", fails with probability {failure_probability:.2g}" if failure_probability else ""
        return (
            f"{self.scheme} ({self.n}, {self.k}): mean {self.mean:.4g}{error_text} s, p50 {self.p50:.4g} s, "
            f"p99 {self.p99:.4g} s, {self.worker_seconds:.4g} worker-seconds{failure_text}"
        )


def completion_time(
    n: int,
    k: int,
    scheme: str,
    run_times: object,
    *,
    erasure: float | None = None,
    n_upfront_parity: int = 0,
    tasks_per_worker: int = 8,
    task_overhead: float = 0.0,
    n_trials: int = 1000,
    seed: int = 0,
) -> Completion:
    """Compute the expected completion time and cost of a job with k data blocks on n workers.

    The job is complete as soon as the results that have arrived determine the results of all k data blocks.

    Parameters
    ----------
    n : int
        The number of workers, which all start at time 0.
    k : int
        The number of data blocks.
    scheme : str
        How the job is run:

        - "uncoded" (n = k): wait for all tasks.
        - "mds": wait for any k of the n results. No code is faster if each worker returns either its whole
          result or nothing.
        - "rotation": the default code for floats. It is computed like "mds", because almost any k results
          can be decoded. For more than 4,096 workers, the tasks are divided into groups, and each group needs
          enough results.
        - "sequential", "optimal", "integers": the polar code with Arikan's kernel, for which more than k
          results may be needed. They are decoded by successive cancellation, by the optimal decoder, or by
          the optimal decoder for integers modulo 2^64.
        - "on_demand": as "rotation", but parity tasks start only when data tasks are late (`ParityRule`).
        - "small_blocks": as "rotation", but the data is cut into `tasks_per_worker` times as many blocks. The
          n persistent workers take one small task after another.
        - "replication": run n / k copies of each task, and use the first result of each.
        - "backup" (n = k): start backups of late tasks, by the rule of `hedged_map`.
        - "backup-cubed", "backup-spark": start backups of late tasks, by the rule of cubed or Spark 4.
    run_times : Distribution, run times in seconds, or reports of coded maps
        The run time of one task. If the workers differ in speed, pass a sequence of n Distributions, one per
        worker. Then jobs are simulated, and `scheme` must be a code or "uncoded".
    erasure : float, optional
        The probability that a result is missing, for which a polar code with Arikan's kernel is designed. By
        default (n - k) / n. For workers that differ in speed, each worker has its own probability by default.
    n_upfront_parity : int
        For "on_demand": the number of parity tasks that start with the data tasks.
    tasks_per_worker, task_overhead
        Only for "small_blocks": the number of small tasks per worker, and the seconds that each of them takes
        in addition to its computation.
    n_trials, seed : int
        The number of jobs (or arrival orders) to simulate for schemes without a formula, and the random seed.

    Returns
    -------
    Completion

    Raises
    ------
    CodeError
        If an argument is invalid.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> print(completion_time(512, 256, "rotation", ShiftedExponential(1.0, 1.0)))
    rotation (512, 256): mean 1.692 s, p50 1.691 s, p99 1.799 s, 768 worker-seconds
    """
    with trimmed_tracebacks:
        _check_scheme(n, k, scheme, n_trials)
        _check_options(seed, n_upfront_parity, tasks_per_worker, task_overhead, erasure)
        if is_sequence_of_distributions(run_times):
            workers = HeterogeneousWorkers(run_times)
            _check_one_distribution_per_worker(n, workers)
            if not workers.is_homogeneous:
                jobs, n_arrivals = simulate_heterogeneous_workers(workers, k, scheme, erasure, n_trials, seed)
                return summarize_simulated_jobs(scheme, n, k, jobs, n_arrivals)
            run_times = workers.mixture_distribution
        distribution = as_distribution(run_times)
        if distribution.failure_probability == 1:
            return _make_impossible_completion(scheme, n, k)
        rng = np.random.default_rng(seed)
        if scheme in BACKUP_SCHEMES:
            jobs = _simulate_backup_jobs(k, distribution, scheme, n_trials, rng)
            return summarize_simulated_jobs(scheme, k, k, jobs)
        if scheme == "on_demand":
            data_times = distribution.sample(rng, (n_trials, k))
            parity_times = distribution.sample(rng, (n_trials, n - k))
            jobs = simulate_on_demand(data_times, parity_times, n_upfront_parity, distribution)
            return summarize_simulated_jobs(scheme, n, k, jobs)._replace(n_upfront_parity=n_upfront_parity)
        if scheme == "small_blocks":
            worker_times = distribution.sample(rng, (n_trials, n))
            jobs = simulate_overdecomposition(worker_times, k, tasks_per_worker, task_overhead)
            return summarize_simulated_jobs(scheme, n, k, jobs)._replace(
                n_results_awaited=float(k * tasks_per_worker), tasks_per_worker=tasks_per_worker
            )
        if scheme == "replication":
            return _compute_replication_completion(n, k, distribution)
        arrival_counts = arrivals_needed(n, k, scheme, erasure=erasure, n_trials=n_trials, seed=seed)
        return completion_from_arrivals(arrival_counts, n, k, distribution, scheme)


def arrivals_needed(
    n: int, k: int, scheme: str, *, erasure: float | None = None, n_trials: int = 1000, seed: int = 0
) -> ArrivalsNeeded:
    """Return the probability distribution of the number of results that are needed to decode.

    The results of the n workers are assumed to arrive in random order. The parameters are as for
    `completion_time`.

    Examples
    --------
    >>> arrivals_needed(8, 6, "rotation").counts.tolist()
    [6.0]
    """
    _check_scheme(n, k, scheme, n_trials)
    if scheme in ARIKAN_SCHEMES and n > k:
        return simulate_arrivals_needed(n, k, scheme, erasure, n_trials, seed)
    if scheme not in CODE_SCHEMES:
        raise CodeError(
            f"scheme must be a code, one of {', '.join(CODE_SCHEMES)}, not {scheme!r}: the completion of a "
            "job by this scheme does not depend on the number of arrivals alone"
        )
    if scheme == "rotation" and (n_groups := choose_n_groups(n, k)) > 1:
        return compute_group_arrivals_needed(n, k, n_groups)
    # With all other codes, any k results suffice to decode.
    return ArrivalsNeeded(np.array([float(k)]), np.ones(1), 0)


def completion_from_arrivals(
    arrival_counts: ArrivalsNeeded, n: int, k: int, run_times: object, scheme: str = "coded"
) -> Completion:
    """Compute the completion time of a job that waits for a random number of results.

    Use this for your own code, after simulating how many results it needs.

    Parameters
    ----------
    arrival_counts : ArrivalsNeeded
        The distribution of the number of results needed. If its probabilities sum to less than 1, the
        remainder is the probability that not even all n results complete the job.
    n, k, run_times
        As for `completion_time`.
    scheme : str
        A name for the returned `Completion`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> lossy = ArrivalsNeeded(np.array([3.0]), np.array([0.9]), 1000)
    >>> completion_from_arrivals(lossy, 4, 3, ShiftedExponential(1.0, 1.0)).failure_probability
    0.1
    """
    distribution = as_distribution(run_times)
    if distribution.failure_probability == 1:
        return _make_impossible_completion(scheme, n, k)
    order_statistics = compute_order_statistic_means(distribution, n, arrival_counts.counts)
    # The means are taken over all jobs that complete. A job that needs m results completes only if at least m
    # tasks complete, so the weight of m is multiplied by the probability of this event.
    probabilities = arrival_counts.probabilities * (1 - order_statistics.failure_probability)
    completion_probability = probabilities.sum()
    if completion_probability < 1e-300:
        return _make_impossible_completion(scheme, n, k)
    mean = float(probabilities @ order_statistics.times / completion_probability)
    variance = 0.0
    if np.isfinite(mean) and arrival_counts.n_trials:
        variance = float(arrival_counts.probabilities @ (order_statistics.times - mean) ** 2)
    decodable_probabilities = arrival_counts.decodable_probabilities(n)
    quantiles = compute_completion_quantiles(distribution, n, decodable_probabilities, QUANTILES)
    p50, p95, p99 = quantiles.tolist()
    undecodable = 1 - float(arrival_counts.probabilities.sum())
    return Completion(
        scheme=scheme,
        n=n,
        k=k,
        mean=mean,
        std_error=sqrt(variance / arrival_counts.n_trials) if arrival_counts.n_trials else 0.0,
        p50=p50,
        p95=p95,
        p99=p99,
        worker_seconds=float(probabilities @ order_statistics.worker_seconds / completion_probability),
        n_results_awaited=float(probabilities @ arrival_counts.counts / completion_probability),
        n_tasks_started=float(n),
        failure_probability=float(arrival_counts.probabilities @ order_statistics.failure_probability)
        + (round(undecodable, 12) if undecodable > 1e-12 else 0.0),
    )


def completion_cdf(
    n: int,
    k: int,
    scheme: str,
    run_times: object,
    times: npt.ArrayLike,
    *,
    n_trials: int = 1000,
    seed: int = 0,
) -> Floats:
    """Return the probability that a coded job has completed by each of `times` (its cdf).

    `times` is an array of seconds, and the result has the same shape. The other parameters are as for
    `completion_time`, but `scheme` must be a code or "uncoded".

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> completion_cdf(2, 1, "mds", ShiftedExponential(0.0, 1.0), [1.0]).round(4).tolist()  # a minimum
    [0.8647]
    """
    arrival_counts = arrivals_needed(n, k, scheme, n_trials=n_trials, seed=seed)
    arrival_probabilities = np.asarray(as_distribution(run_times).cdf(times))
    return compute_decoding_probability(n, arrival_counts.decodable_probabilities(n), arrival_probabilities)


def lower_bound(n: int, k: int, run_times: object) -> float:
    """Return a lower bound, in seconds, on the mean completion time with any code.

    It is the expected arrival time of the k-th of n results, because no code can decode k data blocks from
    fewer results. Each worker is assumed to return either its whole result or nothing.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> round(lower_bound(4, 2, ShiftedExponential(0.0, 1.0)), 6)  # 1/4 + 1/3
    0.583333
    """
    return completion_time(n, k, "mds", run_times).mean


def _simulate_backup_jobs(
    k: int, run_times: Distribution, scheme: str, n_trials: int, rng: np.random.Generator
) -> SimulatedJobs:
    """Simulate jobs of k tasks with backup tasks, i.e. copies of tasks that are late.

    `scheme` determines when a task counts as late.
    """
    first_run_times = np.sort(run_times.sample(rng, (n_trials, k)), axis=1)

    def sample_backups(late_mask: npt.NDArray[np.bool_]) -> Floats:
        return run_times.sample(rng, int(late_mask.sum()))

    if scheme in FRAMEWORK_RULES:
        return simulate_backups(first_run_times, sample_backups, FRAMEWORK_RULES[scheme])
    rule = make_backup_lateness_rule(k)
    return simulate_backups(first_run_times, sample_backups, rule, DEFAULT_BACKUPS)


def _compute_replication_completion(n: int, k: int, run_times: Distribution) -> Completion:
    job, single_task_job = (ReplicatedJob(n_tasks, n // k, run_times) for n_tasks in (k, 1))
    p50, p95, p99 = job.quantile(QUANTILES).tolist()
    times = job.mean(), 0.0, p50, p95, p99
    worker_seconds = n * single_task_job.mean()
    return Completion(
        "replication", n, k, *times, worker_seconds, float(k), float(n), job.failure_probability
    )


def summarize_simulated_jobs(
    scheme: str, n: int, k: int, simulated_jobs: SimulatedJobs, n_arrivals: Floats | None = None
) -> Completion:
    """Summarize simulated jobs by means, quantiles and failure probability.

    Parameters
    ----------
    scheme, n, k
        The scheme, and the numbers of workers and of data blocks, to store in the returned `Completion`.
    simulated_jobs : SimulatedJobs
        The time and cost of each job.
    n_arrivals : array (trials,), optional
        The number of results that each job waited for; k by default.
    """
    completed_mask = np.isfinite(simulated_jobs.completion_times)
    n_completed = int(completed_mask.sum())
    if not n_completed:
        return _make_impossible_completion(scheme, n, k)
    completion_times = simulated_jobs.completion_times[completed_mask]
    p50, p95, p99 = np.quantile(simulated_jobs.completion_times, QUANTILES, method="higher").tolist()
    return Completion(
        scheme=scheme,
        n=n,
        k=k,
        mean=float(completion_times.mean()),
        std_error=float(completion_times.std() / sqrt(n_completed)),
        p50=p50,
        p95=p95,
        p99=p99,
        worker_seconds=float(simulated_jobs.worker_seconds[completed_mask].mean()),
        n_results_awaited=float(k) if n_arrivals is None else float(n_arrivals[completed_mask].mean()),
        n_tasks_started=float(simulated_jobs.n_tasks_started[completed_mask].mean()),
        failure_probability=1 - n_completed / len(simulated_jobs.completion_times),
    )


def _make_impossible_completion(scheme: str, n: int, k: int) -> Completion:
    inf = np.inf
    return Completion(scheme, n, k, inf, 0.0, inf, inf, inf, inf, float(k), float(n), 1.0)


def _check_one_distribution_per_worker(n: int, workers: HeterogeneousWorkers) -> None:
    n_distributions = len(workers.distributions)
    if n_distributions != n:
        raise CodeError(
            f"run_times must have one distribution for each of the n = {n} workers, got {n_distributions}"
        )


def _check_options(
    seed: Any, n_upfront_parity: Any, tasks_per_worker: Any, task_overhead: Any, erasure: Any
) -> None:
    if not is_nonnegative_int(seed):
        raise CodeError(f"seed must be an integer >= 0, not {seed!r}")
    limits = ("n_upfront_parity", n_upfront_parity, 0), ("tasks_per_worker", tasks_per_worker, 1)
    for name, value, min_value in limits:
        if not is_nonnegative_int(value) or not min_value <= value <= MAX_WORKERS_OR_TRIALS:
            raise CodeError(
                f"{name} must be an integer from {min_value} to {MAX_WORKERS_OR_TRIALS:,}, not {value!r}"
            )
    check_task_overhead(task_overhead)
    if erasure is not None and not (is_real_number(erasure) and 0 < erasure < 1):
        raise CodeError(f"erasure must be a number strictly between 0 and 1, not {erasure!r}")


def _check_scheme(n: int, k: int, scheme: str, n_trials: int) -> None:
    if not is_choice(scheme, SCHEMES):
        raise CodeError(f"scheme must be one of {', '.join(SCHEMES)}, not {scheme!r}")
    for name, value in (("n", n), ("k", k), ("n_trials", n_trials)):
        if not is_integer(value):
            raise CodeError(f"{name} must be an integer, not {value!r}")
    if not n <= MAX_WORKERS_OR_TRIALS >= n_trials:
        raise CodeError(
            f"n and n_trials must be at most {MAX_WORKERS_OR_TRIALS:,}, not n = {n} and n_trials = {n_trials}"
        )
    if not 1 <= k <= n:
        raise CodeError(f"n must be at least k, and k at least 1, not n = {n} and k = {k}")
    if n != k and (scheme == "uncoded" or scheme in BACKUP_SCHEMES):
        raise CodeError(
            f"n must equal k = {k} with scheme={scheme!r}, which starts one task per block, not n = {n}"
        )
    if n % k and scheme == "replication":
        raise CodeError(f"n must be a multiple of k = {k} with scheme='replication', not {n}")
    if n_trials < 1:
        raise CodeError(f"n_trials must be at least 1, not {n_trials}")
