"""Quadrature over probabilities with full accuracy near 0 and near 1.

Nodes are placed by their logit, log(p / (1 - p)), and each node is a `ProbabilityPair`. The expected maximum
of 10,000 run times depends on probabilities with 1 - p of about 1e-4, so 1 - p must not lose digits.
"""

from __future__ import annotations

import numpy as np

from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.probability_pair import ProbabilityPair

MAX_LOGIT = 700.0  # exp(-700) is close to the smallest normal float64 number.
TAIL_STEP = 0.25  # The distance of logits in the tail, which matters only for heavy-tailed distributions.
BULK_LOGIT = 40.0  # Probabilities of larger logits differ from 1 by less than the float64 epsilon.
N_NODES = 8001  # The number of nodes of the bulk.
# Larger values are cut off. A heavy tail with a finite mean has no weight there.
OVERFLOW_CAP = 1e300
# An integral is taken as divergent if more than this fraction of it comes from the last cell below
# OVERFLOW_CAP.
DIVERGENCE_TOL = 1e-5


def compute_logistic_and_complement(logits: Floats) -> ProbabilityPair:
    """Return the probabilities whose logits, log(cdf / survival), are `logits`.

    >>> [f"{part:.3g}" for part in compute_logistic_and_complement(np.array(-700.0))]
    ['9.86e-305', '1']
    """
    small = np.exp(-np.abs(logits))
    large, small = 1 / (1 + small), small / (1 + small)
    return ProbabilityPair(np.where(logits < 0, small, large), np.where(logits < 0, large, small))


def make_logit_spaced_nodes(start_logit: float, stop_logit: float, n_nodes: int) -> ProbabilityPair:
    """Return `n_nodes` nodes between two logits, followed by nodes of the upper tail.

    Both pieces are uniform in the logit and have an even number of cells, as Richardson extrapolation needs.
    """
    tail_logits = np.arange(stop_logit + TAIL_STEP, MAX_LOGIT, TAIL_STEP)
    even_tail_logits = tail_logits[: len(tail_logits) // 2 * 2]
    logits = np.concatenate([np.linspace(start_logit, stop_logit, n_nodes), even_tail_logits])
    return compute_logistic_and_complement(logits)


def make_full_logit_grid() -> ProbabilityPair:
    """Return nodes for an integral over all probabilities from 0 to 1."""
    return make_logit_spaced_nodes(-BULK_LOGIT, BULK_LOGIT, N_NODES)


def compute_cell_widths(nodes: ProbabilityPair) -> Floats:
    """Return the lengths of the cells between neighbouring nodes, accurate in both halves."""
    cdf, survival = nodes
    return np.where(cdf[1:] < 0.5, np.diff(cdf), -np.diff(survival))


def compute_cell_integrals(antiderivative_at_nodes: Floats) -> Floats:
    """Return the integrals over the cells from an antiderivative at the nodes, capped at OVERFLOW_CAP."""
    with np.errstate(invalid="ignore"):
        integrals = np.nan_to_num(-np.diff(antiderivative_at_nodes), nan=OVERFLOW_CAP, posinf=OVERFLOW_CAP)
    return np.minimum(integrals, OVERFLOW_CAP)


def integrate_over_cells(density: Floats, cell_measure: Floats) -> Floats:
    """Integrate a density with respect to a measure of the cells.

    Uses the trapezoidal rule with Richardson extrapolation: the error is of fourth order for smooth measures,
    and of second order where the measure has jumps.

    Parameters
    ----------
    density : array (..., nodes)
    cell_measure : array (nodes - 1,)
        The measure of each cell between two nodes.

    Returns
    -------
    array (...)
    """
    fine = (density[..., :-1] + density[..., 1:]) @ cell_measure
    coarse_density = density[..., ::2]
    coarse = (coarse_density[..., :-1] + coarse_density[..., 1:]) @ _sum_adjacent_pairs(cell_measure)
    return np.asarray((4 * fine - coarse) / 6)


def compute_expected_run_time(run_times: Distribution, cell_weights: Floats, nodes: ProbabilityPair) -> float:
    """Return the sum of cell weights times the mean run time of each cell, or inf if it diverges.

    The mean of a cell is computed from the closed-form integral of the quantile function, so its jumps and
    poles cause no error. The sum is extrapolated as in `integrate_over_cells`.

    Parameters
    ----------
    run_times : Distribution
    cell_weights : array (cells,)
        The probability of each cell.
    nodes : ProbabilityPair
        The cdf at the edges of the cells, given completion.
    """
    cdf, survival = nodes
    widths = compute_cell_widths(nodes)
    integrals = compute_cell_integrals(run_times.integrated_quantile(survival))
    narrow_mask = widths <= 1e-12 * np.where(cdf[1:] < 0.5, cdf[1:], survival[:-1])
    # In cells narrower than rounding, the quantile is constant.
    if narrow_mask.any():
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
