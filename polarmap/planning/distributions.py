"""Distributions of the run time of a task.

    ShiftedExponential(1.0, 0.5)                    1 s, plus an exponential with mean 0.5 s
    with_stragglers(..., fraction=0.02, factor=5)   2 % of the tasks take 5 times as long
    FailureProne(..., 0.01)                         1 % of the tasks never complete

A distribution has two parts: the probability that a task never completes, and the run-time distribution of
the tasks that do complete. A subclass of `Distribution` defines the second part by three methods. Two of them
use a `ProbabilityPair`, which stores P(T <= t) together with P(T > t). Times are in seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.errors import CodeError, trimmed_tracebacks
from polarmap.planning.probability_pair import ProbabilityPair
from polarmap.validation import is_real_number

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MAX_SECONDS = 1e100  # Tasks with a longer run time, in seconds, are treated as never completing.
MAX_BISECTIONS = 64  # The number of bisection steps: enough to find a number with the precision of float64.


class Distribution(ABC):
    """The base class of run-time distributions. Tasks may also fail to complete.

    Attributes
    ----------
    failure_probability : float
        The probability that a task never completes.
    """

    failure_probability: float = 0.0

    # -- given that the task completes ---------------------------------------------------------------

    @abstractmethod
    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        """Return the probabilities P(T <= t) and P(T > t), for each t in `times`.

        T is the run time of a task that completes. Subclasses must compute both probabilities separately. If
        one were computed as 1 minus the other, it would lose digits where it is small.
        """

    @abstractmethod
    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        """Return the run-time quantiles of tasks that complete, in seconds, for the given probabilities."""

    @abstractmethod
    def integrated_quantile(self, survival: Floats) -> Floats:
        """Return an antiderivative, in closed form, of the quantile function of tasks that complete.

        It is used to compute means. With the quantile function Q and survival probabilities s,

            integrated_quantile(b) - integrated_quantile(a) = integral from a to b of Q(1 - s) ds,

        so integrated_quantile(1) - integrated_quantile(0) is the mean run time. Such differences are exact
        even where the quantile function jumps.

        Parameters
        ----------
        survival : array
            Survival probabilities s = P(T > t) of tasks that complete, in [0, 1].

        Returns
        -------
        array, in the shape of `survival`
            Seconds. The constant of integration is arbitrary. The value at s = 0 is -inf if the mean is
            infinite.
        """

    # -- of all tasks --------------------------------------------------------------------------------

    def cdf(self, times: npt.ArrayLike) -> Floats:
        """Return the probability that a task has completed by each of `times`, P(T <= t).

        It never exceeds 1 - failure_probability.

        Examples
        --------
        >>> ShiftedExponential(1.0, 2.0).cdf([0.0, 1.0, 3.0]).round(4).tolist()
        [0.0, 0.0, 0.6321]
        """
        return self.cdf_and_survival(times).cdf

    def survival(self, times: npt.ArrayLike) -> Floats:
        """Return the probability that a task has not completed by each of `times`, P(T > t)."""
        return self.cdf_and_survival(times).survival

    def cdf_and_survival(self, times: npt.ArrayLike) -> ProbabilityPair:
        """Return both `cdf(times)` and `survival(times)`, each with full relative accuracy.

        Use it instead of 1 - cdf(times), which loses digits where it is small.
        """
        conditional = self.conditional_cdf_and_survival(np.asarray(times, float))
        return conditional.of_all_tasks(self.failure_probability)

    def quantile(self, p: npt.ArrayLike) -> Floats:
        """Return the quantiles: the time by which a task has completed with probability p, for each p.

        The time is inf if p exceeds 1 - failure_probability, the probability that a task ever completes.

        Examples
        --------
        >>> FailureProne(ShiftedExponential(1.0, 1.0), 0.1).quantile([0.0, 0.45, 0.95]).round(4).tolist()
        [1.0, 1.6931, inf]
        """
        return self.quantile_at(ProbabilityPair.from_cdf(check_probabilities(p)))

    def quantile_at(self, probabilities: ProbabilityPair) -> Floats:
        """Return the same as `quantile`, for probabilities p that are stored together with 1 - p.

        This is more accurate if 1 - p is small.
        """
        quantiles = self.conditional_quantile(probabilities.given_completion(self.failure_probability))
        return np.where(probabilities.cdf > 1 - self.failure_probability, inf, quantiles)

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the quantiles of the run time of tasks that complete, in seconds, for probabilities `p`.

        Unlike `quantile`, this ignores tasks that never complete.
        """
        return self.conditional_quantile(ProbabilityPair.from_cdf(p))

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        """Draw independent run times in seconds, inf for tasks that never complete."""
        run_times = self.quantile_given_completion(rng.random(size))
        if self.failure_probability:
            run_times = np.where(rng.random(size) < self.failure_probability, inf, run_times)
        return run_times

    def mean(self) -> float:
        """Return the expected run time in seconds.

        It is inf if some tasks never complete or the tail is too heavy for a finite mean.

        Examples
        --------
        >>> ShiftedExponential(1.0, 2.0).mean(), Pareto(1.0, 2.0).mean(), Pareto(1.0, 1.0).mean()
        (3.0, 2.0, inf)
        """
        return inf if self.failure_probability else self.conditional_mean()

    def conditional_mean(self) -> float:
        """Return the expected run time, in seconds, of tasks that complete. Other tasks are ignored."""
        value_at_one, value_at_zero = self.integrated_quantile(np.array([1.0, 0.0])).tolist()
        return float(value_at_one - value_at_zero)


