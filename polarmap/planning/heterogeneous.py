"""Planning for workers that differ in speed: which of them to use, and when a job completes.

The results of fast workers tend to arrive first, so the order of arrival is not random. Completion times are
therefore simulated, not computed by a formula. The workers and the code are chosen for a target time: the
time at which as many tasks are expected to have completed as the job needs. For this time, the probability
that a result is still missing is computed for each worker, and `PolarCode(erasure=)` is designed for these
probabilities.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import inf, isfinite
from typing import NamedTuple, TypeGuard

import numpy as np

from polarmap.codes.polar import PolarCode, get_design_erasure_fraction
from polarmap.dtypes import Indices
from polarmap.errors import CodeError
from polarmap.planning.decodability import ARIKAN_SCHEMES, compute_decoding_times, get_decoder_name
from polarmap.planning.distributions import MAX_SECONDS, Distribution, Floats, Mixture, bisect_predicate
from polarmap.planning.simulation.jobs import SimulatedJobs

CODE_SCHEMES = ("uncoded", "mds", "rotation", *ARIKAN_SCHEMES)
# At least this many jobs are simulated, even if the user asks for fewer. This does not apply to schemes for
# which a linear system must be solved for each job, because this takes much longer.
MIN_JOBS = 2000


class WorkerSelection(NamedTuple):
    """The workers that were selected for a job.

    Attributes
    ----------
    worker_indices : index array (n,)
        The indices of the selected workers, in ascending order.
    erasure_probabilities : array (n,)
        For each selected worker, the probability that its result is still missing at the time by which the
        job is expected to be complete.
    """

    worker_indices: Indices
    erasure_probabilities: Floats


def _is_hashable(value: object) -> bool:
    """Return whether a distribution is hashable. User-defined classes may not be."""
    return isinstance(value, Hashable)


class HeterogeneousWorkers:
    """Workers that may differ in speed, each with its own run-time distribution.

    Parameters
    ----------
    distributions : sequence of Distribution
        The run-time distribution of each of the m workers. Workers with equal distributions are grouped, so
        that each distinct distribution is evaluated only once.
    """

    def __init__(self, distributions: Sequence[Distribution]) -> None:
        keys: list[object] = [
            distribution if _is_hashable(distribution) else id(distribution) for distribution in distributions
        ]
        self._distinct_distributions = list(dict(zip(keys, distributions)).values())
        class_by_key = {key: class_index for class_index, key in enumerate(dict.fromkeys(keys))}
        self._class_indices = np.array([class_by_key[key] for key in keys])
        self.distributions = tuple(distributions)

    @property
    def is_homogeneous(self) -> bool:
        """True if all workers have the same run-time distribution."""
        return len(self._distinct_distributions) == 1

    @property
    def mixture_distribution(self) -> Distribution:
        """The run-time distribution of a randomly chosen worker, as a mixture."""
        if self.is_homogeneous:
            return self._distinct_distributions[0]
        class_frequencies = np.bincount(self._class_indices) / len(self._class_indices)
        return Mixture(self._distinct_distributions, class_frequencies)

    def survival_probabilities(self, time: float) -> Floats:
        """Return the probability, for each of the m workers, that its task has not completed by `time`."""
        class_survival = [float(distribution.survival(time)) for distribution in self._distinct_distributions]
        return np.asarray(np.array(class_survival)[self._class_indices])

    def sample_run_times(self, rng: np.random.Generator, n_jobs: int) -> Floats:
        """Draw the run times of all m workers in `n_jobs` jobs, as an array (m, n_jobs).

        The run time of a task that never completes is inf.
        """
        times = np.empty((len(self._class_indices), n_jobs))
        for class_index, distribution in enumerate(self._distinct_distributions):
            worker_indices = np.flatnonzero(self._class_indices == class_index)
            times[worker_indices] = distribution.sample(rng, (len(worker_indices), n_jobs))
        return times

    def select_workers(self, n: int, expected_completions: float) -> WorkerSelection:
        """Select the n workers that are expected to complete a given number of tasks in the shortest time.

        At any given time, the best n workers are those that are most likely to have completed their tasks.
        The target time is the first time at which they are expected to have completed `expected_completions`
        tasks. It is found by bisection, and is inf if too many tasks never complete. The best workers at the
        target time are selected.

        Parameters
        ----------
        n : int
            The number of workers to select.
        expected_completions : float
            The expected number of completed tasks at the target time, less than n.
        """

        def is_late_enough(time: float) -> bool:
            return self._compute_expected_completions(n, time) >= expected_completions

        low, high = 0.0, 1.0
        while not is_late_enough(high) and isfinite(high):
            low, high = high, 2 * high if high < MAX_SECONDS else inf
        time = bisect_predicate(
            lambda time: np.array(is_late_enough(float(time))), np.array(low), np.array(high)
        )
        worker_survival = self.survival_probabilities(float(time))
        worker_indices = np.sort(np.argsort(worker_survival, kind="stable")[:n])
        return WorkerSelection(worker_indices, worker_survival[worker_indices])

    def _compute_expected_completions(self, n: int, time: float) -> float:
        """Return the expected number of tasks that the best n workers have completed by `time`.

        The best workers are those that are most likely to have completed their tasks.
        """
        return n - float(np.sort(self.survival_probabilities(time))[:n].sum())


def is_sequence_of_distributions(run_times: object) -> TypeGuard[Sequence[Distribution]]:
    """Return whether `run_times` is a list or tuple of Distributions.

    Raises CodeError if some entries are Distributions and others are not.
    """
    if not isinstance(run_times, (list, tuple)):
        return False
    n_distributions = sum(isinstance(entry, Distribution) for entry in run_times)
    if 0 < n_distributions < len(run_times):
        raise CodeError(
            f"run_times must hold only Distributions or only seconds, but {n_distributions} of its "
            f"{len(run_times)} entries are Distributions. Pass one for each worker, as Empirical(seconds) "
            "where run times were observed"
        )
    return n_distributions > 0


def select_workers_for_scheme(workers: HeterogeneousWorkers, n: int, k: int, scheme: str) -> WorkerSelection:
    """Select the n workers that are expected to be fastest for a job with k data blocks.

    These are the workers that are most likely to have completed their tasks by a target time: the time by
    which they are expected to have completed as many tasks as `scheme` needs. Without a code (n = k), all k
    tasks are needed. Then the target is k - 0.5, because the expected number of completed tasks is below k.
    """
    design_ratio = get_design_erasure_fraction(get_decoder_name(scheme)) if scheme in ARIKAN_SCHEMES else 1.0
    return workers.select_workers(n, k - 0.5 if n == k else n - design_ratio * (n - k))


def simulate_heterogeneous_workers(
    workers: HeterogeneousWorkers, k: int, scheme: str, erasure: float | None, n_trials: int, seed: int
) -> tuple[SimulatedJobs, Floats]:
    """Simulate jobs on workers that differ in speed, with one task per worker.

    Parameters
    ----------
    workers : HeterogeneousWorkers
        The workers. Each one runs one task of every job.
    k : int
        The number of data blocks.
    scheme : str
        One of CODE_SCHEMES.
    erasure : float or None
        The probability that a result is missing, for which a code with Arikan's kernel is designed. If None,
        each worker has its own probability, as returned by `select_workers_for_scheme`.
    n_trials, seed : int
        The number of jobs to simulate (at least MIN_JOBS for most schemes), and the random seed.

    Returns
    -------
    jobs : SimulatedJobs
    n_arrivals : array (trials,)
        The number of results that each job waited for.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> times = [ShiftedExponential(1.0, 1e-9)] * 3 + [ShiftedExponential(2.0, 1e-9)] * 3
    >>> workers = HeterogeneousWorkers(times)
    >>> jobs = [simulate_heterogeneous_workers(workers, k, "mds", None, 1, 0)[0] for k in (3, 4)]
    >>> [job.completion_times[0].round(6).item() for job in jobs]
    [1.0, 2.0]
    """
    if scheme not in CODE_SCHEMES:
        raise CodeError(
            f"scheme={scheme!r} needs one Distribution for all workers. Pass one Distribution, or one of the "
            f"schemes {', '.join(CODE_SCHEMES)}"
        )
    n = len(workers.distributions)
    n_jobs = n_trials if scheme in ("optimal", "integers") else max(n_trials, MIN_JOBS)
    run_times = workers.sample_run_times(np.random.default_rng(seed), n_jobs)
    if scheme in ARIKAN_SCHEMES and n > k:
        design_erasure: float | Floats | None = erasure
        if erasure is None:
            design_erasure = select_workers_for_scheme(workers, n, k, scheme).erasure_probabilities
        code = PolarCode(n, k, "arikan", get_decoder_name(scheme), design_erasure)
        completion_times = compute_decoding_times(code, run_times[code.worker_indices], scheme)
    else:
        completion_times = np.partition(run_times, k - 1, axis=0)[k - 1]
    worker_seconds = np.minimum(run_times, completion_times).sum(axis=0)
    n_arrivals = (run_times <= completion_times).sum(axis=0).astype(float)
    return SimulatedJobs(completion_times, worker_seconds, np.full(n_jobs, float(n))), n_arrivals
