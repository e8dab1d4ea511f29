"""A type that stores a probability together with its complement, so that neither of them loses digits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polarmap.dtypes import Floats


class ProbabilityPair(NamedTuple):
    """The probabilities that a task has and has not completed by given times, as two arrays.

    They add up to 1. Both are stored because 1 - cdf loses digits where the cdf is close to 1, and the run
    time of the slowest among thousands of tasks depends on these digits. A pair describes either all tasks or
    only the tasks that complete. `given_completion` and `of_all_tasks` convert between the two.

    Attributes
    ----------
    cdf : array
        The probability that a task has completed.
    survival : array
        The probability that a task has not completed: 1 - cdf.

    Examples
    --------
    >>> all_tasks = ProbabilityPair.from_cdf(np.array([0.0, 0.45, 0.9]))
    >>> given_completion = all_tasks.given_completion(failure_probability=0.1)
    >>> given_completion.cdf.round(3).tolist(), given_completion.survival.round(3).tolist()
    ([0.0, 0.5, 1.0], [1.0, 0.5, 0.0])
    """

    cdf: Floats
    survival: Floats

    @classmethod
    def from_cdf(cls, cdf: Floats) -> ProbabilityPair:
        """Create a pair from a cdf. The survival function is 1 - cdf, which may lose digits."""
        return cls(cdf, 1 - cdf)

    @classmethod
    def from_survival(cls, survival: Floats) -> ProbabilityPair:
        """Create a pair from a survival function. The cdf is 1 - survival, which may lose digits."""
        return cls(1 - survival, survival)

    def given_completion(self, failure_probability: float) -> ProbabilityPair:
        """Convert the probabilities of all tasks to probabilities among the tasks that complete.

        Parameters
        ----------
        failure_probability : float
            The probability that a task never completes. A cdf above 1 - failure_probability becomes 1.
        """
        if failure_probability == 1:
            return ProbabilityPair(np.zeros_like(self.cdf), np.ones_like(self.survival))
        completion_probability, survival = 1 - failure_probability, self.survival
        if failure_probability:
            # Once every task that ever completes has completed, the survival is 0, and the difference below
            # would be a mere rounding error.
            has_unfinished = self.cdf < completion_probability
            survival = np.where(has_unfinished, survival - failure_probability, 0.0)
        conditional_cdf = np.minimum(self.cdf / completion_probability, 1.0)
        return ProbabilityPair(conditional_cdf, np.maximum(survival / completion_probability, 0.0))

    def of_all_tasks(self, failure_probability: float) -> ProbabilityPair:
        """Convert the probabilities among the tasks that complete to probabilities of all tasks.

        Parameters
        ----------
        failure_probability : float
            The probability that a task never completes.
        """
        completion_probability = 1 - failure_probability
        survival = failure_probability + completion_probability * self.survival
        return ProbabilityPair(completion_probability * self.cdf, survival)
