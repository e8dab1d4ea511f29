"""How many workers to start: the choice between waiting and paying, from a distribution of run times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from polarmap.clouds import limits
from polarmap.clouds.limits import Worker
from polarmap.clouds.prices import Cost, cost
from polarmap.codes.checks import checked_count, is_one_of
from polarmap.codes.dtypes import is_integer
from polarmap.codes.polar import MAX_N, PolarCode
from polarmap.codes.uncoded import Uncoded
from polarmap.errors import CodeError, without_our_frames
from polarmap.planning.completion import Completion, completion_time
from polarmap.planning.decodability import decoder_of
from polarmap.planning.distributions import Distribution, Scaled
from polarmap.planning.empirical import SharedCores, observed_runtimes
from polarmap.planning.figures import draw_frontier
from polarmap.planning.objective import Objective
from polarmap.planning.sampling_error import FEW_TASKS, SizeRange, bootstrap_sizes
from polarmap.planning.small_blocks import check_task_price
from polarmap.planning.unequal import UnequalWorkers, chosen_for, is_sequence_of_distributions
from polarmap.run.options import MapPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarmap.blocks.code_choice import CodeOptions

SCHEDULES = ("upfront", "on_demand", "auto")
CODES = ("rotation", "sequential", "optimal", "integers")
MOST_LINES = 10  # of a plan as text
MOST_SIZES = 48  # values of n that are tried, dense near k
PIECES = (2, 4, 8, 16, 32)  # times as many blocks that are tried where a task has a price
DRAWN = 60_000  # run times, at least, of the jobs that are simulated for each of these


@dataclass(frozen=True)
class Plan(MapPlan):
    """A recommended number of workers, and what else there was to choose from.

    Attributes
    ----------
    n, k
        Tasks and data blocks; n = k is a plain map without a code.
    code
        "rotation", "sequential", "optimal", "integers", or "uncoded".
    objective
        What it was chosen for.
    expected, uncoded
        What to expect of it, and of a plain map: seconds and worker-seconds.
    frontier
        The options that no other beats in both time (the objective; p99 for "cost") and price.
    worker
        What the tasks run on, if that was said.
    schedule, upfront
        "upfront": all n workers start at once. "on_demand": k and `upfront` more, the others when tasks are
        late.
    runtimes
        The distribution of the run time of one task, of all workers together where they are not alike.
    workers
        Which of the unlike workers to use, (n,): the i-th task to start is for `workers[i]`. Empty where
        all are alike.
    erasure
        For which the arikan code of these workers is designed, (n,): `PolarCode(erasure=)`.
    completed
        Number of completed tasks whose run times were observed; None of a distribution without observations.
    size_range
        Of fewer than 20 completed tasks: between which numbers of workers the recommendation may lie.
    shared_cores
        The cores of this machine that the observed tasks shared; None where they did not run here.
    """

    n: int
    k: int
    code: str
    objective: str
    expected: Completion
    uncoded: Completion
    frontier: tuple[Completion, ...]
    worker: Worker | None = None
    schedule: str = "upfront"
    upfront: int = 0
    runtimes: Distribution | None = None
    workers: tuple[int, ...] = ()
    erasure: tuple[float, ...] = ()
    completed: int | None = None
    size_range: SizeRange | None = None
    shared_cores: SharedCores | None = None

    @property
    def workers_at_a_time(self) -> int:
        """Workers for the n tasks: as many, or fewer that stay, `Pool(workers=plan.workers_at_a_time)`."""
        return self.expected.n

    @property
    def clock(self) -> str:
        """The completion time that the frontier is of: the objective, or p99 beside the cost."""
        return Objective(self.objective).clock

    @property
    def cost(self) -> Cost | None:
        """Estimate in US dollars, in the mean; None without a worker, or where no price is known."""
        return None if self.worker is None else _cost(self.expected, self.worker)

    @property
    def uncoded_cost(self) -> Cost | None:
        """What a plain map of the same blocks costs in the mean; None where no price is known."""
        return None if self.worker is None else _cost(self.uncoded, self.worker)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        code = "no code" if self.n == self.k else f"{self.code} code"
        last = self._remarks()
        lines = [
            f"{self._workers()} for {self.k} blocks ({code}), chosen for {self.objective}",
            _row("", "n", "mean s", "p50 s", "p99 s", "worker-s"),
            _numbers("plain", self.uncoded),
        ]
        shown = self._shown(MOST_LINES - 1 - len(lines) - len(last))
        lines += [_numbers("plan" if one is self.expected else "", one) for one in shown]
        return "\n".join(lines + last)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """The frontier as a matplotlib Figure, also written to `path` (.png, .svg)."""
        return draw_frontier(self, path)

    def applied_to(self, options: CodeOptions) -> CodeOptions:
        """`options` of a map with the sizes and the code of the plan; CodeError for others in them."""
        blocks, tasks, code, _ = options
        for name, given, wanted in (("blocks", blocks, self.k), ("tasks", tasks, self.n)):
            if given is not None and not (is_integer(given) and given == wanted):
                raise CodeError(
                    f"{name}={given}, but the plan is for {wanted}: leave {name} out, or plan again"
                )
        kernels = {"rotation": ("rotation",), "uncoded": ()}.get(self.code, ("arikan",))
        if not is_one_of(code, ("auto", *kernels)):
            raise CodeError(f"the plan says which code, {self.code!r}: leave code={code!r} out")
        sized = options._replace(blocks=self.k, tasks=self.n)
        if self.code == "rotation":  # "auto" becomes the arikan code where the data is of integers
            return sized
        if self.code == "uncoded":
            return sized._replace(code=Uncoded(self.k))
        made = PolarCode(self.n, self.k, "arikan", decoder_of(self.code), self.erasure or None)
        return sized._replace(code=made)

    def _remarks(self) -> list[str]:
        """Lines below the table: that a plain map will do, what it costs."""
        lines = []
        if self.size_range is not None:
            lines += [
                f"from {self.completed} completed tasks: {self.size_range}",
                "to know more, pass the reports of more maps, or those times that `polarmap measure` writes",
            ]
        if self.shared_cores is not None:
            lines.append(str(self.shared_cores))
        if self.n == self.k:
            lines.append(f"a plain map will do: {self._alternative()}")
        if self.cost is not None and self.uncoded_cost is not None:
            lines.append(f"cost in the mean: {self.cost}; a plain map ${self.uncoded_cost.total:.2g}")
        return lines

    def _alternative(self) -> str:
        """What the code that comes nearest to being worth it would save, and cost."""
        clock = self.clock
        others = [one for one in self.frontier if one.n > one.k]
        if not others:
            return "more workers would not save time"
        other = min(others, key=lambda one: getattr(one, clock) * one.paid)
        time = _change(getattr(self.expected, clock), getattr(other, clock), " s")
        paid = _change(self.expected.paid, other.paid)
        return f"{other.n} workers would change its {clock} {time}, its worker-seconds {paid}"

    def _shown(self, most: int) -> list[Completion]:
        """The plan, unless it is the plain map, and a few others of the frontier, by n."""
        places = np.linspace(0, len(self.frontier) - 1, min(most, len(self.frontier))).astype(int)
        some = {_starts(self.frontier[place]): self.frontier[place] for place in places.tolist()}
        some[_starts(self.expected)] = self.expected
        some.pop(_starts(self.uncoded), None)  # shown as plain
        return [some[starts] for starts in sorted(some)]

    def _workers(self) -> str:
        if self.schedule == "on_demand":
            later = self.n - self.k - self.upfront
            return f"start {self._count(self.k + self.upfront)} workers, and up to {later} on demand,"
        if self.expected.pieces > 1:
            count = self._count(self.workers_at_a_time)
            return f"keep {count} workers, and give them {self.n} tasks one by one,"
        return f"start {self._count(self.n)} workers" + (", those in plan.workers," if self.workers else "")

    def _count(self, workers: int) -> str:
        """Return a number of workers as text, as a range if few tasks were observed."""
        return str(workers) if self.size_range is None else self.size_range.counts


def plan(
    k: int,
    runtimes: object,
    objective: str = "p99",
    *,
    max_workers: int | None = None,
    deadline: float = inf,
    budget: float = inf,
    code: str = "rotation",
    slack: float | None = None,
    max_failure_probability: float = 1e-3,
    trials: int = 200,
    seed: int = 0,
    worker: Worker | None = None,
    schedule: str = "upfront",
    task_price: float | None = None,
) -> Plan:
    """Recommend how many workers to start for k blocks.

    Workers are added as long as they save a larger share of the time than they add to the worker-seconds.
    With `slack`, the plan is the cheapest whose objective is within it of the best; for "cost", the one with
    the smallest p99 whose cost is within `slack` (0.05 by default) of the least.

    The plan assumes that workers fail and are late independently of each other, but workers of one machine
    fail together. On a cluster of m machines, choose n so that n - k >= ceil(n / m): then all tasks of one
    machine may be missing. On four machines that means 32 tasks for 24 blocks.

    Parameters
    ----------
    k : int
        Data blocks.
    runtimes : Distribution, run times in seconds, or reports of coded maps
        Of one task, from when a worker begins it until its result is here; see `Empirical`. Where workers are
        not alike: a sequence of Distributions, one for each worker. Of fewer than 20 completed tasks the plan
        shows a range of workers, which holds 90 % of the recommendations for bootstrap resamples.
    objective : {"p99", "mean", "p50", "p95", "cost"}
        Completion time in the mean or at a quantile, or worker-seconds.
    max_workers : int, optional
        By default 2 k, or all there are of a sequence.
    deadline : float
        Seconds within which the objective (p99 for "cost") must be.
    budget : float
        Worker-seconds that may be paid in the mean.
    code : {"rotation", "sequential", "optimal", "integers"}
        As the scheme of `completion_time`; "rotation" is exact and quick.
    slack : float, optional
        Relative loss accepted in the objective.
    max_failure_probability : float
        Largest accepted probability that too many tasks never end.
    trials, seed : int
        Of the simulation of codes other than rotation; of workers that are not alike, 2,000 or more.
    worker : polarmap.clouds.limits.Worker, optional
        What the tasks will run on: it bounds the workers and the seconds of a task, and says what it costs.
    schedule : {"upfront", "on_demand", "auto"}
        Whether all workers start at once, or some only when tasks are late; "auto" compares both.
        For the rotation code; simulated.
    task_price : float, optional
        Seconds that a task takes beside its computation: about 0.001 here, some hundredths through a bucket.
        Then up to 32 times as many blocks are tried on workers that stay. For the rotation code and schedule
        "upfront"; simulated. By default every worker takes one task.

    Returns
    -------
    Plan

    Raises
    ------
    CodeError
        If no number of workers meets the limits; the message says which and how nearly.
    LimitError
        If most tasks take longer than the worker may.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential, stragglers
    >>> distribution = stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
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
    >>> small = plan(24, distribution, task_price=0.001)
    >>> small.n, small.k, small.workers_at_a_time
    (928, 768, 29)
    """
    with without_our_frames:
        each = UnequalWorkers(runtimes) if is_sequence_of_distributions(runtimes) else None
        distribution, observed = observed_runtimes(runtimes) if each is None else (each.together, None)
        most = _most_workers(k, max_workers, worker, distribution, each)
        _checked_size("trials", trials)
        aim = Objective(objective, slack, deadline, budget, max_failure_probability)
        unlike = None if each is None or each.are_alike else each
        _check_schedule(schedule, code, unlike)
        _check_task_price(task_price, schedule, code, unlike)
        options = _options(k, most, code, schedule, unlike or distribution, trials, seed)
        possible = aim.possible(options)
        chosen = aim.choice(possible)
        if task_price is not None:
            small = aim.possible([chosen, *_in_small_blocks(chosen, distribution, task_price, trials, seed)])
            possible, chosen = possible + small, min(small, key=aim.value)
        workers, erasure = _placed(each, chosen)
        pieces, few = chosen.pieces, None
        if observed is not None and observed.completed < FEW_TASKS:
            has_tail = distribution is not observed
            few = bootstrap_sizes(observed, _sizes(k, most), aim, _starts(chosen)[0], seed, has_tail)
        return Plan(
            n=chosen.n * pieces,
            k=k * pieces,
            code=code if chosen.n > k else "uncoded",
            objective=objective,
            expected=chosen,
            uncoded=options[0],
            frontier=frontier(possible, aim.clock),
            worker=worker,
            schedule="on_demand" if chosen.scheme == "on_demand" else "upfront",
            upfront=chosen.upfront if chosen.scheme == "on_demand" else pieces * (chosen.n - k),
            runtimes=distribution if pieces == 1 else Scaled(distribution, 1 / pieces, task_price or 0.0),
            workers=workers,
            erasure=erasure,
            completed=None if observed is None else observed.completed,
            size_range=few,
            shared_cores=None if observed is None else observed.shared_cores,
        )


def frontier(options: Sequence[Completion], clock: str = "p99") -> tuple[Completion, ...]:
    """The options that no other beats in both time and price, from the cheapest to the fastest.

    Examples
    --------
    >>> from polarmap.planning.distributions import ShiftedExponential
    >>> distribution = ShiftedExponential(1.0, 1.0)
    >>> options = [completion_time(n, 4, "rotation", distribution) for n in (5, 6, 8)]
    >>> [option.n for option in frontier(options)]
    [5, 6, 8]
    """
    kept: list[Completion] = []
    for option in sorted(options, key=lambda one: (one.paid, getattr(one, clock))):
        if not kept or getattr(option, clock) < getattr(kept[-1], clock):
            kept.append(option)
    return tuple(kept)


def _most_workers(
    k: int,
    max_workers: int | None,
    worker: Worker | None,
    runtimes: Distribution,
    each: UnequalWorkers | None,
) -> int:
    """How many workers there may be: as many as there are, as the caller allows, and as run at a time."""
    most = 2 * _checked_size("k", k)
    if each is not None:
        most = len(each.runtimes)
    if max_workers is not None:
        most = min(_checked_size("max_workers", max_workers), most if each else MAX_N)
    if worker is not None and not isinstance(worker, Worker):
        raise CodeError(f"worker must be a polarmap.clouds.limits.Worker, not {type(worker).__name__}")
    if worker is not None:
        limits.check_task_seconds(worker, float(runtimes.quantile(0.5)))
        most = min(most, limits.at_a_time(worker) or most)
    if most < k:
        limit = f"max_workers is {most}" if each is None else f"there are {most} in runtimes or max_workers"
        raise CodeError(f"k = {k} blocks need at least as many workers, {limit}")
    return most


def _cost(one: Completion, worker: Worker) -> Cost | None:
    calls = round(one.started) if one.pieces == 1 else one.n  # workers that stay are called once
    return cost(worker, [one.paid / calls] * calls, one.mean)


def _options(
    k: int,
    most: int,
    code: str,
    schedule: str,
    distribution: Distribution | UnequalWorkers,
    trials: int,
    seed: int,
) -> list[Completion]:
    """The plain map first, then what there is to choose from."""
    sizes, jobs = _sizes(k, most), max(trials, 2000)
    found = [
        _option(n, k, code, distribution, trials, seed) for n in (sizes if schedule != "on_demand" else [k])
    ]
    if schedule != "upfront":
        found += [
            completion_time(most, k, "on_demand", distribution, upfront=n - k, trials=jobs, seed=seed)
            for n in sizes
            if n < most
        ]
    return found


def _in_small_blocks(
    chosen: Completion, runtimes: Distribution, task_price: float, trials: int, seed: int
) -> list[Completion]:
    """Several times as many blocks on as many workers as were chosen, which stay."""
    n, k, jobs = chosen.n, chosen.k, max(trials, DRAWN // chosen.n)
    return [
        completion_time(
            *(n, k, "small_blocks", runtimes), pieces=pieces, task_price=task_price, trials=jobs, seed=seed
        )
        for pieces in PIECES
        if n * pieces <= MAX_N
    ]


def _starts(one: Completion) -> tuple[int, int, int]:
    """What distinguishes options: workers that start at once, those that may later, tasks for each."""
    return (one.k + one.upfront, one.n, 1) if one.scheme == "on_demand" else (one.n, 0, one.pieces)


def _option(
    n: int, k: int, code: str, runtimes: Distribution | UnequalWorkers, trials: int, seed: int
) -> Completion:
    distributions: object = runtimes
    if isinstance(runtimes, UnequalWorkers):
        distributions = [runtimes.runtimes[index] for index in chosen_for(runtimes, n, k, code).workers]
    return completion_time(n, k, "uncoded" if n == k else code, distributions, trials=trials, seed=seed)


def _placed(each: UnequalWorkers | None, option: Completion) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The workers of a plan in the order of their tasks, and for which erasure their code is designed."""
    if each is None:
        return (), ()
    n, k, scheme = option.n, option.k, option.scheme
    if each.are_alike:
        return tuple(range(n)), ()
    workers, erasure = chosen_for(each, n, k, scheme)
    if n == k:
        return tuple(workers.tolist()), ()
    kernel = "rotation" if scheme == "rotation" else "arikan"
    order = PolarCode(n, k, kernel, decoder_of(scheme), erasure).assignment
    return tuple(workers[order].tolist()), tuple(erasure[order].tolist())


