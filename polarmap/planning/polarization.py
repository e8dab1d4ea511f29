"""Computational polarization: pairs of workers become one slow and one fast virtual worker.

The slow one of two waits for both (the maximum), the fast one for either (the minimum). Doing so
recursively on 2^depth workers gives 2^depth virtual workers, whose run times polarize
(Pilanci, arXiv 2109.03877). At a fixed time t the recursion acts on the single number
P(T > t), and is that of the erasure probability of a polar code, so nothing is approximated: a
virtual worker's cdf is a fixed polynomial of the real workers' cdf, inverted in closed form.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.codes.design import erasure_probabilities, frozen_inputs, power_of_two_above
from polarmap.codes.dtypes import Indices
from polarmap.errors import CodeError
from polarmap.planning.distributions import Distribution, Floats, checked_probabilities, first_reached
from polarmap.planning.quadrature import everywhere, lengths, mean_quantile

MOST_DEPTH = 24  # 2^24 virtual workers


def polarize(survival: npt.ArrayLike, depth: int) -> Floats:
    """P(T > t) of all virtual workers, from P(T > t) of the real ones at a grid of times.

    Returns
    -------
    array (2^depth, times)
        Row i is input i of the polar code: its bits, most significant first, say slow (0) or fast
        (1) from the workers inwards. The mean of the rows is `survival`: the recursion is a martingale.

    Examples
    --------
    >>> polarize([0.5], 2).ravel().tolist()
    [0.9375, 0.5625, 0.4375, 0.0625]
    """
    above = checked_probabilities(np.atleast_1d(np.asarray(survival, float)))
    return erasure_probabilities(np.repeat(above[None], 1 << _checked_depth(depth), axis=0))


def virtual_cdf(runtimes: Distribution, depth: int, index: int, times: npt.ArrayLike) -> Floats:
    """P(T <= t) of one virtual worker at any depth, in the shape of `times`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> virtual_cdf(ShiftedExponential(0.0, 1.0), 1, 0, np.log(2)).round(4)  # slow: 1/4
    np.float64(0.25)
    """
    below, above = runtimes.cdf(times), runtimes.survival(times)
    for bit in _bits(depth, index):  # the earlier of two: F -> 1 - (1 - F)^2; the later: F -> F^2
        if bit:
            below, above = below * (1 + above), above * above
        else:
            below, above = below * below, above * (1 + below)
    return below


def virtual_quantile(runtimes: Distribution, depth: int, index: int, p: npt.ArrayLike) -> Floats:
    """The time by which a virtual worker is done with probability `p`, in the shape of `p`.

    Exact: F^2 and 1 - (1 - F)^2 are inverted level by level, then `runtimes`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> virtual_quantile(ShiftedExponential(0.0, 1.0), 1, 1, 0.5).round(4)  # min: rate 2
    np.float64(0.3466)
    """
    share = checked_probabilities(p)
    return runtimes.time_of(*_real_shares(depth, index, share, 1 - share))


def virtual_mean(runtimes: Distribution, depth: int, index: int) -> float:
    """The expected run time of one virtual worker; inf if it may never end, or where no mean exists.

    Those of all 2^depth virtual workers average to the mean of a real one.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> [round(virtual_mean(ShiftedExponential(0.0, 1.0), 1, index), 6) for index in (0, 1)]
    [1.5, 0.5]
    """
    if runtimes.failure_probability:
        return np.inf
    below, above = everywhere()
    return mean_quantile(runtimes, lengths(below, above), *_real_shares(depth, index, below, above))


def unpolarized(survival: npt.ArrayLike, depth: int) -> Floats:
    """How far the virtual workers are from steps at each time: the mean of sqrt(F (1 - F)).

    One level multiplies it by at most sqrt(3) / 2, whatever F: it vanishes exponentially fast in the depth,
    and with the martingale the share of virtual workers that are done at t tends to F(t).

    Examples
    --------
    >>> (unpolarized([0.5], 10) <= (3**0.5 / 2) ** 10 * unpolarized([0.5], 0)).tolist()
    [True]
    """
    above = polarize(survival, depth)
    return np.asarray(np.sqrt((1 - above) * above).mean(axis=0))


def step_times(runtimes: Distribution, depth: int) -> Floats:
    """Median run time of every virtual worker (2^depth,); sorted, they tend to the quantiles of real ones."""
    _checked_depth(depth)
    below = np.array([0.5])
    for _ in range(depth):  # the outermost level is undone last
        pairs = np.stack([np.sqrt(below), below / (1 + np.sqrt(1 - below))])
        below = pairs.reshape(-1)
    return runtimes.quantile(below)


def frozen_at(n: int, k: int, runtimes: Distribution, time: float) -> Indices:
    """The n - k inputs least likely to be determined at a target time, ascending.

    Those of `PolarCode(n, k, "arikan", erasure=float(runtimes.survival(time)))`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> frozen_at(8, 4, ShiftedExponential(1.0, 1.0), 2.0).tolist()
    [0, 1, 2, 4]
    """
    _check_sizes(n, k)
    return frozen_inputs(n, k, _erasure_at(runtimes, time))


def sequential_bound(n: int, k: int, runtimes: Distribution, time: float) -> float:
    """At most this is the probability that the sequential decoder is not through at `time`.

    The sum of P(T > time) over the unfrozen virtual workers (union bound, Arikan 2009, proposition 2).

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> round(sequential_bound(8, 4, ShiftedExponential(1.0, 1.0), 3.0), 3)
    0.006
    """
    frozen, punctured = frozen_at(n, k, runtimes, time), np.arange(power_of_two_above(n) - n)
    late = erasure_probabilities(np.append(np.ones(len(punctured)), np.full(n, runtimes.survival(time))))
    return float(min(1.0, np.delete(late, np.append(punctured, frozen)).sum()))


def target_time(n: int, k: int, runtimes: Distribution, probability: float = 0.99) -> float:
    """The earliest time by which a sequentially decoded job is surely done with `probability`.

    By bisection on `sequential_bound`; a target for `frozen_at`. inf if there is none.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> round(target_time(64, 32, ShiftedExponential(1.0, 1.0), 0.99), 2)
    2.54
    """
    _check_sizes(n, k)
    missed = 1 - float(checked_probabilities(probability))
    most = 1 - runtimes.failure_probability  # of the workers are back some day

    def is_surely_done(share: Floats) -> npt.NDArray[np.bool_]:
        time = float(runtimes.quantile(share))
        back = float(runtimes.cdf(time))
        if not 0 < back < 1:
            return np.array(back == 1)
        return np.array(sequential_bound(n, k, runtimes, time) <= missed)

    share = float(first_reached(is_surely_done, np.array(0.0), np.array(most)))
    return float(runtimes.quantile(share)) if share < most else np.inf


def _real_shares(depth: int, index: int, below: Floats, above: Floats) -> tuple[Floats, Floats]:
    """(F, 1 - F) of the real workers where the virtual worker's are (below, above)."""
    for bit in reversed(_bits(depth, index)):
        if bit:  # 1 - F is the root of above
            root = np.sqrt(above)
            below, above = below / (1 + root), root
        else:
            root = np.sqrt(below)
            below, above = root, above / (1 + root)
    return below, above


def _bits(depth: int, index: int) -> list[int]:
    """The branches to a virtual worker: 0 for slow and 1 for fast, from the real workers inwards."""
    if not 0 <= index < 1 << _checked_depth(depth):
        raise CodeError(f"at depth {depth} there are {1 << depth} virtual workers, not one at {index}")
    return [index >> (depth - 1 - level) & 1 for level in range(depth)]


def _checked_depth(depth: int) -> int:
    if not 0 <= depth <= MOST_DEPTH:
        raise CodeError(f"depth must lie between 0 and {MOST_DEPTH}, not at {depth}")
    return depth


def _check_sizes(n: int, k: int) -> None:
    if not 1 <= k < n:
        raise CodeError(f"a code needs 1 <= k < n, not n = {n}, k = {k}")


def _erasure_at(runtimes: Distribution, time: float) -> float:
    erasure = float(runtimes.survival(time))
    if not 0 < erasure < 1:
        raise CodeError(
            f"at time {time:g} {'no' if erasure else 'every'} worker is back: "
            "every frozen set is as good as any other"
        )
    return erasure
