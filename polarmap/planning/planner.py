"""Recommend a number of workers, as a trade-off between completion time and cost in worker-seconds.

    run times -> Completion of each candidate (completion.py) -> Objective selects one -> Plan

A coded map takes its numbers of blocks and tasks and its code from a plan by `Plan.apply_to`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from operator import attrgetter
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from polarmap.clouds import limits
from polarmap.clouds.limits import WorkerSpec
from polarmap.clouds.prices import Cost, estimate_map_cost
from polarmap.codes.polar import MAX_N, PolarCode
from polarmap.codes.uncoded import Uncoded
from polarmap.driver.options import PlannedSchedule
from polarmap.dtypes import is_integer
from polarmap.errors import CodeError, trimmed_tracebacks
from polarmap.planning.completion import Completion, completion_time
from polarmap.planning.decodability import get_decoder_name
from polarmap.planning.distributions import Distribution, Scaled
from polarmap.planning.empirical import Empirical, SharedCores, to_distribution_and_observations
from polarmap.planning.figures import draw_time_cost_frontier
from polarmap.planning.heterogeneous import (
    HeterogeneousWorkers,
    is_sequence_of_distributions,
    select_workers_for_scheme,
)
from polarmap.planning.objective import Objective
from polarmap.planning.sampling_error import SMALL_SAMPLE_SIZE, WorkerCountRange, bootstrap_worker_count_range
from polarmap.planning.simulation.overdecomposition import check_task_overhead
from polarmap.validation import check_positive_int, is_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarmap.blocks.code_choice import CodeOptions

SCHEDULES = ("upfront", "on_demand", "auto")
CODES = ("rotation", "sequential", "optimal", "integers")
# The maximum number of lines that are shown when a plan is printed.
MAX_TABLE_LINES = 10
# Compare at most this many numbers of workers above k, so that planning is fast.
MAX_SIZES = 48
# The numbers of tasks per worker to compare if several smaller tasks per worker are allowed, i.e. if
# `task_overhead` is given.
TASKS_PER_WORKER_CHOICES = (2, 4, 8, 16, 32)
# A simulation of several tasks per worker draws at least about this many random run times, so that its result
# is accurate. If there are few workers, more jobs are simulated.
MIN_SAMPLED_RUN_TIMES = 60_000


@dataclass(frozen=True)
class Plan(PlannedSchedule):
    """A recommended number of workers for a map, with the alternatives, as returned by `plan`.

    Print the plan to see a table of time and cost.

    Attributes
    ----------
    n, k : int
        The numbers of tasks and of data blocks. n = k means a plain map without a code.
    code : str
        "rotation", "sequential", "optimal", "integers", or "uncoded".
    objective : str
        The quantity that the plan minimizes, as passed to `plan`.
    expected, uncoded : Completion
        The expected time and worker-seconds of the plan, and of a plain map without a code.
    frontier : tuple of Completion
        The candidates that no other one beats in both time and worker-seconds. Time means the objective, or
        the p99 for "cost".
    worker_spec : WorkerSpec or None
        A description of the workers, as passed to `plan`.
    schedule : {"upfront", "on_demand"}
        "upfront": all n tasks start at once. "on_demand": k + n_upfront_parity tasks start at once, and the
        remaining ones when tasks are late.
    n_upfront_parity : int
        The number of parity tasks that start at once.
    run_times : Distribution
        The run time of one task. If the workers differ in speed, the mixture of their distributions.
    worker_indices : tuple of int
        If one distribution per worker was passed to `plan`: the workers to use. Task i, in starting order,
        should run on worker `worker_indices[i]`. Empty otherwise.
    erasure : tuple of float
        If the workers differ in speed: the probability that each of the n results is missing, for which the
        code is designed (`PolarCode(erasure=)`). Empty otherwise.
    n_completed : int or None
        The number of completed tasks whose run times were observed. None if there are no observations.
    size_range : WorkerCountRange or None
        The uncertainty of the recommended number of workers, if fewer than 20 completed tasks were observed.
    shared_cores : SharedCores or None
        The cores of this machine that the observed tasks shared. None if the tasks ran elsewhere.
    """

    n: int
    k: int
    code: str
    objective: str
    expected: Completion
    uncoded: Completion
    frontier: tuple[Completion, ...]
    worker_spec: WorkerSpec | None = None
    schedule: str = "upfront"
    n_upfront_parity: int = 0
    run_times: Distribution | None = None
    worker_indices: tuple[int, ...] = ()
    erasure: tuple[float, ...] = ()
    n_completed: int | None = None
    size_range: WorkerCountRange | None = None
    shared_cores: SharedCores | None = None

    @property
    def n_workers(self) -> int:
        """The number of workers to start, as in `Pool(workers=plan.n_workers)`.

        This is smaller than the number of tasks `n` if persistent workers run several tasks each.
        """
        return self.expected.n

    @property
    def time_metric(self) -> str:
        """The name of the completion time to compare: "mean", "p50", "p95" or "p99".

        It is the objective itself, or "p99" if the objective is "cost".
        """
        return Objective(self.objective).time_metric

    @property
    def cost(self) -> Cost | None:
        """The expected cost of the map in US dollars, or None if worker prices are unknown."""
        return None if self.worker_spec is None else _estimate_cost(self.expected, self.worker_spec)

    @property
    def uncoded_cost(self) -> Cost | None:
        """The expected cost of the map without a code in US dollars, or None if prices are unknown."""
        return None if self.worker_spec is None else _estimate_cost(self.uncoded, self.worker_spec)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        code_text = "no code" if self.n == self.k else f"{self.code} code"
        footer = self._format_footer_lines()
        table_lines = [
            f"{self._describe_workers()} for {self.k} blocks ({code_text}), chosen for {self.objective}",
            _format_row("", "n", "mean s", "p50 s", "p99 s", "worker-s"),
            _format_candidate("plain", self.uncoded),
        ]
        for candidate in self._select_table_rows(MAX_TABLE_LINES - 1 - len(table_lines) - len(footer)):
            label = "plan" if candidate is self.expected else ""
            table_lines.append(_format_candidate(label, candidate))
        return "\n".join(table_lines + footer)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Plot the candidates' completion times against their worker-seconds.

        Returns a matplotlib Figure. If `path` is given (.png, .svg or .pdf), the figure is also written
        there.
        """
        return draw_time_cost_frontier(self, path)

    def apply_to(self, code_options: CodeOptions) -> CodeOptions:
        """Fill in a map's options with the plan's code and numbers of blocks and tasks.

        Returns new options, leaving `code_options` unchanged.

        Raises
        ------
        CodeError
            If `code_options` already has a different number of blocks or tasks, or a different code.
        """
        blocks, tasks, code, _ = code_options
        for name, given_value, planned_value in (("blocks", blocks, self.k), ("tasks", tasks, self.n)):
            if given_value is not None and not (is_integer(given_value) and given_value == planned_value):
                advice = f"Leave {name} out, or make a new plan"
                raise CodeError(
                    f"{name} must be {planned_value}, as in the plan, not {given_value!r}. {advice}"
                )
        kernels = {"rotation": ("rotation",), "uncoded": ()}.get(self.code, ("arikan",))
        if not is_choice(code, ("auto", *kernels)):
            raise CodeError(f"code must be that of the plan, {self.code!r}, not {code!r}. Leave code out")
        sized_options = code_options._replace(blocks=self.k, tasks=self.n)
        # Do not set the code. The default, code="auto", selects the rotation code for floats, and a suitable
        # code for integers.
        if self.code == "rotation":
            return sized_options
        if self.code == "uncoded":
            return sized_options._replace(code=Uncoded(self.k))
        polar_code = PolarCode(self.n, self.k, "arikan", get_decoder_name(self.code), self.erasure or None)
        return sized_options._replace(code=polar_code)

    def _format_footer_lines(self) -> list[str]:
        """Return the lines to print below the table of a plan.

        They explain, if applicable, the range of the number of workers, the effect of shared cores, why no
        code is used, and the cost.
        """
        lines = []
        if self.size_range is not None:
            lines += [
                f"from {self.n_completed} completed tasks: {self.size_range}",
                "for a smaller range, pass the reports of more maps, or the file of `polarmap measure --out`",
            ]
        if self.shared_cores is not None:
            lines.append(str(self.shared_cores))
        if self.n == self.k:
            lines.append(f"a plain map without a code is enough: {self._describe_coded_alternative()}")
        if self.cost is not None and self.uncoded_cost is not None:
            lines.append(f"mean cost: {self.cost}; a plain map ${self.uncoded_cost.total:.2g}")
        return lines

    def _describe_coded_alternative(self) -> str:
        """Describe how the best coded candidate would change the time and worker-seconds."""
        coded_candidates = [candidate for candidate in self.frontier if candidate.n > candidate.k]
        if not coded_candidates:
            return "more workers would not save time"
        get_time = attrgetter(self.time_metric)
        best = min(coded_candidates, key=lambda candidate: get_time(candidate) * candidate.worker_seconds)
        time_change = _format_change(get_time(self.expected), get_time(best), " s")
        worker_seconds_change = _format_change(self.expected.worker_seconds, best.worker_seconds)
        return (
            f"{best.n} workers would change {self.time_metric} {time_change}, and the "
            f"worker-seconds {worker_seconds_change}"
        )

    def _select_table_rows(self, max_rows: int) -> list[Completion]:
        """Return the candidates to show in the table, ordered by number of workers.

        These are up to `max_rows` candidates of the frontier, and the recommended one.
        """
        row_indices = np.linspace(0, len(self.frontier) - 1, min(max_rows, len(self.frontier))).astype(int)
        rows = [*(self.frontier[row_index] for row_index in row_indices.tolist()), self.expected]
        rows_by_key = {_get_candidate_key(candidate): candidate for candidate in rows}
        # Leave out the map without a code. It has its own row at the top of the table.
        rows_by_key.pop(_get_candidate_key(self.uncoded), None)
        return [rows_by_key[candidate_key] for candidate_key in sorted(rows_by_key)]

    def _describe_workers(self) -> str:
        if self.schedule == "on_demand":
            n_upfront = self.k + self.n_upfront_parity
            count_text = self._format_worker_count(n_upfront)
            return f"start {count_text} workers, and up to {self.n - n_upfront} on demand,"
        if self.expected.tasks_per_worker > 1:
            count_text = self._format_worker_count(self.n_workers)
            return f"keep {count_text} workers, and give them {self.n} tasks one by one,"
        selection_text = ", those in plan.worker_indices," if self.worker_indices else ""
        return f"start {self._format_worker_count(self.n)} workers{selection_text}"

    def _format_worker_count(self, n_workers: int) -> str:
        """Format the number of workers for the printed plan.

        If few tasks were observed, it is a range, such as "20 to 40".
        """
        return str(n_workers) if self.size_range is None else self.size_range.range_text