def _sizes(k: int, most: int) -> list[int]:
    """k, and numbers of parity blocks in geometric progression up to the most."""
    parity = np.arange(1, most - k + 1)
    if len(parity) > MOST_SIZES:
        parity = np.unique(np.rint(np.geomspace(1, most - k, MOST_SIZES)).astype(int))
    return [k, *(k + parity).tolist()]


def _check_schedule(schedule: str, code: str, unlike: UnequalWorkers | None) -> None:
    if not is_one_of(code, CODES):
        raise CodeError(f"code must be one of {', '.join(CODES)}, not {code!r}")
    if not is_one_of(schedule, SCHEDULES):
        raise CodeError(f"schedule must be 'upfront', 'on_demand' or 'auto', not {schedule!r}")
    if schedule != "upfront" and code != "rotation":
        raise CodeError(f"parity on demand is planned for the rotation code only, not for {code!r}")
    if schedule != "upfront" and unlike:
        raise CodeError(
            f"schedule={schedule!r} is planned for workers that are alike: give one Distribution for all, or "
            "leave schedule out"
        )


def _check_task_price(
    task_price: float | None, schedule: str, code: str, unlike: UnequalWorkers | None
) -> None:
    if task_price is None:
        return
    if schedule != "upfront" or code != "rotation" or unlike:
        raise CodeError(
            "task_price= is for schedule='upfront', code='rotation' and workers that are alike: leave it out"
        )
    check_task_price(task_price)


def _checked_size(name: str, value: int) -> int:
    count = checked_count(name, value)
    if count > MAX_N:
        raise CodeError(f"{name} = {count} is more than the {MAX_N} workers of the largest code")
    return count


def _change(before: float, after: float, unit: str = "") -> str:
    """What becomes of a number, for a message.

    >>> _change(2.0, 1.5), _change(inf, 1.5, " s")
    ('by -25.0%', 'from inf to 1.5 s')
    """
    return f"by {after / before - 1:+.1%}" if isfinite(before) else f"from inf to {after:.3g}{unit}"


def _numbers(label: str, option: Completion) -> str:
    times = [f"{value:.3g}" for value in (option.mean, option.p50, option.p99)]
    n = f"{option.k + option.upfront}-{option.n}" if option.scheme == "on_demand" else str(option.n)
    n += f" x {option.pieces}" if option.pieces > 1 else ""
    return _row(label, n, *times, f"{option.paid:.4g}")


def _row(label: str, *fields: str) -> str:
    return f"{label:>7}" + "".join(f"{field:>10}" for field in fields)
