"""Computational polarization: a polar code turns each pair of workers into a slow and a fast virtual worker.

    slow: waits for both workers,   T = max(T1, T2)    P(T > t) -> 1 - (1 - P(T > t))^2
    fast: waits for either worker,  T = min(T1, T2)    P(T > t) -> P(T > t)^2

Applied recursively to 2^depth real workers, this gives 2^depth virtual workers. As the depth grows, their run
times become more and more different: they polarize (Pilanci, arXiv 2109.03877). At a fixed time t, the
recursion is that of the erasure probabilities of a polar code. So the cdf of a virtual worker is a polynomial
in the cdf of the real workers, and can be inverted in closed form.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polarmap.codes.polar_construction import (
    choose_frozen_set,
    compute_input_erasure_probabilities,
    round_up_to_power_of_two,
)
from polarmap.dtypes import Indices
from polarmap.errors import CodeError
from polarmap.planning.distributions import Distribution, Floats, bisect_predicate, check_probabilities
from polarmap.planning.probability_pair import ProbabilityPair
from polarmap.planning.quadrature import compute_cell_widths, compute_expected_run_time, make_full_logit_grid

MAX_DEPTH = 24  # The maximum recursion depth, with 2^24 virtual workers.


def polarize(survival: npt.ArrayLike, depth: int) -> Floats:
    """Compute the probability that each virtual worker is still running.

    Virtual workers describe how a polar code is decoded. They are defined by a recursion, which begins with
    2^depth real workers. At each level, every two workers are replaced by a slow virtual worker, which
    finishes when both have finished, and a fast one, which finishes when one of them has.

    Parameters
    ----------
    survival : array-like (times,)
        The probability P(T > t) that a real worker is still running, at several times t.
    depth : int
        The depth of the recursion, which starts with 2^depth real workers.

    Returns
    -------
    array (2^depth, times)
        P(T > t) of each virtual worker. Row i belongs to input i of the polar code. The bits of i, most
        significant first, tell how the virtual worker is formed, level by level: 0 for slow and 1 for fast.
        The mean over the rows is `survival`.

    Examples
    --------
    >>> polarize([0.5], 2).ravel().tolist()
    [0.9375, 0.5625, 0.4375, 0.0625]
    """
    survival_probabilities = check_probabilities(np.atleast_1d(np.asarray(survival, float)))
    rows = np.repeat(survival_probabilities[None], 1 << _check_depth(depth), axis=0)
    return compute_input_erasure_probabilities(rows)


def virtual_cdf(run_times: Distribution, depth: int, worker_index: int, times: npt.ArrayLike) -> Floats:
    """Return the probability that a virtual worker has finished by each of `times`, P(T <= t).

    A virtual worker waits for both (slow) or either (fast) of two workers of the level below; see `polarize`.

    Parameters
    ----------
    run_times : Distribution
        The run time of a real worker.
    depth : int
        The depth of the recursion (see `polarize`).
    worker_index : int
        The index of the virtual worker, from 0 (slowest) to 2^depth - 1 (fastest).
    times : array-like
        Times in seconds.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> virtual_cdf(ShiftedExponential(0.0, 1.0), 1, 0, np.log(2)).round(4)  # slow: 1/4
    np.float64(0.25)
    """
    cdf, survival = run_times.cdf_and_survival(times)
    # If two run times have the cdf F, their maximum has the cdf F^2 and their minimum 1 - (1 - F)^2.
    for bit in _get_polarization_path(depth, worker_index):
        if bit:
            cdf, survival = cdf * (1 + survival), survival * survival
        else:
            cdf, survival = cdf * cdf, survival * (1 + cdf)
    return cdf


def virtual_quantile(run_times: Distribution, depth: int, worker_index: int, p: npt.ArrayLike) -> Floats:
    """Return the quantiles of the run time of a virtual worker (see `polarize`), for probabilities `p`.

    They are exact, because each step of the recursion can be inverted. The other parameters are as for
    `virtual_cdf`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> virtual_quantile(ShiftedExponential(0.0, 1.0), 1, 1, 0.5).round(4)  # min: rate 2
    np.float64(0.3466)
    """
    virtual_probabilities = ProbabilityPair.from_cdf(check_probabilities(p))
    return run_times.quantile_at(_invert_polarization(depth, worker_index, virtual_probabilities))


def virtual_mean(run_times: Distribution, depth: int, worker_index: int) -> float:
    """Return the expected run time of a virtual worker (see `polarize`), in seconds.

    The mean is inf if tasks may never complete. The average over all 2^depth virtual workers is the expected
    run time of a real worker. The parameters are as for `virtual_cdf`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> [round(virtual_mean(ShiftedExponential(0.0, 1.0), 1, index), 6) for index in (0, 1)]
    [1.5, 0.5]
    """
    if run_times.failure_probability:
        return np.inf
    virtual_nodes = make_full_logit_grid()
    worker_nodes = _invert_polarization(depth, worker_index, virtual_nodes)
    return compute_expected_run_time(run_times, compute_cell_widths(virtual_nodes), worker_nodes)


def polarization_gap(survival: npt.ArrayLike, depth: int) -> Floats:
    """Return how far the virtual workers (see `polarize`) are from being polarized, at each time.

    The gap is the mean of sqrt(F (1 - F)) over all virtual workers, where F is the probability that a virtual
    worker has finished. It is 0 if all virtual workers are polarized, i.e. if each F is 0 or 1. The
    parameters are as for `polarize`.

    Each level of the recursion multiplies the gap by at most sqrt(3) / 2, so it decreases exponentially with
    the depth. The mean of F stays the same, so the fraction of virtual workers that have finished tends to
    the cdf of a real worker.

    Examples
    --------
    >>> (polarization_gap([0.5], 10) <= (3**0.5 / 2) ** 10 * polarization_gap([0.5], 0)).tolist()
    [True]
    """
    virtual_survival = polarize(survival, depth)
    return np.asarray(np.sqrt((1 - virtual_survival) * virtual_survival).mean(axis=0))


def virtual_medians(run_times: Distribution, depth: int) -> Floats:
    """Return the median run time of each of the 2^depth virtual workers (see `polarize`), in seconds.

    As the depth grows, the sorted medians approach the quantiles of the run time of a real worker.
    """
    _check_depth(depth)
    cdf = np.array([0.5])
    # At its median run time, a virtual worker has finished with probability 0.5. Each step computes, for the
    # same time, the probability for the workers from which it is formed. The last step gives that of a real
    # worker.
    for _ in range(depth):
        pairs = np.stack([np.sqrt(cdf), cdf / (1 + np.sqrt(1 - cdf))])
        cdf = pairs.reshape(-1)
    return run_times.quantile(cdf)


def frozen_set_at_time(n: int, k: int, run_times: Distribution, time: float) -> Indices:
    """Return the frozen set of a polar code that is designed for decoding at a target time.

    The frozen set contains the n - k inputs of the code that are least likely to be known at that time, in
    ascending order. They are set to zero and carry no data. The set is that of
    `PolarCode(n, k, "arikan", erasure=float(run_times.survival(time)))`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> frozen_set_at_time(8, 4, ShiftedExponential(1.0, 1.0), 2.0).tolist()
    [0, 1, 2, 4]
    """
    _check_code_size(n, k)
    return choose_frozen_set(n, k, _compute_erasure_probability_at(run_times, time))


def sequential_failure_bound(n: int, k: int, run_times: Distribution, time: float) -> float:
    """Return an upper bound on the probability that a job cannot yet be decoded at `time`.

    This is the union bound for successive cancellation decoding (Arikan 2009, proposition 2): the sum of
    P(T > time) over the virtual workers outside the frozen set. The frozen set is that of
    `frozen_set_at_time`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> round(sequential_failure_bound(8, 4, ShiftedExponential(1.0, 1.0), 3.0), 3)
    0.006
    """
    frozen_inputs = frozen_set_at_time(n, k, run_times, time)
    punctured = np.arange(round_up_to_power_of_two(n) - n)
    position_survival = np.append(np.ones(len(punctured)), np.full(n, run_times.survival(time)))
    input_survival = compute_input_erasure_probabilities(position_survival)
    return float(min(1.0, np.delete(input_survival, np.append(punctured, frozen_inputs)).sum()))


def sequential_completion_bound(n: int, k: int, run_times: Distribution, probability: float = 0.99) -> float:
    """Return a time by which a job can be decoded with at least the given probability.

    This is the earliest time at which `sequential_failure_bound` is at most 1 - probability, or inf if there
    is no such time. Use it as the target time of `frozen_set_at_time`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> round(sequential_completion_bound(64, 32, ShiftedExponential(1.0, 1.0), 0.99), 2)
    2.54
    """
    _check_code_size(n, k)
    max_failure_probability = 1 - float(check_probabilities(probability))
    max_arrival_probability = 1 - run_times.failure_probability

    def is_within_bound(arrival_probability: Floats) -> npt.NDArray[np.bool_]:
        time = float(run_times.quantile(arrival_probability))
        arrived_probability = float(run_times.cdf(time))
        if not 0 < arrived_probability < 1:
            return np.array(arrived_probability == 1)
        return np.array(sequential_failure_bound(n, k, run_times, time) <= max_failure_probability)

    low, high = np.array(0.0), np.array(max_arrival_probability)
    arrival_probability = float(bisect_predicate(is_within_bound, low, high))
    if arrival_probability < max_arrival_probability:
        return float(run_times.quantile(arrival_probability))
    return np.inf


def _invert_polarization(
    depth: int, worker_index: int, virtual_probabilities: ProbabilityPair
) -> ProbabilityPair:
    """Return the probability that a real worker has finished, given that of a virtual worker.

    Both refer to the same time. This inverts the recursion of `polarize`.
    """
    cdf, survival = virtual_probabilities
    for bit in reversed(_get_polarization_path(depth, worker_index)):
        if bit:
            root = np.sqrt(survival)
            cdf, survival = cdf / (1 + root), root
        else:
            root = np.sqrt(cdf)
            cdf, survival = root, survival / (1 + root)
    return ProbabilityPair(cdf, survival)


def _get_polarization_path(depth: int, worker_index: int) -> list[int]:
    """Return how a virtual worker is formed (see `polarize`), as one number for each level.

    The number is 0 if it is the slow worker of a pair, and 1 if it is the fast one.
    """
    if not 0 <= worker_index < 1 << _check_depth(depth):
        raise CodeError(
            f"worker_index must be from 0 to {(1 << depth) - 1} at depth {depth}, not {worker_index}"
        )
    return [worker_index >> (depth - 1 - level) & 1 for level in range(depth)]


def _check_depth(depth: int) -> int:
    if not 0 <= depth <= MAX_DEPTH:
        raise CodeError(f"depth must be from 0 to {MAX_DEPTH}, not {depth}")
    return depth


def _check_code_size(n: int, k: int) -> None:
    if not 1 <= k < n:
        raise CodeError(f"k must be at least 1 and less than n, not n = {n} and k = {k}")


def _compute_erasure_probability_at(run_times: Distribution, time: float) -> float:
    erasure = float(run_times.survival(time))
    if not 0 < erasure < 1:
        raise CodeError(
            f"at time {time:g}, {'no task has' if erasure else 'all tasks have'} completed, which does not "
            "determine a frozen set. Choose a time at which some tasks have completed"
        )
    return erasure