def plan(
    k: int,
    run_times: object,
    objective: str = "p99",
    *,
    max_workers: int | None = None,
    deadline: float = inf,
    budget: float = inf,
    code: str = "rotation",
    slack: float | None = None,
    max_failure_probability: float = 1e-3,
    n_trials: int = 200,
    seed: int = 0,
    worker_spec: WorkerSpec | None = None,
    schedule: str = "upfront",
    task_overhead: float | None = None,
) -> Plan:
    """Recommend how many workers to start for a map with k data blocks.

    By default, workers are added as long as they reduce the time by a larger factor than they increase the
    cost in worker-seconds. If `slack` is given, the objective may exceed its minimum by this fraction, and
    the cheapest such plan is chosen. For the objective "cost", the plan with the smallest p99 is chosen
    instead.

    The plan assumes that tasks straggle or fail independently of each other. But workers on the same machine
    fail together. On a cluster of m machines, choose n so that n - k >= ceil(n / m): then all tasks of one
    machine may be lost. On four machines, for example, use 32 tasks for 24 blocks.

    Parameters
    ----------
    k : int
        The number of data blocks.
    run_times : Distribution, run times in seconds, or reports of coded maps
        The run time of one task, from its start on a worker until its result arrives; see `Empirical`. If the
        workers differ in speed, pass a sequence of Distributions, one for each worker. If fewer than 20
        completed tasks were observed, the plan shows a range of workers. The range is estimated by
        bootstrapping and covers 90 % of the recommendations.
    objective : {"p99", "mean", "p50", "p95", "cost"}
        The quantity to minimize: a quantile or the mean of the completion time, or the worker-seconds
        ("cost").
    max_workers : int, optional
        The maximum number of workers. By default, 2 k, or the length of a sequence of Distributions.
    deadline : float
        The maximum acceptable completion time in seconds: that of the objective, or the p99 for "cost".
    budget : float
        The maximum acceptable mean worker-seconds.
    code : {"rotation", "sequential", "optimal", "integers"}
        The code, as for `scheme` of `completion_time`. "rotation" is computed exactly and quickly.
    slack : float, optional
        The fraction by which the objective may exceed its minimum. By default, 0.05 for "cost". For the other
        objectives, time and worker-seconds are balanced by default.
    max_failure_probability : float
        The maximum acceptable probability that the job never completes because too many tasks fail.
    n_trials, seed : int
        The number of simulated jobs (or arrival orders), and the random seed. They are only used where no
        formula is known, for example for codes other than "rotation".
    worker_spec : polarmap.clouds.limits.WorkerSpec, optional
        A description of the workers in a cloud. It limits the number of workers and the duration of a task,
        and determines the cost in US dollars.
    schedule : {"upfront", "on_demand", "auto"}
        "upfront": all workers start at once. "on_demand": parity tasks start only when tasks are late.
        "auto": compare both. "on_demand" and "auto" need code="rotation".
    task_overhead : float, optional
        The number of seconds that a task takes in addition to its computation: about 0.001 on this machine,
        and a few hundredths if data is exchanged through cloud storage. If it is given, the plan also
        considers persistent workers that run up to 32 smaller tasks each. This needs code="rotation" and
        schedule="upfront". By default, each worker runs one task.

    Returns
    -------
    Plan

    Raises
    ------
    CodeError
        If no number of workers meets the limits. The message names the limit, and the best possible value.
    LimitError
        If the median run time exceeds the time limit of the worker.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential, with_stragglers
    >>> distribution = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
    >>> print(plan(24, distribution, "p99", max_workers=36))
    start 29 workers for 24 blocks (rotation code), chosen for p99
                    n    mean s     p50 s     p99 s  worker-s
      plain        24      2.98      1.48      6.93     28.51
                   25      1.67      1.31       5.6     28.33
                   27      1.23      1.21      1.44     29.57
       plan        29      1.18      1.17      1.31     31.52
                   31      1.15      1.15      1.25      33.5
                   33      1.13      1.13      1.21     35.49
                   36      1.11      1.11      1.18     38.48
    >>> small = plan(24, distribution, task_overhead=0.001)
    >>> small.n, small.k, small.n_workers
    (928, 768, 29)
    """
    with trimmed_tracebacks:
        workers = HeterogeneousWorkers(run_times) if is_sequence_of_distributions(run_times) else None
        distribution, observations = _to_mixture_distribution(run_times, workers)
        worker_limit = _compute_max_workers(k, max_workers, worker_spec, distribution, workers)
        _check_positive_size("trials", n_trials)
        goal = Objective(objective, slack, deadline, budget, max_failure_probability)
        heterogeneous_workers = None if workers is None or workers.is_homogeneous else workers
        _check_schedule(schedule, code, heterogeneous_workers)
        _check_overdecomposition_options(task_overhead, schedule, code, heterogeneous_workers)
        worker_times = heterogeneous_workers or distribution
        candidates = _make_candidates(k, worker_limit, code, schedule, worker_times, n_trials, seed)
        feasible = goal.filter_feasible_candidates(candidates)
        selected = goal.select_candidate(feasible)
        if task_overhead is not None:
            overdecomposed = _make_overdecomposed_candidates(
                selected, distribution, task_overhead, n_trials, seed
            )
            feasible_overdecomposed = goal.filter_feasible_candidates([selected, *overdecomposed])
            feasible = feasible + feasible_overdecomposed
            selected = min(feasible_overdecomposed, key=goal.evaluate_candidate)
        worker_indices, erasure = _assign_workers_to_tasks(workers, selected)
        tasks_per_worker, size_range = selected.tasks_per_worker, None
        if observations is not None and observations.n_completed < SMALL_SAMPLE_SIZE:
            sizes, chosen_size = (
                _list_candidate_worker_counts(k, worker_limit),
                _get_candidate_key(selected)[0],
            )
            has_tail = distribution is not observations
            size_range = bootstrap_worker_count_range(observations, sizes, goal, chosen_size, seed, has_tail)
        is_on_demand = selected.scheme == "on_demand"
        n_upfront_parity = tasks_per_worker * (selected.n - k)
        task_times = distribution
        if tasks_per_worker > 1:
            task_times = Scaled(distribution, 1 / tasks_per_worker, task_overhead or 0.0)
        return Plan(
            n=selected.n * tasks_per_worker,
            k=k * tasks_per_worker,
            code=code if selected.n > k else "uncoded",
            objective=objective,
            expected=selected,
            uncoded=candidates[0],
            frontier=frontier(feasible, goal.time_metric),
            worker_spec=worker_spec,
            schedule="on_demand" if is_on_demand else "upfront",
            n_upfront_parity=selected.n_upfront_parity if is_on_demand else n_upfront_parity,
            run_times=task_times,
            worker_indices=worker_indices,
            erasure=erasure,
            n_completed=None if observations is None else observations.n_completed,
            size_range=size_range,
            shared_cores=None if observations is None else observations.shared_cores,
        )


