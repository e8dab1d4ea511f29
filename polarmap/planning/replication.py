"""Compute the completion time of jobs that run several copies of every task, in closed form.

Of the copies of a task the others are stopped the moment the first returns, the cheapest accounting there is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.quadrature import compute_cell_widths, compute_expected_run_time, make_full_logit_grid


class ReplicatedJob(NamedTuple):
    """Tasks with so many copies each: P(T <= t) = (1 - P(one is out at t)^copies)^tasks."""

    n_tasks: int
    n_copies: int
    run_times: Distribution

    @property
    def failure_probability(self) -> float:
        """Probability that all copies of a task never end."""
        return float(-np.expm1(self.n_tasks * np.log1p(-(self.run_times.failure_probability**self.n_copies))))

    def quantile(self, p: Floats) -> Floats:
        """The time by which the job is complete with probability `p`.

        >>> from polarmap.planning.distributions import ShiftedExponential
        >>> ReplicatedJob(1, 2, ShiftedExponential(0.0, 1.0)).quantile(np.array([0.5])).round(6).tolist()
        [0.346574]
        """
        cdf, survival = self._convert_job_to_copy_probabilities(p, 1 - p)
        return self.run_times.quantile_from_cdf_and_survival(cdf, survival)

    def mean(self) -> float:
        """Expected seconds until all tasks have a result, of the jobs in which all of them do."""
        cdf, survival = make_full_logit_grid()
        failure_probability = self.failure_probability
        copy_probabilities = self._convert_job_to_copy_probabilities(
            (1 - failure_probability) * cdf, failure_probability + (1 - failure_probability) * survival
        )
        conditional = self.run_times.condition_on_completion(*copy_probabilities)
        return compute_expected_run_time(self.run_times, compute_cell_widths(cdf, survival), *conditional)

    def _convert_job_to_copy_probabilities(
        self, job_cdf: Floats, job_survival: Floats
    ) -> tuple[Floats, Floats]:
        """Shares of the copies that have ended, and not, where `job_cdf` of the jobs have."""
        with np.errstate(divide="ignore"):
            log_job_cdf = np.where(job_cdf < 0.5, np.log(job_cdf), np.log1p(-np.minimum(job_survival, 0.5)))
            log_copy_survival = np.log(-np.expm1(log_job_cdf / self.n_tasks)) / self.n_copies
        return -np.expm1(log_copy_survival), np.exp(log_copy_survival)