@dataclass(frozen=True)
class ShiftedExponential(Distribution):
    """The distribution of a constant plus an exponential variable: shift + scale * Exp(1).

    This is the standard model of stragglers (Lee et al., arXiv 1512.02673).

    Parameters
    ----------
    shift : float
        The smallest run time, in seconds.
    scale : float
        The mean of the exponential part, in seconds.

    Examples
    --------
    >>> ShiftedExponential(1.0, 1.0).quantile(0.5).round(4)
    np.float64(1.6931)
    """

    shift: float
    scale: float

    def __post_init__(self) -> None:
        _check_distribution_parameter("shift", self.shift)
        _check_distribution_parameter("scale", self.scale, is_positive=True)

    @classmethod
    def fit(cls, times: npt.ArrayLike, completed: npt.ArrayLike | None = None) -> ShiftedExponential:
        """Return the maximum-likelihood fit to observed run times.

        Parameters
        ----------
        times : array-like (m,)
            Observed run times in seconds.
        completed : boolean array-like (m,), optional
            False for a task that was still running after that time, so that its run time is only known to be
            longer (right-censored). By default, all tasks have completed.

        Examples
        --------
        >>> ShiftedExponential.fit([1.0, 2.0, 3.0], completed=[True, True, False])
        ShiftedExponential(shift=1.0, scale=1.5)
        """
        checked_times, completed_mask = check_observations(times, completed)
        scale = _estimate_exponential_scale(checked_times, completed_mask, "the scale of an exponential")
        return cls(float(checked_times[completed_mask].min()), scale)

    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        standardized = np.maximum(times - self.shift, 0.0) / self.scale
        return ProbabilityPair(-np.expm1(-standardized), np.exp(-standardized))

    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        return self.shift + self.scale * _compute_cumulative_hazard(probabilities)

    def integrated_quantile(self, survival: Floats) -> Floats:
        log_survival = np.log(survival, out=np.zeros_like(survival), where=survival > 0)
        return survival * (self.shift + self.scale * (1 - log_survival))


@dataclass(frozen=True)
class Pareto(Distribution):
    """The Pareto distribution, which has a heavy tail: P(T > t) = (scale / t)^shape for t >= scale.

    Parameters
    ----------
    scale : float
        The smallest run time, in seconds.
    shape : float
        The exponent of the tail. The mean is infinite for a shape of 1 or less.
    """

    scale: float
    shape: float

    def __post_init__(self) -> None:
        _check_distribution_parameter("scale", self.scale, is_positive=True)
        _check_distribution_parameter("shape", self.shape, is_positive=True)

    @classmethod
    def fit(cls, times: npt.ArrayLike, completed: npt.ArrayLike | None = None) -> Pareto:
        """Return the maximum-likelihood fit to observed run times (Hill's estimator).

        Parameters
        ----------
        times : array-like (m,)
            Observed run times in seconds.
        completed : boolean array-like (m,), optional
            False for a task that was still running after that time, so that its run time is only known to be
            longer (right-censored). By default, all tasks have completed.

        Examples
        --------
        >>> Pareto.fit([1.0, np.e, np.e**2])
        Pareto(scale=1.0, shape=1.0)
        """
        checked_times, completed_mask = check_observations(times, completed)
        scale = float(checked_times[completed_mask].min())
        if scale <= 0:
            raise CodeError("run times must be positive to fit a Pareto distribution, but the shortest is 0")
        log_times = np.log(np.maximum(checked_times, scale))
        parameter_name = "the shape of a Pareto distribution"
        return cls(scale, 1 / _estimate_exponential_scale(log_times, completed_mask, parameter_name))

    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        exponent = self.shape * np.log(np.maximum(times, self.scale) / self.scale)
        return ProbabilityPair(-np.expm1(-exponent), np.exp(-exponent))

    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        with np.errstate(over="ignore"):
            return self.scale * np.exp(_compute_cumulative_hazard(probabilities) / self.shape)

    def integrated_quantile(self, survival: Floats) -> Floats:
        power = 1 - 1 / self.shape
        with np.errstate(divide="ignore", over="ignore"):
            if power == 0:
                return self.scale * np.log(survival)
            return self.scale * survival**power / power