def frontier(candidates: Sequence[Completion], time_metric: str = "p99") -> tuple[Completion, ...]:
    """Return the Pareto frontier: candidates that no other one beats in both time and worker-seconds.

    Parameters
    ----------
    candidates : sequence of Completion
        Jobs to compare, for example with different numbers of workers.
    time_metric : {"mean", "p50", "p95", "p99"}
        Which completion time to compare.

    Returns
    -------
    tuple of Completion
        The candidates, from the cheapest to the fastest.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> distribution = ShiftedExponential(1.0, 1.0)
    >>> options = [completion_time(n, 4, "rotation", distribution) for n in (5, 6, 8)]
    >>> [option.n for option in frontier(options)]
    [5, 6, 8]
    """
    get_time = attrgetter(time_metric)
    frontier_candidates: list[Completion] = []
    for candidate in sorted(candidates, key=attrgetter("worker_seconds", time_metric)):
        if not frontier_candidates or get_time(candidate) < get_time(frontier_candidates[-1]):
            frontier_candidates.append(candidate)
    return tuple(frontier_candidates)


def _to_mixture_distribution(
    run_times: object, workers: HeterogeneousWorkers | None
) -> tuple[Distribution, Empirical | None]:
    """Return the run-time distribution of a randomly chosen worker, and the observed run times.

    The second value is None if the distribution was not estimated from observed run times.
    """
    if workers is not None:
        return workers.mixture_distribution, None
    return to_distribution_and_observations(run_times)


