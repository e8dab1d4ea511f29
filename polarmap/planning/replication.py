"""The completion time of jobs that run several copies of each task, by formulas.

When the first copy of a task returns, the other copies are assumed to stop immediately. So the cost is the
lowest that replication can have.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.probability_pair import ProbabilityPair
from polarmap.planning.quadrature import compute_cell_widths, compute_expected_run_time, make_full_logit_grid


class ReplicatedJob(NamedTuple):
    """A job that runs several copies of each task and uses the first result of each.

    The probability that the job has completed by time t is (1 - P(T > t)^n_copies)^n_tasks.

    Attributes
    ----------
    n_tasks : int
        The number of distinct tasks.
    n_copies : int
        The number of copies of each task.
    run_times : Distribution
        The run time T of one copy.
    """

    n_tasks: int
    n_copies: int
    run_times: Distribution

    @property
    def failure_probability(self) -> float:
        """The probability that the job never completes, because all copies of some task fail."""
        return float(-np.expm1(self.n_tasks * np.log1p(-(self.run_times.failure_probability**self.n_copies))))

    def quantile(self, p: Floats) -> Floats:
        """Return the quantiles of the job's completion time for probabilities `p`.

        >>> from polarmap.planning.distributions import ShiftedExponential
        >>> ReplicatedJob(1, 2, ShiftedExponential(0.0, 1.0)).quantile(np.array([0.5])).round(6).tolist()
        [0.346574]
        """
        job_probabilities = ProbabilityPair.from_cdf(p)
        return self.run_times.quantile_at(self._convert_job_to_copy_probabilities(job_probabilities))

    def mean(self) -> float:
        """Return the expected completion time in seconds, given that the job completes."""
        nodes = make_full_logit_grid()
        all_jobs = nodes.of_all_tasks(self.failure_probability)
        all_copies = self._convert_job_to_copy_probabilities(all_jobs)
        copy_nodes = all_copies.given_completion(self.run_times.failure_probability)
        return compute_expected_run_time(self.run_times, compute_cell_widths(nodes), copy_nodes)

    def _convert_job_to_copy_probabilities(self, job_probabilities: ProbabilityPair) -> ProbabilityPair:
        """Return the probability that a single copy has completed, given that of the whole job.

        Both refer to the same time. This inverts the formula in the docstring of the class.
        """
        job_cdf, job_survival = job_probabilities
        with np.errstate(divide="ignore"):
            log_job_cdf = np.where(job_cdf < 0.5, np.log(job_cdf), np.log1p(-np.minimum(job_survival, 0.5)))
            log_copy_survival = np.log(-np.expm1(log_job_cdf / self.n_tasks)) / self.n_copies
        return ProbabilityPair(-np.expm1(log_copy_survival), np.exp(log_copy_survival))
