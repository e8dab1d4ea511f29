"""Distributions of the run time of a task: how long it takes, and whether it ever ends.

Times are in seconds, or in any other unit as long as it is the same everywhere. A distribution is
split into the probability that a task never ends and the distribution of the tasks that end. The
latter is given by three functions, of which two return or take a `ProbabilityPair`.
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

MAX_SECONDS = 1e100  # seconds: who is not back by then never is
MAX_BISECTIONS = 64  # halvings of a bracket of double precision, down to its last bit


class Distribution(ABC):
    """A distribution of run times."""

    failure_probability: float = 0.0  # that a task never ends

    # -- the distribution of the tasks that end ------------------------------------------------------

    @abstractmethod
    def conditional_cdf_and_survival(self, times: Floats) -> ProbabilityPair:
        """Return P(T <= t) and P(T > t) of the tasks that end, each with full relative accuracy."""

    @abstractmethod
    def conditional_quantile(self, probabilities: ProbabilityPair) -> Floats:
        """Return the times by which tasks have ended with these probabilities, of the tasks that end."""

    @abstractmethod
    def integrated_quantile(self, survival: Floats) -> Floats:
        """An antiderivative, in `survival`, of the quantile as a function of 1 - cdf, in closed form.

        Means of order statistics are summed from it, without a grid error at steps.
        """

    # -- the whole distribution ----------------------------------------------------------------------

    def cdf(self, times: npt.ArrayLike) -> Floats:
        """P(T <= t), in the shape of `times`; at most 1 - failure_probability.

        Examples
        --------
        >>> ShiftedExponential(1.0, 2.0).cdf([0.0, 1.0, 3.0]).round(4).tolist()
        [0.0, 0.0, 0.6321]
        """
        return self.cdf_and_survival(times).cdf

    def survival(self, times: npt.ArrayLike) -> Floats:
        """P(T > t): the probability that a worker is still out, its erasure probability at t."""
        return self.cdf_and_survival(times).survival

    def cdf_and_survival(self, times: npt.ArrayLike) -> ProbabilityPair:
        """Return P(T <= t) and P(T > t), in the shape of `times`, each with full relative accuracy."""
        conditional = self.conditional_cdf_and_survival(np.asarray(times, float))
        return conditional.of_all_tasks(self.failure_probability)

    def quantile(self, p: npt.ArrayLike) -> Floats:
        """The smallest t with P(T <= t) >= p; inf above 1 - failure_probability.

        Examples
        --------
        >>> FailureProne(ShiftedExponential(1.0, 1.0), 0.1).quantile([0.0, 0.45, 0.95]).round(4).tolist()
        [1.0, 1.6931, inf]
        """
        return self.quantile_at(ProbabilityPair.from_cdf(check_probabilities(p)))

    def quantile_at(self, probabilities: ProbabilityPair) -> Floats:
        """Return the times by which all tasks have ended with these probabilities; inf if fewer ever do."""
        quantiles = self.conditional_quantile(probabilities.given_completion(self.failure_probability))
        return np.where(probabilities.cdf > 1 - self.failure_probability, inf, quantiles)

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the times by which a fraction `p` of the tasks that end has ended."""
        return self.conditional_quantile(ProbabilityPair.from_cdf(p))

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        """Independent run times; inf for a task that never ends."""
        run_times = self.quantile_given_completion(rng.random(size))
        if self.failure_probability:
            run_times = np.where(rng.random(size) < self.failure_probability, inf, run_times)
        return run_times

    def mean(self) -> float:
        """The expected run time; inf if a task may never end, or where no mean exists.

        Examples
        --------
        >>> ShiftedExponential(1.0, 2.0).mean(), Pareto(1.0, 2.0).mean(), Pareto(1.0, 1.0).mean()
        (3.0, 2.0, inf)
        """
        return inf if self.failure_probability else self.conditional_mean()

    def conditional_mean(self) -> float:
        """The expected run time of the tasks that end."""
        value_at_one, value_at_zero = self.integrated_quantile(np.array([1.0, 0.0])).tolist()
        return float(value_at_one - value_at_zero)