def _compute_max_workers(
    k: int,
    max_workers: int | None,
    worker_spec: WorkerSpec | None,
    run_times: Distribution,
    workers: HeterogeneousWorkers | None,
) -> int:
    """Return the largest number of workers that all limits allow. Raise CodeError if it is below k."""
    worker_limit = 2 * _check_positive_size("k", k)
    if workers is not None:
        worker_limit = len(workers.distributions)
    if max_workers is not None:
        upper_limit = worker_limit if workers else MAX_N
        worker_limit = min(_check_positive_size("max_workers", max_workers), upper_limit)
    if worker_spec is not None and not isinstance(worker_spec, WorkerSpec):
        type_name = type(worker_spec).__name__
        raise CodeError(f"worker_spec must be a polarmap.clouds.limits.WorkerSpec, not {type_name}")
    if worker_spec is not None:
        limits.check_task_duration(worker_spec, float(run_times.quantile(0.5)))
        worker_limit = min(worker_limit, limits.get_max_concurrency(worker_spec) or worker_limit)
    if worker_limit < k:
        limit_text = f"max_workers allows {worker_limit}"
        if workers is not None:
            limit_text = f"run_times and max_workers allow {worker_limit}"
        raise CodeError(f"k = {k} blocks need at least {k} workers, but {limit_text}")
    return worker_limit


