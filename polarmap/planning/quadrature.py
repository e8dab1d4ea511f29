"""Numerical integration over probabilities p from 0 to 1, with full accuracy at both ends.

The grid points (nodes) are evenly spaced in the logit, log(p / (1 - p)), so they are dense near 0 and 1. Each
node stores both p and 1 - p (`ProbabilityPair`), because 1 - p must not lose digits: the expected maximum of
10,000 run times depends on probabilities with 1 - p of about 1e-4.
"""

from __future__ import annotations

import numpy as np

from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.probability_pair import ProbabilityPair

# The nodes of numerical integrals over a probability p are spaced by its logit, log(p / (1 - p)). This is the
# maximum logit. There, 1 - p is about exp(-700), which is close to the smallest normal float64 number.
MAX_LOGIT = 700.0
# The spacing of the largest logits. It can be wide, because these nodes matter only for distributions with a
# heavy tail.
TAIL_STEP = 0.25
# Most nodes have logits between -40 and 40. Beyond 40, 1 - p is smaller than the float64 epsilon.
BULK_LOGIT = 40.0
# The number of nodes between the logits -BULK_LOGIT and BULK_LOGIT.
N_NODES = 8001
# Larger values are replaced by this number to avoid overflow. If the mean is finite, their probability is so
# small that this does not matter.
OVERFLOW_CAP = 1e300
# An integral is a sum over cells (intervals between nodes). It counts as infinite if more than this fraction
# of the sum comes from the last cell whose value is below OVERFLOW_CAP.
DIVERGENCE_TOL = 1e-5


def compute_logistic_and_complement(logits: Floats) -> ProbabilityPair:
    """Compute p and 1 - p from the logits log(p / (1 - p)).

    >>> [f"{part:.3g}" for part in compute_logistic_and_complement(np.array(-700.0))]
    ['9.86e-305', '1']
    """
    small = np.exp(-np.abs(logits))
    large, small = 1 / (1 + small), small / (1 + small)
    return ProbabilityPair(np.where(logits < 0, small, large), np.where(logits < 0, large, small))


def make_logit_spaced_nodes(start_logit: float, stop_logit: float, n_nodes: int) -> ProbabilityPair:
    """Return nodes for numerical integrals over a probability p, with evenly spaced logits log(p / (1 - p)).

    There are `n_nodes` nodes from `start_logit` to `stop_logit`, followed by more widely spaced nodes up to
    MAX_LOGIT. If `n_nodes` is odd, the number of cells (intervals between nodes) is even, as Richardson
    extrapolation requires.
    """
    tail_logits = np.arange(stop_logit + TAIL_STEP, MAX_LOGIT, TAIL_STEP)
    even_tail_logits = tail_logits[: len(tail_logits) // 2 * 2]
    logits = np.concatenate([np.linspace(start_logit, stop_logit, n_nodes), even_tail_logits])
    return compute_logistic_and_complement(logits)


def make_full_logit_grid() -> ProbabilityPair:
    """Return nodes (grid points) for numerical integrals over all probabilities from 0 to 1."""
    return make_logit_spaced_nodes(-BULK_LOGIT, BULK_LOGIT, N_NODES)


def compute_cell_widths(nodes: ProbabilityPair) -> Floats:
    """Return the width of each cell, i.e. the difference between two neighbouring probabilities.

    Near 1, the differences are computed from 1 - p, so that no digits are lost.
    """
    cdf, survival = nodes
    return np.where(cdf[1:] < 0.5, np.diff(cdf), -np.diff(survival))


def compute_cell_integrals(antiderivative_at_nodes: Floats) -> Floats:
    """Return the integral over each cell (interval between nodes), given an antiderivative at the nodes.

    The variable of integration is the survival probability 1 - p, which decreases from node to node. An
    integral is therefore a value minus the next value. Larger integrals than OVERFLOW_CAP are replaced by it.
    """
    with np.errstate(invalid="ignore"):
        integrals = np.nan_to_num(-np.diff(antiderivative_at_nodes), nan=OVERFLOW_CAP, posinf=OVERFLOW_CAP)
    return np.minimum(integrals, OVERFLOW_CAP)


def integrate_over_cells(density: Floats, cell_measure: Floats) -> Floats:
    """Integrate a density, given by its values at the nodes, with respect to a measure.

    A cell is the interval between two nodes. The trapezoidal rule is used with Richardson extrapolation. Its
    error is of fourth order if the measure is smooth, and of second order where the measure jumps.

    Parameters
    ----------
    density : array (..., nodes)
        The values of one or more densities at the nodes.
    cell_measure : array (nodes - 1,)
        The measure of each cell, for example its width.

    Returns
    -------
    array (...)
    """
    fine = (density[..., :-1] + density[..., 1:]) @ cell_measure
    coarse_density = density[..., ::2]
    coarse = (coarse_density[..., :-1] + coarse_density[..., 1:]) @ _sum_adjacent_pairs(cell_measure)
    return np.asarray((4 * fine - coarse) / 6)


def compute_expected_run_time(run_times: Distribution, cell_weights: Floats, nodes: ProbabilityPair) -> float:
    """Return a weighted mean of the quantiles of a run-time distribution, or inf if it diverges.

    The probabilities from 0 to 1 are divided into cells (intervals between nodes). In each cell, the mean run
    time is computed from the closed-form integral of the quantile function, so that jumps and poles of this
    function cause no error. The result is the mean over all cells, weighted by `cell_weights`.

    Parameters
    ----------
    run_times : Distribution
        The run time of one task.
    cell_weights : array (cells,)
        The probability of each cell.
    nodes : ProbabilityPair
        The cdf of tasks that complete, at the edges of the cells.
    """
    cdf, survival = nodes
    widths = compute_cell_widths(nodes)
    integrals = compute_cell_integrals(run_times.integrated_quantile(survival))
    narrow_mask = widths <= 1e-12 * np.where(cdf[1:] < 0.5, cdf[1:], survival[:-1])
    # The integral over a cell is the difference of two values, which is inaccurate if the cell is very
    # narrow. The quantile is nearly constant in such a cell, so multiply it by the width instead.
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
