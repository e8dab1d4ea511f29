"""Order statistics of run times: when the m-th of n tasks completes, and how many worker-seconds it costs.

The time of the m-th completion, T_(m:n), is distributed as the quantile function of the run times, evaluated
at a random number from the distribution Beta(m, n - m + 1) (David and Nagaraja, Order Statistics, 2.1). Its
mean is integrated numerically, on a grid that is dense where the beta density is large. The integral of the
quantile function between two grid points is known exactly, so the jumps of an empirical distribution cause no
error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polarmap.codes.binomial import compute_binomial_tail, compute_log_binomial_coefficients
from polarmap.planning.distributions import Distribution, Floats, bisect_predicate
from polarmap.planning.probability_pair import ProbabilityPair
from polarmap.planning.quadrature import (
    DIVERGENCE_TOL,
    OVERFLOW_CAP,
    compute_cell_integrals,
    compute_cell_widths,
    compute_logistic_and_complement,
    integrate_over_cells,
    make_logit_spaced_nodes,
)

# The mean time of the m-th of n completions is computed as an integral over the cdf p of the run time,
# weighted by the probability density of the m-th completion. This is the number of nodes (grid points) in the
# range of p where the density is not negligible.
N_BULK_NODES = 4001
# A coarse grid of logits, log(p / (1 - p)), to find this range. For n tasks, the density has its maximum
# between the logits -log(n) and log(n). Away from the maximum, it decreases by a factor of e or more per
# unit. Even for a million tasks, it is therefore negligible at both ends of this grid.
COARSE_LOGITS = np.arange(-70.0, 70.0, 0.005)
# The density is negligible where its logarithm is smaller than its maximum by more than this, to the left and
# to the right of the maximum. On the right are the longest run times. They may be so long that even a very
# small density contributes to the mean.
LOG_NEGLIGIBLE = (34.0, 45.0)
# The maximum number of entries of a temporary array, which limits its size to 64 MB. Larger computations are
# divided into batches.
MAX_TABLE_SIZE = 1 << 23


class OrderStatisticMeans(NamedTuple):
    """The expected time and cost of waiting for the m-th of n completions, for several m.

    Means are conditional on at least m tasks completing.

    Attributes
    ----------
    times : array (ranks,)
        The expected time of the m-th completion, in seconds.
    worker_seconds : array (ranks,)
        The expected sum of all workers' run times, if the other n - m tasks are stopped at that time.
    failure_probability : array (ranks,)
        The probability that fewer than m tasks complete.
    """

    times: Floats
    worker_seconds: Floats
    failure_probability: Floats


def compute_order_statistic_means(run_times: Distribution, n: int, ranks: Floats) -> OrderStatisticMeans:
    """Compute the expected time and cost of waiting until m of n tasks have completed.

    The time is the m-th shortest of n run times T. If its value is the quantile Q(p), the m - 1 shorter run
    times are independent samples below Q(p), and all other tasks are stopped at Q(p). The cost, i.e. the
    total time for which workers are busy, is therefore

        E[worker-seconds] = E[(m - 1) E[T | T <= Q(p)] + (n - m + 1) Q(p)].

    Parameters
    ----------
    run_times : Distribution
        The run time of one task.
    n : int
        The number of tasks, which all start at time 0.
    ranks : array (j,)
        The numbers m of completions to wait for, from 1 to n.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> distribution = ShiftedExponential(0.0, 1.0)
    >>> compute_order_statistic_means(distribution, 3, np.array([1, 3])).times.round(6).tolist()
    [0.333333, 1.833333]
    """
    nodes = make_order_statistic_quadrature_nodes(n, ranks, run_times.failure_probability)
    widths, cdf = compute_cell_widths(nodes), nodes.cdf
    integrated_quantiles = run_times.integrated_quantile(nodes.survival)
    cell_integrals = compute_cell_integrals(integrated_quantiles)
    last_finite_cell = np.flatnonzero(cell_integrals < OVERFLOW_CAP)[-1]
    integrals_below = run_times.integrated_quantile(np.ones(1))
    with np.errstate(invalid="ignore"):
        mean_below = np.minimum((integrals_below - integrated_quantiles) / cdf, OVERFLOW_CAP)
    times, worker_seconds = np.empty(len(ranks)), np.empty(len(ranks))
    batch_size = max(1, MAX_TABLE_SIZE // len(cdf))
    for start in range(0, len(ranks), batch_size):
        batch = slice(start, start + batch_size)
        m = ranks[batch]
        log_densities = compute_order_statistic_log_density(n, m, nodes, run_times.failure_probability)
        # Divide the density by its maximum to avoid underflow. A constant factor does not matter, because the
        # means below are divided by the total density.
        density = np.exp(log_densities - log_densities.max(axis=1, keepdims=True))
        total_density = integrate_over_cells(density, widths)
        mean_times = integrate_over_cells(density, cell_integrals) / total_density
        last_integrals = density[:, last_finite_cell] * cell_integrals[last_finite_cell]
        mean_times[last_integrals > DIVERGENCE_TOL * mean_times * total_density] = np.inf
        times[batch] = mean_times
        mean_earlier = integrate_over_cells(density * mean_below, widths) / total_density
        worker_seconds[batch] = (m - 1) * mean_earlier + (n - m + 1) * mean_times
    if not np.isfinite(run_times.conditional_mean()):
        times[ranks == n] = worker_seconds[ranks == n] = np.inf
    failure_probabilities = [
        compute_binomial_tail(n, n - int(m), run_times.failure_probability) for m in ranks
    ]
    return OrderStatisticMeans(times, worker_seconds, np.array(failure_probabilities))


def compute_completion_quantiles(
    run_times: Distribution, n: int, decodable_probabilities: Floats, p: Floats
) -> Floats:
    """Return the quantiles of the completion time of a coded job, for probabilities `p`.

    A quantile is inf if the job completes with a probability below p.

    Parameters
    ----------
    run_times : Distribution
        The run time of one task.
    n : int
        The number of tasks.
    decodable_probabilities : array (n + 1,)
        The probability that the job can be decoded from the first j results, for j = 0..n.
    p : array
        Probabilities between 0 and 1.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> first = np.array([0.0, 1.0, 1.0, 1.0, 1.0])  # any result suffices
    >>> distribution = ShiftedExponential(0.0, 1.0)
    >>> compute_completion_quantiles(distribution, 4, first, np.array([0.5])).round(6).tolist()
    [0.173287]
    """
    max_arrival_probability = np.full(p.shape, 1 - run_times.failure_probability)
    arrival_probabilities = bisect_predicate(
        lambda probabilities: compute_decoding_probability(n, decodable_probabilities, probabilities) >= p,
        np.zeros(p.shape),
        max_arrival_probability,
    )
    max_probability = compute_decoding_probability(n, decodable_probabilities, max_arrival_probability)
    return np.where(p > max_probability, np.inf, run_times.quantile(arrival_probabilities))


def compute_decoding_probability(
    n: int, decodable_probabilities: Floats, arrival_probability: Floats
) -> Floats:
    """Return the probability that a job can be decoded if each result has arrived with probability a.

    Results arrive independently, and any j of them are decodable with probability decodable_probabilities[j]:

        P = sum over j of C(n, j) a^j (1 - a)^(n - j) decodable_probabilities[j]

    Parameters
    ----------
    n : int
        The number of tasks.
    decodable_probabilities : array (n + 1,)
        The probability that the job can be decoded from j results, for j = 0..n.
    arrival_probability : array
        The probability a that the result of one task has arrived. The returned array has the same shape.

    Examples
    --------
    >>> compute_decoding_probability(2, np.array([0.0, 0.0, 1.0]), np.array([0.5])).tolist()  # both
    [0.25]
    """
    flat_probabilities = arrival_probability.reshape(-1, 1)
    counts = np.arange(n + 1)
    result = np.empty(flat_probabilities.size)
    batch_size = max(1, MAX_TABLE_SIZE // (n + 1))
    for start in range(0, flat_probabilities.size, batch_size):
        batch = flat_probabilities[start : start + batch_size]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_successes = np.where(counts > 0, counts * np.log(batch), 0.0)
            log_failures = np.where(counts < n, (n - counts) * np.log1p(-batch), 0.0)
        log_probabilities = compute_log_binomial_coefficients(n) + log_successes + log_failures
        result[start : start + batch_size] = np.exp(log_probabilities) @ decodable_probabilities
    return np.clip(result, 0.0, 1.0).reshape(arrival_probability.shape)


def compute_order_statistic_log_density(
    n: int, ranks: Floats, nodes: ProbabilityPair, failure_probability: float
) -> Floats:
    """Return the log density of the m-th order statistic, i.e. of the m-th shortest of n run times.

    It is the density with respect to the cdf p of the run time, instead of the run time itself.

    Parameters
    ----------
    n : int
        The number of tasks.
    ranks : array (ranks,)
        The numbers m of completions.
    nodes : ProbabilityPair
        The cdf values of tasks that complete, at which to evaluate the density.
    failure_probability : float
        The probability that a task never completes.

    Returns
    -------
    array (ranks, nodes)
    """
    m = ranks[:, None]
    log_arrived = np.log(nodes.cdf) + np.log1p(-failure_probability)
    log_missing = np.log(nodes.of_all_tasks(failure_probability).survival)
    log_binomials = compute_log_binomial_coefficients(n)[ranks.astype(int)][:, None]
    constant = np.log(m) + log_binomials + np.log1p(-failure_probability)
    return np.asarray(constant + (m - 1) * log_arrived + (n - m) * log_missing)


def make_order_statistic_quadrature_nodes(
    n: int, ranks: Floats, failure_probability: float
) -> ProbabilityPair:
    """Choose nodes for numerical integrals over the cdf of a run time, between 0 and 1.

    The integrals contain the density of the m-th completion, for each m in `ranks`. The nodes are close to
    each other wherever one of these densities is not negligible.
    """
    coarse_nodes = compute_logistic_and_complement(COARSE_LOGITS)
    # The logarithm of the derivative of the cdf with respect to the logit. It converts the density with
    # respect to the cdf to a density with respect to the logit.
    log_jacobian = np.log(coarse_nodes.cdf) + np.log(coarse_nodes.survival)
    extreme_ranks = np.array([ranks.min(), ranks.max()], float)
    log_weights = compute_order_statistic_log_density(n, extreme_ranks, coarse_nodes, failure_probability)
    log_weights += log_jacobian
    low, high = (
        np.flatnonzero(rank_log_weights > rank_log_weights.max() - margin)
        for rank_log_weights, margin in zip(log_weights, LOG_NEGLIGIBLE)
    )
    start, stop = COARSE_LOGITS[max(low[0] - 1, 0)], COARSE_LOGITS[min(high[-1] + 1, len(COARSE_LOGITS) - 1)]
    return make_logit_spaced_nodes(float(start), float(stop), N_BULK_NODES)