@dataclass(frozen=True)
class Scaled(Distribution):
    """The distribution of delay + factor * T for a given distribution of T.

    Use it to model a slower machine (`factor`) or a cold start (`delay`).

    Parameters
    ----------
    run_times : Distribution
        The distribution of T.
    factor : float
        The factor by which each run time is multiplied. Must be positive.
    delay : float
        The number of seconds added to each run time, 0 or more.

    Examples
    --------
    >>> Scaled(ShiftedExponential(1.0, 1.0), factor=5.0, delay=2.0).mean()
    12.0
    """

    run_times: Distribution
    factor: float = 1.0
    delay: float = 0.0
    failure_probability: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_distribution(self.run_times)
        _check_distribution_parameter("factor", self.factor, is_positive=True)
        _check_distribution_parameter("delay", self.delay)
        object.__setattr__(self, "failure_probability", self.run_times.failure_probability)

    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        return self.run_times.conditional_cdf_and_survival((times - self.delay) / self.factor)

    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        return self.delay + self.factor * self.run_times.conditional_quantile(probabilities)

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        return self.delay + self.factor * self.run_times.sample(rng, size)

    def integrated_quantile(self, survival: Floats) -> Floats:
        return self.delay * survival + self.factor * self.run_times.integrated_quantile(survival)


@dataclass(frozen=True)
class FailureProne(Distribution):
    """The run-time distribution of tasks that may fail and then never complete.

    Parameters
    ----------
    run_times : Distribution
        The run time of the tasks that do not fail.
    probability : float
        The probability that a task fails.

    Examples
    --------
    >>> FailureProne(ShiftedExponential(1.0, 1.0), 0.01).survival(1e9).round(12)
    np.float64(0.01)
    """

    run_times: Distribution
    probability: float
    failure_probability: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_distribution(self.run_times)
        probabilities = check_probabilities(self.probability)
        if probabilities.ndim:
            raise CodeError(f"probability must be a single number, not an array of {probabilities.size}")
        own_probability = float(probabilities)
        failure_probability = own_probability + (1 - own_probability) * self.run_times.failure_probability
        object.__setattr__(self, "failure_probability", failure_probability)

    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        return self.run_times.conditional_cdf_and_survival(times)

    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        return self.run_times.conditional_quantile(probabilities)

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        times = self.run_times.sample(rng, size)
        return np.where(rng.random(size) < self.probability, inf, times)

    def integrated_quantile(self, survival: Floats) -> Floats:
        return self.run_times.integrated_quantile(survival)


