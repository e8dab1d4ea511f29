"""The m-th of n independent run times: its mean, what has been paid by then, its distribution.

T_(m:n) is the quantile function at a Beta(m, n - m + 1) variable (David and Nagaraja, Order
Statistics, 2.1). Means integrate that density against the closed-form area under the quantile
function, on a grid that is dense where the density is, so the steps of an empirical distribution do no harm.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from polarmap.planning.distributions import Distribution, Floats, first_reached
from polarmap.planning.quadrature import (
    HUGE,
    LEFT,
    areas_between,
    integral,
    lengths,
    logistic,
    nodes,
)

BULK = 4001  # nodes where the density is
# Logits among which the bulk is looked for. The density of any rank of n has its peak within log(n) of 0 and
# falls by a power of e or more for each beyond it: of a million tasks, it is negligible before these.
COARSE = np.arange(-70.0, 70.0, 0.005)
# A density smaller than its peak by this power of e does not count: below the peak, where run times are
# bounded, and above it, where a heavy tail may make up for some of it.
NEGLIGIBLE = (34.0, 45.0)
CHUNK = 1 << 23  # numbers of a table at a time


class Ranks(NamedTuple):
    """Means over the jobs that complete, for some ranks m among n tasks; arrays (ranks,).

    time : seconds of T_(m:n).
    paid : worker-seconds when the n - m others are stopped at T_(m:n).
    failure_probability : probability that fewer than m tasks end.
    """

    time: Floats
    paid: Floats
    failure_probability: Floats


def rank_means(runtimes: Distribution, n: int, ranks: Floats) -> Ranks:
    """Time, cost and failure of waiting for the m-th of n tasks, for each m of `ranks`.

    Given the m-th at quantile p, the m - 1 before it are independent below p, so

        E paid = E[(m - 1) (mean quantile below p) + (n - m + 1) quantile at p].

    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> rank_means(ShiftedExponential(0.0, 1.0), 3, np.array([1, 3])).time.round(6).tolist()
    [0.333333, 1.833333]
    """
    below, above = grid = bulk(n, ranks, runtimes.failure_probability)
    widths = lengths(below, above)
    edges = runtimes.area(above)
    areas = areas_between(edges)
    last = np.flatnonzero(areas < HUGE)[-1]
    with np.errstate(invalid="ignore"):
        earlier = np.minimum((runtimes.area(np.ones(1)) - edges) / below, HUGE)
    time, paid = np.empty(len(ranks)), np.empty(len(ranks))
    size = max(1, CHUNK // len(below))
    for first in range(0, len(ranks), size):
        part = ranks[first : first + size]
        logarithm = log_density(n, part, grid, runtimes.failure_probability)
        # However unlikely it is that so many end: if they do, then with this density.
        density = np.exp(logarithm - logarithm.max(axis=1, keepdims=True))
        completes = integral(density, widths)
        at_rank = integral(density, areas) / completes
        at_rank[density[:, last] * areas[last] > LEFT * at_rank * completes] = np.inf
        time[first : first + size] = at_rank
        before = integral(density * earlier, widths) / completes
        paid[first : first + size] = (part - 1) * before + (n - part + 1) * at_rank
    if not np.isfinite(runtimes.mean_if_ended()):
        time[ranks == n] = paid[ranks == n] = np.inf
    return Ranks(time, paid, np.array([_too_few_end(n, int(m), runtimes.failure_probability) for m in ranks]))


def quantiles(runtimes: Distribution, n: int, decodes: Floats, p: Floats) -> Floats:
    """Times by which a job is decodable with probabilities `p`, inf where it never is; see `decoded_by`.

    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> first = np.array([0.0, 1.0, 1.0, 1.0, 1.0])  # the earliest of four
    >>> quantiles(ShiftedExponential(0.0, 1.0), 4, first, np.array([0.5])).round(6).tolist()
    [0.173287]
    """
    most = np.full(p.shape, 1 - runtimes.failure_probability)  # shares of tasks back
    back = first_reached(lambda share: decoded_by(n, decodes, share) >= p, np.zeros(p.shape), most)
    return np.where(p > decoded_by(n, decodes, most), np.inf, runtimes.quantile(back))


def decoded_by(n: int, decodes: Floats, arrived: Floats) -> Floats:
    """P(decodable) when each of n tasks has arrived with probability `arrived`, in its shape.

    decodes : probability that j arrivals in random order suffice, j = 0..n.

    >>> decoded_by(2, np.array([0.0, 0.0, 1.0]), np.array([0.5])).tolist()  # both
    [0.25]
    """
    flat = arrived.reshape(-1, 1)
    counts = np.arange(n + 1)
    out = np.empty(flat.size)
    size = max(1, CHUNK // (n + 1))
    for first in range(0, flat.size, size):
        u = flat[first : first + size]
        with np.errstate(divide="ignore", invalid="ignore"):
            successes = np.where(counts > 0, counts * np.log(u), 0.0)
            misses = np.where(counts < n, (n - counts) * np.log1p(-u), 0.0)
        out[first : first + size] = np.exp(log_binomials(n) + successes + misses) @ decodes
    return np.clip(out, 0.0, 1.0).reshape(arrived.shape)


def log_density(n: int, ranks: Floats, nodes: tuple[Floats, Floats], failing: float) -> Floats:
    """log of the density of the m-th of n at each node, (ranks, nodes), per unit of its cdf.

    nodes : cdf and 1 - cdf among the tasks that end.
    """
    m, (below, above) = ranks[:, None], nodes
    arrived = np.log(below) + np.log1p(-failing)
    missing = np.log(failing + (1 - failing) * above)
    constant = np.log(m) + log_binomials(n)[ranks.astype(int)][:, None] + np.log1p(-failing)
    return np.asarray(constant + (m - 1) * arrived + (n - m) * missing)


def bulk(n: int, ranks: Floats, failing: float) -> tuple[Floats, Floats]:
    """Nodes that are dense wherever one of the ranks may fall, and go on to the last tail.

    As cdf and 1 - cdf among the tasks that end.
    """
    coarse = below, above = logistic(COARSE)
    inner = np.log(below) + np.log(above)  # d below / d logit
    ends = np.array([ranks.min(), ranks.max()], float)
    weight = log_density(n, ends, coarse, failing) + inner
    low, high = (np.flatnonzero(line > line.max() - less) for line, less in zip(weight, NEGLIGIBLE))
    start, stop = COARSE[max(low[0] - 1, 0)], COARSE[min(high[-1] + 1, len(COARSE) - 1)]
    return nodes(float(start), float(stop), BULK)


@lru_cache(maxsize=64)
def log_binomials(n: int) -> Floats:
    """log of n over j, j = 0..n.

    >>> np.exp(log_binomials(4)).round(9).tolist()
    [1.0, 4.0, 6.0, 4.0, 1.0]
    """
    factorials = np.append(0.0, np.cumsum(np.log(np.arange(1, n + 1))))
    return np.asarray(factorials[n] - factorials - factorials[::-1])


def _too_few_end(n: int, rank: int, failing: float) -> float:
    """P(fewer than `rank` of n tasks end)."""
    if not failing:
        return 0.0
    too_few = (np.arange(n + 1) < rank).astype(float)
    return float(decoded_by(n, too_few, np.array([1 - failing]))[0])
