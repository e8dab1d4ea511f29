"""Integrals over probabilities near 0 and near 1, where rare events live.

Nodes are laid out by their logit, log(p / (1 - p)), and each node is a `ProbabilityPair`. The largest of
10,000 tasks sits where 1 - p is 1e-4, and one digit in ten of 1 - p would be a digit of the answer.
"""

from __future__ import annotations

import numpy as np

from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.probability_pair import ProbabilityPair

MAX_LOGIT = 700.0  # exp(-700) is about the smallest normal float
TAIL_STEP = 0.25  # of the logits, where only a heavy tail may still count
BULK_LOGIT = 40.0  # logits beyond which probabilities differ from 0 and 1 by less than eps
N_NODES = 8001
OVERFLOW_CAP = 1e300  # nearly overflows: a heavy tail whose mean exists has no weight where it is so long
DIVERGENCE_TOL = 1e-5  # of an integral in the last cell that is shorter: one that converges has less there


def compute_logistic_and_complement(logits: Floats) -> ProbabilityPair:
    """Return the probabilities whose logits, log(cdf / survival), are `logits`.

    >>> [f"{part:.3g}" for part in compute_logistic_and_complement(np.array(-700.0))]
    ['9.86e-305', '1']
    """
    small = np.exp(-np.abs(logits))
    large, small = 1 / (1 + small), small / (1 + small)
    return ProbabilityPair(np.where(logits < 0, small, large), np.where(logits < 0, large, small))


def make_logit_spaced_nodes(start_logit: float, stop_logit: float, n_nodes: int) -> ProbabilityPair:
    """Return the probabilities of `n_nodes` nodes between two logits, and of further nodes to the last tail.

    Both pieces are uniform in the logit and have an even number of cells, so that the integrals
    below can take every second node for a comparison.
    """
    tail_logits = np.arange(stop_logit + TAIL_STEP, MAX_LOGIT, TAIL_STEP)
    even_tail_logits = tail_logits[: len(tail_logits) // 2 * 2]
    logits = np.concatenate([np.linspace(start_logit, stop_logit, n_nodes), even_tail_logits])
    return compute_logistic_and_complement(logits)


def make_full_logit_grid() -> ProbabilityPair:
    """Return nodes from one end of the probabilities to the other."""
    return make_logit_spaced_nodes(-BULK_LOGIT, BULK_LOGIT, N_NODES)


def compute_cell_widths(nodes: ProbabilityPair) -> Floats:
    """Return the lengths of the cells between neighbouring nodes, accurate in both halves."""
    cdf, survival = nodes
    return np.where(cdf[1:] < 0.5, np.diff(cdf), -np.diff(survival))


def compute_cell_integrals(antiderivative_at_nodes: Floats) -> Floats:
    """Areas of the cells between edges of an area that may overflow at the last of them."""
    with np.errstate(invalid="ignore"):
        integrals = np.nan_to_num(-np.diff(antiderivative_at_nodes), nan=OVERFLOW_CAP, posinf=OVERFLOW_CAP)
    return np.minimum(integrals, OVERFLOW_CAP)


def integrate_over_cells(density: Floats, cell_measure: Floats) -> Floats:
    """The integral of `density` (..., nodes) against a measure given on the cells (nodes - 1,).

    By the trapezoidal rule and once more on every second node, extrapolated (Richardson): of
    fourth order where all is smooth, of second where the measure has steps.
    """
    fine = (density[..., :-1] + density[..., 1:]) @ cell_measure
    coarse_density = density[..., ::2]
    coarse = (coarse_density[..., :-1] + coarse_density[..., 1:]) @ _sum_adjacent_pairs(cell_measure)
    return np.asarray((4 * fine - coarse) / 6)


def compute_expected_run_time(run_times: Distribution, cell_weights: Floats, nodes: ProbabilityPair) -> float:
    """Return the sum of `cell_weights` (cells,) times the mean run time of each cell; inf if it diverges.

    The mean in a cell comes from the closed-form area under the quantile function, so steps and
    poles of it cost no accuracy. It is extrapolated like `integrate_over_cells`.

    nodes : probabilities between which the cells lie, given completion.
    """
    cdf, survival = nodes
    widths = compute_cell_widths(nodes)
    integrals = compute_cell_integrals(run_times.integrated_quantile(survival))
    narrow_mask = widths <= 1e-12 * np.where(cdf[1:] < 0.5, cdf[1:], survival[:-1])
    if narrow_mask.any():  # than eps: the quantile is the same on both sides
        narrow_nodes = ProbabilityPair(cdf[:-1][narrow_mask], survival[:-1][narrow_mask])
        narrow_quantiles = run_times.conditional_quantile(narrow_nodes)
        integrals[narrow_mask] = np.minimum(narrow_quantiles, OVERFLOW_CAP) * widths[narrow_mask]
    cell_means = _divide_capped(integrals, widths)
    fine, last_finite_cell = cell_means @ cell_weights, np.flatnonzero(cell_means < OVERFLOW_CAP)[-1]
    if cell_means[last_finite_cell] * cell_weights[last_finite_cell] > DIVERGENCE_TOL * fine:
        return np.inf
    coarse_means = _divide_capped(_sum_adjacent_pairs(integrals), _sum_adjacent_pairs(widths))
    coarse = coarse_means @ _sum_adjacent_pairs(cell_weights)
    return float((4 * fine - coarse) / 3)


def _divide_capped(integrals: Floats, widths: Floats) -> Floats:
    with np.errstate(over="ignore"):
        quotients = np.divide(integrals, widths, out=np.zeros_like(integrals), where=widths > 0)
    return np.minimum(quotients, OVERFLOW_CAP)


def _sum_adjacent_pairs(cell_values: Floats) -> Floats:
    return cell_values[0::2] + cell_values[1::2]