@dataclass(frozen=True)
class ShiftedExponential(Distribution):
    """shift + scale Exp(1): the usual model of stragglers (Lee et al., arXiv 1512.02673).

    Parameters
    ----------
    shift : float
        The least a task takes, in seconds.
    scale : float
        Mean of what comes on top, in seconds.

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
        """Maximum likelihood, also from tasks seen to run for `times` and not `completed` by then.

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
    """P(T > t) = (scale / t)^shape for t >= scale: heavy tails.

    Parameters
    ----------
    scale : float
        The least a task takes, in seconds.
    shape : float
        The tail; the mean is infinite for a shape of 1 or less.
    """

    scale: float
    shape: float

    def __post_init__(self) -> None:
        _check_distribution_parameter("scale", self.scale, is_positive=True)
        _check_distribution_parameter("shape", self.shape, is_positive=True)

    @classmethod
    def fit(cls, times: npt.ArrayLike, completed: npt.ArrayLike | None = None) -> Pareto:
        """Maximum likelihood (Hill), also from tasks not `completed` by their `times`.

        Examples
        --------
        >>> Pareto.fit([1.0, np.e, np.e**2])
        Pareto(scale=1.0, shape=1.0)
        """
        checked_times, completed_mask = check_observations(times, completed)
        scale = float(checked_times[completed_mask].min())
        if scale <= 0:
            raise CodeError("a Pareto distribution has no run time of 0")
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
    """delay + factor T: the same tasks on a slower machine, or after a cold start.

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
    """Tasks that never end with a probability, and else run as `run_times`.

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
            raise CodeError(f"tasks fail with one probability, not with {probabilities.size}")
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
    """Each task follows one of several distributions, drawn with given probabilities.

    Parameters
    ----------
    components : sequence of Distribution
    weights : sequence of float
        Their probabilities; they sum to one.

    Examples
    --------
    >>> fast, slow = ShiftedExponential(1.0, 1.0), ShiftedExponential(9.0, 1.0)
    >>> Mixture([fast, slow], [0.75, 0.25]).mean()
    4.0
    """

    components: tuple[Distribution, ...]
    weights: tuple[float, ...]
    failure_probability: float = field(init=False, repr=False)
    _conditional_weights: tuple[float, ...] = field(init=False, repr=False)  # among the tasks that end

    def __init__(self, components: Any, weights: Any) -> None:
        probabilities = check_probabilities(weights)
        all_components = tuple(components) if isinstance(components, (tuple, list)) else (components,)
        for component in all_components:
            _check_distribution(component)
        if not all_components or probabilities.shape != (len(all_components),):
            raise CodeError(
                f"a mixture needs one weight for each component, not {probabilities.size} for "
                f"{len(all_components)}"
            )
        if abs(probabilities.sum() - 1) > 1e-9:
            raise CodeError(f"the weights of a mixture sum to 1, not to {probabilities.sum():g}")
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
            raise CodeError("no component of this mixture ever ends")
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
        """Bisect between the quantiles of the components, which bracket that of the mixture."""
        quantiles = np.stack([component.conditional_quantile(probabilities) for component in self.components])

        def is_reached(times: Floats) -> Mask:
            """Return whether the quantile is at most `times`, by the half of the pair that is accurate."""
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
        # Where the distribution has a step at `quantiles`, part of it belongs to this side.
        survival_at_quantiles = sum(weight * survival for weight, survival in zip(weights, survivals))
        atom = np.zeros_like(survival)
        finite_mask = np.isfinite(quantiles)
        np.multiply(quantiles, survival - survival_at_quantiles, out=atom, where=finite_mask)
        return np.asarray(integrals + atom)