@dataclass(frozen=True)
class Mixture(Distribution):
    """A mixture of distributions: each task draws its run time from one component, chosen at random.

    Parameters
    ----------
    components : sequence of Distribution
        The distributions to choose from.
    weights : sequence of float
        The probability of each component. They must sum to 1.

    Examples
    --------
    >>> fast, slow = ShiftedExponential(1.0, 1.0), ShiftedExponential(9.0, 1.0)
    >>> Mixture([fast, slow], [0.75, 0.25]).mean()
    4.0
    """

    components: tuple[Distribution, ...]
    weights: tuple[float, ...]
    failure_probability: float = field(init=False, repr=False)
    # For each component, the probability that a task that completes is from this component.
    _conditional_weights: tuple[float, ...] = field(init=False, repr=False)

    def __init__(self, components: Any, weights: Any) -> None:
        probabilities = check_probabilities(weights)
        all_components = tuple(components) if isinstance(components, (tuple, list)) else (components,)
        for component in all_components:
            _check_distribution(component)
        if not all_components or probabilities.shape != (len(all_components),):
            raise CodeError(
                f"a mixture must have one weight for each of its {len(all_components)} components, "
                f"got {probabilities.size}"
            )
        if abs(probabilities.sum() - 1) > 1e-9:
            raise CodeError(f"the weights of a mixture must sum to 1, not to {probabilities.sum():g}")
        used_components = [
            (component, probability)
            for component, probability in zip(all_components, probabilities.tolist())
            if probability > 0
        ]
        completion_weights = np.array(
            [probability * (1 - component.failure_probability) for component, probability in used_components]
        )
        failure_probability = float(
            sum(probability * component.failure_probability for component, probability in used_components)
        )
        if not completion_weights.sum() > 0:
            raise CodeError("a mixture must have a component whose tasks can complete")
        for name, value in {
            "components": tuple(component for component, _ in used_components),
            "weights": tuple(probability for _, probability in used_components),
            "failure_probability": failure_probability,
            "_conditional_weights": tuple((completion_weights / completion_weights.sum()).tolist()),
        }.items():
            object.__setattr__(self, name, value)

    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        component_pairs = [component.conditional_cdf_and_survival(times) for component in self.components]
        weighted_pairs = list(zip(self._conditional_weights, component_pairs))
        cdf = sum(weight * pair.cdf for weight, pair in weighted_pairs)
        survival = sum(weight * pair.survival for weight, pair in weighted_pairs)
        return ProbabilityPair(np.asarray(cdf), np.asarray(survival))

    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        """Find the quantiles by bisection between the smallest and largest quantile of the components."""
        quantiles = np.stack([component.conditional_quantile(probabilities) for component in self.components])

        def is_reached(times: Floats) -> Mask:
            """Return whether the probability that a task has completed by `times` is large enough.

            If the cdf is below 0.5, compare cdf values. Otherwise, compare survival values (1 - cdf). The
            smaller of the two is more accurate.
            """
            cdf, survival = probabilities
            reached = self.conditional_cdf_and_survival(times)
            return np.asarray(np.where(cdf < 0.5, reached.cdf >= cdf, reached.survival <= survival))

        low, high = quantiles.min(axis=0), quantiles.max(axis=0)
        return np.where(is_reached(low), low, bisect_predicate(is_reached, low, high))

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        component_indices = rng.choice(len(self.components), size=size, p=self.weights)
        times = np.empty(component_indices.shape)
        for component_index, component in enumerate(self.components):
            component_mask = component_indices == component_index
            times[component_mask] = component.sample(rng, int(component_mask.sum()))
        return times

    def integrated_quantile(self, survival: Floats) -> Floats:
        quantiles = self.conditional_quantile(ProbabilityPair.from_survival(survival))
        weights, components = self._conditional_weights, self.components
        survivals = [component.conditional_cdf_and_survival(quantiles).survival for component in components]
        integrals = sum(
            weight * component.integrated_quantile(component_survival)
            for weight, component, component_survival in zip(weights, components, survivals)
        )
        # If the cdf jumps at a quantile q, P(T > q) may be smaller than the given survival probability s. The
        # integral from P(T > q) to s is missing so far. In this range, the quantile function is constantly q.
        survival_at_quantiles = sum(weight * survival for weight, survival in zip(weights, survivals))
        atom = np.zeros_like(survival)
        finite_mask = np.isfinite(quantiles)
        np.multiply(quantiles, survival - survival_at_quantiles, out=atom, where=finite_mask)
        return np.asarray(integrals + atom)


def with_cold_starts(run_times: Distribution, fraction: float, delay: float) -> Mixture:
    """Return a distribution in which a fraction of the tasks take `delay` seconds longer (a cold start).

    Examples
    --------
    >>> with_cold_starts(ShiftedExponential(1.0, 1.0), 0.5, 4.0).mean()
    4.0
    """
    with trimmed_tracebacks:
        _check_distribution_parameter("fraction", fraction)
        return Mixture([run_times, Scaled(run_times, delay=delay)], [1 - fraction, fraction])


def with_stragglers(run_times: Distribution, fraction: float, factor: float) -> Mixture:
    """Return a distribution in which a fraction of the tasks take `factor` times as long (stragglers).

    Examples
    --------
    >>> round(with_stragglers(ShiftedExponential(1.0, 1.0), 0.02, 5.0).mean(), 12)
    2.16
    """
    with trimmed_tracebacks:
        _check_distribution_parameter("fraction", fraction)
        return Mixture([run_times, Scaled(run_times, factor=factor)], [1 - fraction, fraction])