def _estimate_cost(candidate: Completion, worker_spec: WorkerSpec) -> Cost | None:
    # Clouds bill per function call. A persistent worker is a single call, no matter how many tasks it runs.
    n_calls = round(candidate.n_tasks_started) if candidate.tasks_per_worker == 1 else candidate.n
    return estimate_map_cost(worker_spec, [candidate.worker_seconds / n_calls] * n_calls, candidate.mean)


def _make_candidates(
    k: int,
    max_workers: int,
    code: str,
    schedule: str,
    run_times: Distribution | HeterogeneousWorkers,
    n_trials: int,
    seed: int,
) -> list[Completion]:
    """Predict the time and cost of a map for different numbers of workers.

    The first candidate is the map without a code.
    """
    sizes = _list_candidate_worker_counts(k, max_workers)
    upfront_sizes = [k] if schedule == "on_demand" else sizes
    candidates = [_make_candidate(n, k, code, run_times, n_trials, seed) for n in upfront_sizes]
    if schedule != "upfront":
        simulate = partial(completion_time, max_workers, k, "on_demand", run_times, seed=seed)
        n_jobs = max(n_trials, 2000)
        candidates += [simulate(n_upfront_parity=n - k, n_trials=n_jobs) for n in sizes if n < max_workers]
    return candidates