def with_cold_starts(run_times: Distribution, fraction: float, delay: float) -> Mixture:
    """A share of the tasks waits `delay` seconds for its machine before it runs.

    Examples
    --------
    >>> with_cold_starts(ShiftedExponential(1.0, 1.0), 0.5, 4.0).mean()
    4.0
    """
    with trimmed_tracebacks:
        _check_distribution_parameter("fraction", fraction)
        return Mixture([run_times, Scaled(run_times, delay=delay)], [1 - fraction, fraction])


def with_stragglers(run_times: Distribution, fraction: float, factor: float) -> Mixture:
    """A share of the tasks takes `factor` times as long.

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
    """The least numbers above `low` at which a condition holds that holds from there to `high`, by bisection.

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


# --- what is accepted --------------------------------------------------------------------------


def check_probabilities(p: npt.ArrayLike) -> Floats:
    """`p` as floats, all of them in [0, 1]."""
    try:
        values = np.asarray(p, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CodeError(f"a probability is a number between 0 and 1: {error}") from None
    valid_mask = (values >= 0) & (values <= 1)
    if not valid_mask.all():
        raise CodeError(f"a probability lies between 0 and 1, not at {values[~valid_mask].flat[0]:g}")
    return values


def check_observations(times: npt.ArrayLike, completed: npt.ArrayLike | None = None) -> tuple[Floats, Mask]:
    """Run times (m,) and whether the tasks ended then; inf is a task that never ends."""
    try:
        checked_times = np.asarray(times, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise CodeError(f"run times are numbers of seconds: {error}") from None
    if not checked_times.size:
        raise CodeError("no run times given")
    if not (checked_times >= 0).all():
        index = int(np.flatnonzero(~(checked_times >= 0))[0])
        raise CodeError(f"run time {index} is {checked_times[index]:g}; a run time is 0 or more seconds")
    completed_mask = np.ones(checked_times.shape, bool)
    if completed is not None:
        completed_mask = np.asarray(completed, bool).ravel()
    if completed_mask.shape != checked_times.shape:
        raise CodeError(f"{completed_mask.size} marks of what ended for {checked_times.size} run times")
    checked_times = np.where(checked_times > MAX_SECONDS, inf, checked_times)
    completed_mask = completed_mask & np.isfinite(checked_times)
    if not completed_mask.any():
        raise CodeError("none of the tasks observed has ended: nothing is known of how long they take")
    return checked_times, completed_mask


def _check_distribution_parameter(name: str, value: float, is_positive: bool = False) -> None:
    if not is_real_number(value) or not 0 <= float(value) <= MAX_SECONDS or (is_positive and value == 0):
        bound_text = "above" if is_positive else "of at least"
        raise CodeError(
            f"{name} must be a finite number {bound_text} 0, at most {MAX_SECONDS:g}, not {value!r}"
        )


def _check_distribution(distribution: Distribution) -> None:
    if not isinstance(distribution, Distribution):
        raise CodeError(f"run_times must be a Distribution, not {type(distribution).__name__}: see Empirical")


def _estimate_exponential_scale(times: Floats, completed_mask: Mask, parameter_name: str) -> float:
    """What was seen beyond the least that ended, for each that ended: the scale of an exponential."""
    total_excess = float(np.maximum(times - times[completed_mask].min(), 0.0).sum())
    if total_excess == inf:
        raise CodeError(
            f"{parameter_name} cannot be fitted to tasks that never end: leave them out and use FailureProne"
        )
    if not total_excess > 0:
        raise CodeError(f"{parameter_name} cannot be fitted: all run times are the same")
    return total_excess / int(completed_mask.sum())


def _compute_cumulative_hazard(probabilities: ProbabilityPair) -> Floats:
    """Return -log(survival), accurate at both ends."""
    cdf, survival = probabilities
    with np.errstate(divide="ignore"):
        return np.where(cdf < 0.5, -np.log1p(-np.minimum(cdf, 0.5)), -np.log(survival))
