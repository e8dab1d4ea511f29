"""The m-th of n independent run times: its mean, what has been paid by then, its distribution.

T_(m:n) is the quantile function at a Beta(m, n - m + 1) variable (David and Nagaraja, Order
Statistics, 2.1). Means integrate that density against the closed-form area under the quantile
function, on a grid that is dense where the density is, so the steps of an empirical distribution do no harm.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

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

N_BULK_NODES = 4001  # nodes where the density is
# Logits among which the bulk is looked for. The density of any rank of n has its peak within log(n) of 0 and
# falls by a power of e or more for each beyond it: of a million tasks, it is negligible before these.
COARSE_LOGITS = np.arange(-70.0, 70.0, 0.005)
# A density smaller than its peak by this power of e does not count: below the peak, where run times are
# bounded, and above it, where a heavy tail may make up for some of it.
LOG_NEGLIGIBLE = (34.0, 45.0)
MAX_TABLE_SIZE = 1 << 23  # numbers of a table at a time


class OrderStatisticMeans(NamedTuple):
    """Means over the jobs that complete, for some ranks m among n tasks; arrays (ranks,).

    times : seconds of T_(m:n).
    worker_seconds : worker-seconds when the n - m others are stopped at T_(m:n).
    failure_probability : probability that fewer than m tasks end.
    """

    times: Floats
    worker_seconds: Floats
    failure_probability: Floats


def compute_order_statistic_means(run_times: Distribution, n: int, ranks: Floats) -> OrderStatisticMeans:
    """Time, cost and failure of waiting for the m-th of n tasks, for each m of `ranks`.

    Given the m-th at quantile p, the m - 1 before it are independent below p, so

        E paid = E[(m - 1) (mean quantile below p) + (n - m + 1) quantile at p].

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
        # However unlikely it is that so many end: if they do, then with this density.
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
        _compute_job_failure_probability(n, int(m), run_times.failure_probability) for m in ranks
    ]
    return OrderStatisticMeans(times, worker_seconds, np.array(failure_probabilities))


def compute_completion_quantiles(
    run_times: Distribution, n: int, decodable_probabilities: Floats, p: Floats
) -> Floats:
    """Times by which a job is decodable with probabilities `p`, inf where it never is; see
    `compute_decoding_probability`.

    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> first = np.array([0.0, 1.0, 1.0, 1.0, 1.0])  # the earliest of four
    >>> distribution = ShiftedExponential(0.0, 1.0)
    >>> compute_completion_quantiles(distribution, 4, first, np.array([0.5])).round(6).tolist()
    [0.173287]
    """
    max_arrival_probability = np.full(p.shape, 1 - run_times.failure_probability)  # shares of tasks back
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
    """P(decodable) when each of n tasks has arrived with probability `arrival_probability`, in its shape.

    decodable_probabilities : probability that j arrivals in random order suffice, j = 0..n.

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
    """Return the log of the density of the m-th of n at each node, (ranks, nodes), per unit of its cdf.

    nodes : probabilities given completion.
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
    """Return nodes given completion, dense wherever one of the ranks may fall, and up to the last tail."""
    coarse_nodes = compute_logistic_and_complement(COARSE_LOGITS)
    log_jacobian = np.log(coarse_nodes.cdf) + np.log(coarse_nodes.survival)  # d cdf / d logit
    extreme_ranks = np.array([ranks.min(), ranks.max()], float)
    log_weights = compute_order_statistic_log_density(n, extreme_ranks, coarse_nodes, failure_probability)
    log_weights += log_jacobian
    low, high = (
        np.flatnonzero(rank_log_weights > rank_log_weights.max() - margin)
        for rank_log_weights, margin in zip(log_weights, LOG_NEGLIGIBLE)
    )
    start, stop = COARSE_LOGITS[max(low[0] - 1, 0)], COARSE_LOGITS[min(high[-1] + 1, len(COARSE_LOGITS) - 1)]
    return make_logit_spaced_nodes(float(start), float(stop), N_BULK_NODES)


@lru_cache(maxsize=64)
def compute_log_binomial_coefficients(n: int) -> Floats:
    """log of n over j, j = 0..n.

    >>> np.exp(compute_log_binomial_coefficients(4)).round(9).tolist()
    [1.0, 4.0, 6.0, 4.0, 1.0]
    """
    log_factorials = np.append(0.0, np.cumsum(np.log(np.arange(1, n + 1))))
    return np.asarray(log_factorials[n] - log_factorials - log_factorials[::-1])


def _compute_job_failure_probability(n: int, min_completed: int, task_failure_probability: float) -> float:
    """P(fewer than `min_completed` of n tasks end)."""
    if not task_failure_probability:
        return 0.0
    failure_indicator = (np.arange(n + 1) < min_completed).astype(float)
    completion_probability = np.array([1 - task_failure_probability])
    return float(compute_decoding_probability(n, failure_indicator, completion_probability)[0])
