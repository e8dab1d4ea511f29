"""Distributions of the run time of a task: how long it takes, and whether it ever ends.

Times are in seconds, or in any other unit as long as it is the same everywhere. A distribution is
split into the probability that a task never ends and the distribution of the tasks that end. The
latter is given by three functions of the pair (below, above) of its cdf and 1 - cdf: both are carried,
because the largest of thousands of tasks lives where one of the two is far below eps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.codes.checks import is_number
from polarmap.errors import CodeError, without_our_frames

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LONGEST = 1e100  # seconds: who is not back by then never is
BISECTIONS = 64  # halvings of a bracket of double precision, down to its last bit


class Distribution(ABC):
    """A distribution of run times."""

    failure_probability: float = 0.0  # that a task never ends

    # -- the distribution of the tasks that end ------------------------------------------------------

    @abstractmethod
    def split(self, times: Floats) -> tuple[Floats, Floats]:
        """P(T <= t) and P(T > t) of the tasks that end, each with full relative accuracy."""

    @abstractmethod
    def inverse(self, below: Floats, above: Floats) -> Floats:
        """The time by which a share `below` = 1 - `above` of the tasks that end has ended."""

    @abstractmethod
    def area(self, above: Floats) -> Floats:
        """An antiderivative, in `above`, of the quantile as a function of 1 - cdf, in closed form.

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
        return (1 - self.failure_probability) * self.split(np.asarray(times, float))[0]

    def survival(self, times: npt.ArrayLike) -> Floats:
        """P(T > t): the probability that a worker is still out, its erasure probability at t."""
        return (
            self.failure_probability
            + (1 - self.failure_probability) * self.split(np.asarray(times, float))[1]
        )

    def quantile(self, p: npt.ArrayLike) -> Floats:
        """The smallest t with P(T <= t) >= p; inf above 1 - failure_probability.

        Examples
        --------
        >>> Failing(ShiftedExponential(1.0, 1.0), 0.1).quantile([0.0, 0.45, 0.95]).round(4).tolist()
        [1.0, 1.6931, inf]
        """
        share = checked_probabilities(p)
        return self.time_of(share, 1 - share)

    def time_of(self, below: Floats, above: Floats) -> Floats:
        """The time by which a share `below` = 1 - `above` of all tasks has ended; inf if fewer ever do."""
        return np.where(
            below > 1 - self.failure_probability, inf, self.inverse(*self.among_ended(below, above))
        )

    def among_ended(self, below: Floats, above: Floats) -> tuple[Floats, Floats]:
        """Shares of the tasks that end, from those of all tasks; `below` is at most all that do."""
        failing = self.failure_probability
        if failing == 1:
            return np.zeros_like(below), np.ones_like(above)
        ends = 1 - failing
        # Where all that end have ended, rounding would leave something of `above`.
        left = np.where(below < ends, above - failing, 0.0) if failing else above
        return np.minimum(below / ends, 1.0), np.maximum(left / ends, 0.0)

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        """Independent run times; inf for a task that never ends."""
        uniform = rng.random(size)
        times = self.inverse(uniform, 1 - uniform)
        if self.failure_probability:
            times = np.where(rng.random(size) < self.failure_probability, inf, times)
        return times

    def mean(self) -> float:
        """The expected run time; inf if a task may never end, or where no mean exists.

        Examples
        --------
        >>> ShiftedExponential(1.0, 2.0).mean(), Pareto(1.0, 2.0).mean(), Pareto(1.0, 1.0).mean()
        (3.0, 2.0, inf)
        """
        return inf if self.failure_probability else self.mean_if_ended()

    def mean_if_ended(self) -> float:
        """The expected run time of the tasks that end."""
        whole, none = self.area(np.array([1.0, 0.0])).tolist()
        return float(whole - none)


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
        _check_number("shift", self.shift)
        _check_number("scale", self.scale, positive=True)

    @classmethod
    def fit(cls, times: npt.ArrayLike, ended: npt.ArrayLike | None = None) -> ShiftedExponential:
        """Maximum likelihood, also from tasks seen to run for `times` and not `ended` by then.

        Examples
        --------
        >>> ShiftedExponential.fit([1.0, 2.0, 3.0], ended=[True, True, False])
        ShiftedExponential(shift=1.0, scale=1.5)
        """
        seen, done = checked_observations(times, ended)
        return cls(float(seen[done].min()), _mean_excess(seen, done, "the scale of an exponential"))

    def split(self, times: Floats) -> tuple[Floats, Floats]:
        reduced = np.maximum(times - self.shift, 0.0) / self.scale
        return -np.expm1(-reduced), np.exp(-reduced)

    def inverse(self, below: Floats, above: Floats) -> Floats:
        return self.shift + self.scale * _minus_log(below, above)

    def area(self, above: Floats) -> Floats:
        logarithm = np.log(above, out=np.zeros_like(above), where=above > 0)
        return above * (self.shift + self.scale * (1 - logarithm))


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
        _check_number("scale", self.scale, positive=True)
        _check_number("shape", self.shape, positive=True)

    @classmethod
    def fit(cls, times: npt.ArrayLike, ended: npt.ArrayLike | None = None) -> Pareto:
        """Maximum likelihood (Hill), also from tasks not `ended` by their `times`.

        Examples
        --------
        >>> Pareto.fit([1.0, np.e, np.e**2])
        Pareto(scale=1.0, shape=1.0)
        """
        seen, done = checked_observations(times, ended)
        scale = float(seen[done].min())
        if scale <= 0:
            raise CodeError("a Pareto distribution has no run time of 0")
        logarithms = np.log(np.maximum(seen, scale))
        return cls(scale, 1 / _mean_excess(logarithms, done, "the shape of a Pareto distribution"))

    def split(self, times: Floats) -> tuple[Floats, Floats]:
        exponent = self.shape * np.log(np.maximum(times, self.scale) / self.scale)
        return -np.expm1(-exponent), np.exp(-exponent)

    def inverse(self, below: Floats, above: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return self.scale * np.exp(_minus_log(below, above) / self.shape)

    def area(self, above: Floats) -> Floats:
        power = 1 - 1 / self.shape
        with np.errstate(divide="ignore", over="ignore"):
            if power == 0:
                return self.scale * np.log(above)
            return self.scale * above**power / power


@dataclass(frozen=True)
class Scaled(Distribution):
    """delay + factor T: the same tasks on a slower machine, or after a cold start.

    Examples
    --------
    >>> Scaled(ShiftedExponential(1.0, 1.0), factor=5.0, delay=2.0).mean()
    12.0
    """

    runtimes: Distribution
    factor: float = 1.0
    delay: float = 0.0
    failure_probability: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_distribution(self.runtimes)
        _check_number("factor", self.factor, positive=True)
        _check_number("delay", self.delay)
        object.__setattr__(self, "failure_probability", self.runtimes.failure_probability)

    def split(self, times: Floats) -> tuple[Floats, Floats]:
        return self.runtimes.split((times - self.delay) / self.factor)

    def inverse(self, below: Floats, above: Floats) -> Floats:
        return self.delay + self.factor * self.runtimes.inverse(below, above)

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        return self.delay + self.factor * self.runtimes.sample(rng, size)

    def area(self, above: Floats) -> Floats:
        return self.delay * above + self.factor * self.runtimes.area(above)


@dataclass(frozen=True)
class Failing(Distribution):
    """Tasks that never end with a probability, and else run as `runtimes`.

    Examples
    --------
    >>> Failing(ShiftedExponential(1.0, 1.0), 0.01).survival(1e9).round(12)
    np.float64(0.01)
    """

    runtimes: Distribution
    probability: float
    failure_probability: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_distribution(self.runtimes)
        share = checked_probabilities(self.probability)
        if share.ndim:
            raise CodeError(f"tasks fail with one probability, not with {share.size}")
        failing = float(share)
        object.__setattr__(
            self, "failure_probability", failing + (1 - failing) * self.runtimes.failure_probability
        )

    def split(self, times: Floats) -> tuple[Floats, Floats]:
        return self.runtimes.split(times)

    def inverse(self, below: Floats, above: Floats) -> Floats:
        return self.runtimes.inverse(below, above)

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        times = self.runtimes.sample(rng, size)
        return np.where(rng.random(size) < self.probability, inf, times)

    def area(self, above: Floats) -> Floats:
        return self.runtimes.area(above)


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
    _shares: tuple[float, ...] = field(init=False, repr=False)  # among the tasks that end

    def __init__(self, components: Any, weights: Any) -> None:
        shares = checked_probabilities(weights)
        parts = tuple(components) if isinstance(components, (tuple, list)) else (components,)
        for part in parts:
            _check_distribution(part)
        if not parts or shares.shape != (len(parts),):
            raise CodeError(
                f"a mixture needs one weight for each component, not {shares.size} for {len(parts)}"
            )
        if abs(shares.sum() - 1) > 1e-9:
            raise CodeError(f"the weights of a mixture sum to 1, not to {shares.sum():g}")
        used = [(part, share) for part, share in zip(parts, shares.tolist()) if share > 0]
        ending = np.array([share * (1 - part.failure_probability) for part, share in used])
        failing = float(sum(share * part.failure_probability for part, share in used))
        if not ending.sum() > 0:
            raise CodeError("no component of this mixture ever ends")
        for name, value in {
            "components": tuple(part for part, _ in used),
            "weights": tuple(share for _, share in used),
            "failure_probability": failing,
            "_shares": tuple((ending / ending.sum()).tolist()),
        }.items():
            object.__setattr__(self, name, value)

    def split(self, times: Floats) -> tuple[Floats, Floats]:
        parts = [part.split(times) for part in self.components]
        below = sum(share * part[0] for share, part in zip(self._shares, parts))
        above = sum(share * part[1] for share, part in zip(self._shares, parts))
        return np.asarray(below), np.asarray(above)

    def inverse(self, below: Floats, above: Floats) -> Floats:
        """By bisection between the components' quantiles, which bracket it."""
        parts = np.stack([part.inverse(below, above) for part in self.components])

        def is_reached(times: Floats) -> Mask:
            """Whether the quantile is at most `times`, asked in the half that is accurate."""
            is_below, is_above = self.split(times)
            return np.asarray(np.where(below < 0.5, is_below >= below, is_above <= above))

        low, high = parts.min(axis=0), parts.max(axis=0)
        return np.where(is_reached(low), low, first_reached(is_reached, low, high))

    def sample(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        drawn = rng.choice(len(self.components), size=size, p=self.weights)
        times = np.empty(drawn.shape)
        for index, part in enumerate(self.components):
            times[drawn == index] = part.sample(rng, int((drawn == index).sum()))
        return times

    def area(self, above: Floats) -> Floats:
        times = self.inverse(1 - above, above)
        reached = [part.split(times)[1] for part in self.components]
        areas = sum(
            share * part.area(there) for share, part, there in zip(self._shares, self.components, reached)
        )
        # Where the distribution has a step at `times`, part of it belongs to this side.
        rest = above - sum(share * there for share, there in zip(self._shares, reached))
        step = np.multiply(times, rest, out=np.zeros_like(above), where=np.isfinite(times))
        return np.asarray(areas + step)


def cold_starts(runtimes: Distribution, share: float, delay: float) -> Mixture:
    """A share of the tasks waits `delay` seconds for its machine before it runs.

    Examples
    --------
    >>> cold_starts(ShiftedExponential(1.0, 1.0), 0.5, 4.0).mean()
    4.0
    """
    with without_our_frames:
        _check_number("share", share)
        return Mixture([runtimes, Scaled(runtimes, delay=delay)], [1 - share, share])


def stragglers(runtimes: Distribution, share: float, factor: float) -> Mixture:
    """A share of the tasks takes `factor` times as long.

    Examples
    --------
    >>> round(stragglers(ShiftedExponential(1.0, 1.0), 0.02, 5.0).mean(), 12)
    2.16
    """
    with without_our_frames:
        _check_number("share", share)
        return Mixture([runtimes, Scaled(runtimes, factor=factor)], [1 - share, share])


def first_reached(
    is_reached: Callable[[Floats], Mask], low: Floats, high: Floats, halvings: int = BISECTIONS
) -> Floats:
    """The least numbers above `low` at which a condition holds that holds from there to `high`, by bisection.

    >>> first_reached(lambda number: number**2 >= 2, np.array([0.0]), np.array([2.0])).round(6).tolist()
    [1.414214]
    """
    for _ in range(halvings):
        middle = low / 2 + high / 2
        if not ((low < middle) & (middle < high)).any():
            break
        reached = is_reached(middle)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high


# --- what is accepted --------------------------------------------------------------------------


def checked_probabilities(p: npt.ArrayLike) -> Floats:
    """`p` as floats, all of them in [0, 1]."""
    try:
        values = np.asarray(p, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CodeError(f"a probability is a number between 0 and 1: {error}") from None
    if not ((values >= 0) & (values <= 1)).all():
        wrong = values[~((values >= 0) & (values <= 1))].flat[0]
        raise CodeError(f"a probability lies between 0 and 1, not at {wrong:g}")
    return values


def checked_observations(times: npt.ArrayLike, ended: npt.ArrayLike | None = None) -> tuple[Floats, Mask]:
    """Run times (m,) and whether the tasks ended then; inf is a task that never ends."""
    try:
        seen = np.asarray(times, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise CodeError(f"run times are numbers of seconds: {error}") from None
    if not seen.size:
        raise CodeError("no run times given")
    if not (seen >= 0).all():
        index = int(np.flatnonzero(~(seen >= 0))[0])
        raise CodeError(f"run time {index} is {seen[index]:g}; a run time is 0 or more seconds")
    done = np.ones(seen.shape, bool) if ended is None else np.asarray(ended, bool).ravel()
    if done.shape != seen.shape:
        raise CodeError(f"{done.size} marks of what ended for {seen.size} run times")
    seen = np.where(seen > LONGEST, inf, seen)
    done = done & np.isfinite(seen)
    if not done.any():
        raise CodeError("none of the tasks observed has ended: nothing is known of how long they take")
    return seen, done


def _check_number(name: str, value: float, positive: bool = False) -> None:
    if not is_number(value) or not 0 <= float(value) <= LONGEST or (positive and value == 0):
        least = "above" if positive else "of at least"
        raise CodeError(f"{name} must be a finite number {least} 0, at most {LONGEST:g}, not {value!r}")


def _check_distribution(runtimes: Distribution) -> None:
    if not isinstance(runtimes, Distribution):
        raise CodeError(f"runtimes must be a Distribution, not {type(runtimes).__name__}: see Empirical")


def _mean_excess(seen: Floats, done: Mask, what: str) -> float:
    """What was seen beyond the least that ended, for each that ended: the scale of an exponential."""
    excess = float(np.maximum(seen - seen[done].min(), 0.0).sum())
    if excess == inf:
        raise CodeError(f"{what} cannot be fitted to tasks that never end: leave them out and use Failing")
    if not excess > 0:
        raise CodeError(f"{what} cannot be fitted: all run times are the same")
    return excess / int(done.sum())


def _minus_log(below: Floats, above: Floats) -> Floats:
    """-log(above), accurate at both ends."""
    with np.errstate(divide="ignore"):
        return np.where(below < 0.5, -np.log1p(-np.minimum(below, 0.5)), -np.log(above))