def _make_overdecomposed_candidates(
    base: Completion, run_times: Distribution, task_overhead: float, n_trials: int, seed: int
) -> list[Completion]:
    """Simulate jobs with more and smaller tasks than `base`, on the same number of persistent workers."""
    n, k, n_jobs = base.n, base.k, max(n_trials, MIN_SAMPLED_RUN_TIMES // base.n)
    simulate = partial(
        completion_time,
        n,
        k,
        "small_blocks",
        run_times,
        task_overhead=task_overhead,
        n_trials=n_jobs,
        seed=seed,
    )
    return [
        simulate(tasks_per_worker=tasks_per_worker)
        for tasks_per_worker in TASKS_PER_WORKER_CHOICES
        if n * tasks_per_worker <= MAX_N
    ]


def _get_candidate_key(candidate: Completion) -> tuple[int, int, int]:
    """Return a sort key that is unique for each candidate of a plan.

    The key consists of three numbers: the tasks that start at once, the maximum number of tasks if parity
    tasks start on demand (otherwise 0), and the tasks per worker.
    """
    if candidate.scheme == "on_demand":
        return candidate.k + candidate.n_upfront_parity, candidate.n, 1
    return candidate.n, 0, candidate.tasks_per_worker


def _make_candidate(
    n: int, k: int, code: str, run_times: Distribution | HeterogeneousWorkers, n_trials: int, seed: int
) -> Completion:
    distributions: object = run_times
    if isinstance(run_times, HeterogeneousWorkers):
        worker_indices = select_workers_for_scheme(run_times, n, k, code).worker_indices
        distributions = [run_times.distributions[worker_index] for worker_index in worker_indices]
    return completion_time(n, k, "uncoded" if n == k else code, distributions, n_trials=n_trials, seed=seed)


def _assign_workers_to_tasks(
    workers: HeterogeneousWorkers | None, candidate: Completion
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return which worker should run each task, and the probability that each task's result is missing.

    Both are tuples with one entry per task. Both are empty if `workers` is None. The second is also empty if
    all workers are equally fast, or if no code is used.
    """
    if workers is None:
        return (), ()
    n, k, scheme = candidate.n, candidate.k, candidate.scheme
    if workers.is_homogeneous:
        return tuple(range(n)), ()
    worker_indices, erasure = select_workers_for_scheme(workers, n, k, scheme)
    if n == k:
        return tuple(worker_indices.tolist()), ()
    kernel = "rotation" if scheme == "rotation" else "arikan"
    block_workers = PolarCode(n, k, kernel, get_decoder_name(scheme), erasure).worker_indices
    return tuple(worker_indices[block_workers].tolist()), tuple(erasure[block_workers].tolist())


def _list_candidate_worker_counts(k: int, max_workers: int) -> list[int]:
    """Return the numbers of workers to compare: k and at most MAX_SIZES larger numbers.

    If there are too many numbers up to `max_workers`, a few are chosen such that the numbers of parity blocks
    grow geometrically.
    """
    n_parity = np.arange(1, max_workers - k + 1)
    if len(n_parity) > MAX_SIZES:
        n_parity = np.unique(np.rint(np.geomspace(1, max_workers - k, MAX_SIZES)).astype(int))
    return [k, *(k + n_parity).tolist()]


def _check_schedule(schedule: str, code: str, heterogeneous_workers: HeterogeneousWorkers | None) -> None:
    if not is_choice(code, CODES):
        raise CodeError(f"code must be one of {', '.join(CODES)}, not {code!r}")
    if not is_choice(schedule, SCHEDULES):
        raise CodeError(f"schedule must be 'upfront', 'on_demand' or 'auto', not {schedule!r}")
    if schedule != "upfront" and code != "rotation":
        raise CodeError(f"code must be 'rotation' with schedule={schedule!r}, not {code!r}")
    if schedule != "upfront" and heterogeneous_workers:
        raise CodeError(
            f"schedule={schedule!r} needs one Distribution for all workers. Pass one Distribution, or "
            "leave schedule out"
        )


def _check_overdecomposition_options(
    task_overhead: float | None, schedule: str, code: str, heterogeneous_workers: HeterogeneousWorkers | None
) -> None:
    if task_overhead is None:
        return
    if schedule != "upfront" or code != "rotation" or heterogeneous_workers:
        raise CodeError(
            "task_overhead needs schedule='upfront', code='rotation' and one Distribution for all workers. "
            "Leave it out, or change these"
        )
    check_task_overhead(task_overhead)


def _check_positive_size(name: str, value: int) -> int:
    size = check_positive_int(name, value)
    if size > MAX_N:
        raise CodeError(f"{name} must be at most {MAX_N}, the length of the largest code, not {size}")
    return size


def _format_change(before: float, after: float, unit: str = "") -> str:
    """Describe the change of a value, as a percentage if the old value is finite.

    >>> _format_change(2.0, 1.5), _format_change(inf, 1.5, " s")
    ('by -25.0%', 'from inf to 1.5 s')
    """
    return f"by {after / before - 1:+.1%}" if isfinite(before) else f"from inf to {after:.3g}{unit}"


def _format_candidate(label: str, candidate: Completion) -> str:
    time_texts = [f"{value:.3g}" for value in (candidate.mean, candidate.p50, candidate.p99)]
    size_text = str(candidate.n)
    if candidate.scheme == "on_demand":
        size_text = f"{candidate.k + candidate.n_upfront_parity}-{candidate.n}"
    if candidate.tasks_per_worker > 1:
        size_text += f" x {candidate.tasks_per_worker}"
    return _format_row(label, size_text, *time_texts, f"{candidate.worker_seconds:.4g}")


def _format_row(label: str, *fields: str) -> str:
    return f"{label:>7}" + "".join(f"{field:>10}" for field in fields)