def bisect_predicate(
    predicate: Callable[[Floats], Mask], low: Floats, high: Floats, max_bisections: int = MAX_BISECTIONS
) -> Floats:
    """Find by bisection where a predicate changes from False to True.

    All entries of the arrays `low` and `high` are processed at once.

    Parameters
    ----------
    predicate : callable
        Called with an array of numbers between `low` and `high`. Must return a boolean array that is False
        for numbers below the result, and True above.
    low, high : arrays of the same shape
        The end points of the search intervals.
    max_bisections : int
        The maximum number of bisection steps.

    Returns
    -------
    array
        The smallest numbers at which the predicate is True.

    Examples
    --------
    >>> bisect_predicate(lambda number: number**2 >= 2, np.array([0.0]), np.array([2.0])).round(6).tolist()
    [1.414214]
    """
    for _ in range(max_bisections):
        midpoint = low / 2 + high / 2
        if not ((low < midpoint) & (midpoint < high)).any():
            break
        true_mask = predicate(midpoint)
        low, high = np.where(true_mask, low, midpoint), np.where(true_mask, midpoint, high)
    return high


# --- validation --------------------------------------------------------------------------------


def check_probabilities(p: npt.ArrayLike) -> Floats:
    """Convert `p` to floats. Raise CodeError unless all values are in [0, 1]."""
    try:
        values = np.asarray(p, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CodeError(f"a probability must be a number from 0 to 1: {error}") from None
    valid_mask = (values >= 0) & (values <= 1)
    if not valid_mask.all():
        raise CodeError(f"a probability must be from 0 to 1, not {values[~valid_mask].flat[0]:g}")
    return values


def check_observations(times: npt.ArrayLike, completed: npt.ArrayLike | None = None) -> tuple[Floats, Mask]:
    """Validate observed run times and convert them to arrays.

    Parameters
    ----------
    times : array-like (m,)
        Run times in seconds; inf for a task that never completes.
    completed : boolean array-like (m,), optional
        False for a task that was still running after that time. By default, all tasks have completed.

    Returns
    -------
    times : array (m,)
        The run times, with values above MAX_SECONDS replaced by inf.
    completed_mask : boolean array (m,)
        Whether each task has completed. False where the time is inf.

    Raises
    ------
    CodeError
        If a time is not a number >= 0, the shapes differ, or no task has completed.
    """
    try:
        checked_times = np.asarray(times, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise CodeError(f"run times must be numbers of seconds: {error}") from None
    if not checked_times.size:
        raise CodeError("run times must not be empty")
    if not (checked_times >= 0).all():
        index = int(np.flatnonzero(~(checked_times >= 0))[0])
        raise CodeError(f"run times must be 0 s or more, but run time {index} is {checked_times[index]:g}")
    completed_mask = np.ones(checked_times.shape, bool)
    if completed is not None:
        completed_mask = np.asarray(completed, bool).ravel()
    if completed_mask.shape != checked_times.shape:
        raise CodeError(
            f"completed must have one entry for each of the {checked_times.size} run times, got "
            f"{completed_mask.size}"
        )
    checked_times = np.where(checked_times > MAX_SECONDS, inf, checked_times)
    completed_mask = completed_mask & np.isfinite(checked_times)
    if not completed_mask.any():
        raise CodeError("at least one observed task must have completed to estimate run times, but none has")
    return checked_times, completed_mask


def _check_distribution_parameter(name: str, value: float, is_positive: bool = False) -> None:
    if not is_real_number(value) or not 0 <= float(value) <= MAX_SECONDS or (is_positive and value == 0):
        bound_text = "above" if is_positive else "of at least"
        raise CodeError(
            f"{name} must be a finite number {bound_text} 0, at most {MAX_SECONDS:g}, not {value!r}"
        )


def _check_distribution(distribution: Distribution) -> None:
    if not isinstance(distribution, Distribution):
        raise CodeError(
            f"run_times must be a Distribution, not {type(distribution).__name__}. Use Empirical(seconds) "
            "for observed run times"
        )


def _estimate_exponential_scale(times: Floats, completed_mask: Mask, parameter_name: str) -> float:
    """Return the maximum-likelihood estimate of the scale of a shifted exponential distribution.

    `times` are run times in seconds. `completed_mask` is False for tasks that were still running after that
    time (right-censored). `parameter_name` is what error messages call the scale.
    """
    total_excess = float(np.maximum(times - times[completed_mask].min(), 0.0).sum())
    if total_excess == inf:
        raise CodeError(
            f"{parameter_name} cannot be fitted to tasks that never complete. Leave them out and use "
            "FailureProne"
        )
    if not total_excess > 0:
        raise CodeError(f"{parameter_name} cannot be fitted: all run times are equal")
    return total_excess / int(completed_mask.sum())


def _compute_cumulative_hazard(probabilities: ProbabilityPair) -> Floats:
    """Return the cumulative hazard, -log(survival), with full accuracy where the survival is close to 1."""
    cdf, survival = probabilities
    with np.errstate(divide="ignore"):
        return np.where(cdf < 0.5, -np.log1p(-np.minimum(cdf, 0.5)), -np.log(survival))
