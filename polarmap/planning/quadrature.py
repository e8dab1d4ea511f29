"""Integrals over probabilities near 0 and near 1, where rare events live.

Nodes are laid out by their logit, log(p / (1 - p)), and every probability goes in a pair with its
complement: the largest of 10,000 tasks sits where 1 - p is 1e-4 and one digit in ten of 1 - p
would be a digit of the answer.
"""

from __future__ import annotations

import numpy as np

from polarmap.planning.distributions import Distribution, Floats

FURTHEST = 700.0  # exp(-700) is about the smallest normal float
TAIL_STEP = 0.25  # of the logits, where only a heavy tail may still count
BULK = 40.0  # logits beyond which probabilities differ from 0 and 1 by less than eps
NODES = 8001
HUGE = 1e300  # nearly overflows: a heavy tail whose mean exists has no weight where it is so long
LEFT = 1e-5  # of an integral in the last cell that is shorter: one that converges has less there


def logistic(logits: Floats) -> tuple[Floats, Floats]:
    """The probabilities (p, 1 - p) with log(p / (1 - p)) = `logits`, both accurate.

    >>> [f"{part:.3g}" for part in logistic(np.array(-700.0))]
    ['9.86e-305', '1']
    """
    small = np.exp(-np.abs(logits))
    large, small = 1 / (1 + small), small / (1 + small)
    return np.where(logits < 0, small, large), np.where(logits < 0, large, small)


def nodes(start: float, stop: float, count: int) -> tuple[Floats, Floats]:
    """Probabilities (p, 1 - p): `count` nodes between two logits, then on to the last tail.

    Both pieces are uniform in the logit and have an even number of cells, so that the integrals
    below can take every second node for a comparison.
    """
    tail = np.arange(stop + TAIL_STEP, FURTHEST, TAIL_STEP)
    return logistic(np.concatenate([np.linspace(start, stop, count), tail[: len(tail) // 2 * 2]]))


def everywhere() -> tuple[Floats, Floats]:
    """Nodes (p, 1 - p) from one end of the probabilities to the other."""
    return nodes(-BULK, BULK, NODES)


def lengths(below: Floats, above: Floats) -> Floats:
    """Lengths of the cells between neighbouring nodes, accurate in both halves."""
    return np.where(below[1:] < 0.5, np.diff(below), -np.diff(above))


def areas_between(edges: Floats) -> Floats:
    """Areas of the cells between edges of an area that may overflow at the last of them."""
    with np.errstate(invalid="ignore"):
        areas = np.nan_to_num(-np.diff(edges), nan=HUGE, posinf=HUGE)
    return np.minimum(areas, HUGE)


def integral(density: Floats, steps: Floats) -> Floats:
    """The integral of `density` (..., nodes) against a measure given on the cells (nodes - 1,).

    By the trapezoidal rule and once more on every second node, extrapolated (Richardson): of
    fourth order where all is smooth, of second where the measure has steps.
    """
    fine = (density[..., :-1] + density[..., 1:]) @ steps
    few = density[..., ::2]
    coarse = (few[..., :-1] + few[..., 1:]) @ _pairs(steps)
    return np.asarray((4 * fine - coarse) / 6)


def mean_quantile(runtimes: Distribution, weights: Floats, below: Floats, above: Floats) -> float:
    """The sum of `weights` (cells,) times the mean run time in each cell of shares of workers.

    The mean in a cell comes from the closed-form area under the quantile function, so steps and
    poles of it cost no accuracy. Of the tasks that end; extrapolated like `integral`. inf where none exists.
    """
    widths, areas = lengths(below, above), areas_between(runtimes.area(above))
    is_narrow = widths <= 1e-12 * np.where(below[1:] < 0.5, below[1:], above[:-1])
    if is_narrow.any():  # than eps: the quantile is the same on both sides
        edges = runtimes.inverse(below[:-1][is_narrow], above[:-1][is_narrow])
        areas[is_narrow] = np.minimum(edges, HUGE) * widths[is_narrow]
    means = _ratio(areas, widths)
    fine, last = means @ weights, np.flatnonzero(means < HUGE)[-1]
    if means[last] * weights[last] > LEFT * fine:
        return np.inf
    coarse = _ratio(_pairs(areas), _pairs(widths)) @ _pairs(weights)
    return float((4 * fine - coarse) / 3)


def _ratio(areas: Floats, widths: Floats) -> Floats:
    with np.errstate(over="ignore"):
        means = np.divide(areas, widths, out=np.zeros_like(areas), where=widths > 0)
    return np.minimum(means, HUGE)


def _pairs(steps: Floats) -> Floats:
    return steps[0::2] + steps[1::2]
