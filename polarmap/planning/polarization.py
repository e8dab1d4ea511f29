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

MAX_DEPTH = 24  # 2^24 virtual workers


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
    survival_probabilities = check_probabilities(np.atleast_1d(np.asarray(survival, float)))
    rows = np.repeat(survival_probabilities[None], 1 << _check_depth(depth), axis=0)
    return compute_input_erasure_probabilities(rows)


def virtual_cdf(run_times: Distribution, depth: int, worker_index: int, times: npt.ArrayLike) -> Floats:
    """P(T <= t) of one virtual worker at any depth, in the shape of `times`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> virtual_cdf(ShiftedExponential(0.0, 1.0), 1, 0, np.log(2)).round(4)  # slow: 1/4
    np.float64(0.25)
    """
    cdf, survival = run_times.cdf_and_survival(times)
    # the earlier of two: F -> 1 - (1 - F)^2; the later: F -> F^2
    for bit in _get_branch_bits(depth, worker_index):
        if bit:
            cdf, survival = cdf * (1 + survival), survival * survival
        else:
            cdf, survival = cdf * cdf, survival * (1 + cdf)
    return cdf


def virtual_quantile(run_times: Distribution, depth: int, worker_index: int, p: npt.ArrayLike) -> Floats:
    """The time by which a virtual worker is done with probability `p`, in the shape of `p`.

    Exact: F^2 and 1 - (1 - F)^2 are inverted level by level, then `run_times`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> virtual_quantile(ShiftedExponential(0.0, 1.0), 1, 1, 0.5).round(4)  # min: rate 2
    np.float64(0.3466)
    """
    virtual_probabilities = ProbabilityPair.from_cdf(check_probabilities(p))
    return run_times.quantile_at(_invert_polarization(depth, worker_index, virtual_probabilities))


def virtual_mean(run_times: Distribution, depth: int, worker_index: int) -> float:
    """The expected run time of one virtual worker; inf if it may never end, or where no mean exists.

    Those of all 2^depth virtual workers average to the mean of a real one.

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
    """How far the virtual workers are from steps at each time: the mean of sqrt(F (1 - F)).

    One level multiplies it by at most sqrt(3) / 2, whatever F: it vanishes exponentially fast in the depth,
    and with the martingale the share of virtual workers that are done at t tends to F(t).

    Examples
    --------
    >>> (polarization_gap([0.5], 10) <= (3**0.5 / 2) ** 10 * polarization_gap([0.5], 0)).tolist()
    [True]
    """
    virtual_survival = polarize(survival, depth)
    return np.asarray(np.sqrt((1 - virtual_survival) * virtual_survival).mean(axis=0))


def virtual_medians(run_times: Distribution, depth: int) -> Floats:
    """Median run time of every virtual worker (2^depth,); sorted, they tend to the quantiles of real ones."""
    _check_depth(depth)
    cdf = np.array([0.5])
    for _ in range(depth):  # the outermost level is undone last
        pairs = np.stack([np.sqrt(cdf), cdf / (1 + np.sqrt(1 - cdf))])
        cdf = pairs.reshape(-1)
    return run_times.quantile(cdf)


def frozen_set_at_time(n: int, k: int, run_times: Distribution, time: float) -> Indices:
    """The n - k inputs least likely to be determined at a target time, ascending.

    Those of `PolarCode(n, k, "arikan", erasure=float(run_times.survival(time)))`.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> frozen_set_at_time(8, 4, ShiftedExponential(1.0, 1.0), 2.0).tolist()
    [0, 1, 2, 4]
    """
    _check_code_size(n, k)
    return choose_frozen_set(n, k, _compute_erasure_probability_at(run_times, time))


def sequential_failure_bound(n: int, k: int, run_times: Distribution, time: float) -> float:
    """At most this is the probability that the sequential decoder is not through at `time`.

    The sum of P(T > time) over the unfrozen virtual workers (union bound, Arikan 2009, proposition 2).

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
    """The earliest time by which a sequentially decoded job is surely done with `probability`.

    By bisection on `sequential_failure_bound`; a target for `frozen_set_at_time`. inf if there is none.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> round(sequential_completion_bound(64, 32, ShiftedExponential(1.0, 1.0), 0.99), 2)
    2.54
    """
    _check_code_size(n, k)
    max_failure_probability = 1 - float(check_probabilities(probability))
    max_arrival_probability = 1 - run_times.failure_probability  # of the workers are back some day

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
    """Return the probabilities of the real workers where a virtual worker has these."""
    cdf, survival = virtual_probabilities
    for bit in reversed(_get_branch_bits(depth, worker_index)):
        if bit:  # the survival of real workers is the root of that of the virtual one
            root = np.sqrt(survival)
            cdf, survival = cdf / (1 + root), root
        else:
            root = np.sqrt(cdf)
            cdf, survival = root, survival / (1 + root)
    return ProbabilityPair(cdf, survival)


def _get_branch_bits(depth: int, worker_index: int) -> list[int]:
    """The branches to a virtual worker: 0 for slow and 1 for fast, from the real workers inwards."""
    if not 0 <= worker_index < 1 << _check_depth(depth):
        raise CodeError(f"at depth {depth} there are {1 << depth} virtual workers, not one at {worker_index}")
    return [worker_index >> (depth - 1 - level) & 1 for level in range(depth)]


def _check_depth(depth: int) -> int:
    if not 0 <= depth <= MAX_DEPTH:
        raise CodeError(f"depth must lie between 0 and {MAX_DEPTH}, not at {depth}")
    return depth


def _check_code_size(n: int, k: int) -> None:
    if not 1 <= k < n:
        raise CodeError(f"a code needs 1 <= k < n, not n = {n}, k = {k}")


def _compute_erasure_probability_at(run_times: Distribution, time: float) -> float:
    erasure = float(run_times.survival(time))
    if not 0 < erasure < 1:
        raise CodeError(
            f"at time {time:g} {'no' if erasure else 'every'} worker is back: "
            "every frozen set is as good as any other"
        )
    return erasure
