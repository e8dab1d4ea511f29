"""Completion and cost of every scheme under a distribution of run times: exact where a formula exists.

With everything in it, one driver holds the data, codes, sends and receives; every worker fetches its block
and leaves its result, which is as large as a block. The steps follow each other: nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.compare.codes import Measured, Size
from polarmap.codes.polar import MAX_N
from polarmap.planning import (
    Completion,
    Distribution,
    Pareto,
    ShiftedExponential,
    completion_from_arrivals,
    completion_time,
    load_training_trace,
    simulate_backups,
    with_stragglers,
)
from polarmap.planning.backups import CUBED_RULE
from polarmap.planning.completion import summarize_jobs

DISTRIBUTIONS: dict[str, Distribution] = {
    "2 % stragglers at 5x": with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0),
    "shifted exponential 1 + Exp(1)": ShiftedExponential(1.0, 1.0),
    "heavy tail, Pareto(2.5)": Pareto(1.0, 2.5),
    "real trace of a training job": load_training_trace(),
}
PIECES = (4, 16)  # times as many blocks on workers that stay
TASK_PRICE = 0.001  # seconds, of each of their tasks
MULTIPLES = (1.0, 1.05, 1.1, 1.15, 1.25, 1.5, 2.0, 2.5, 3.0)  # of the time of half, from which a task is late


def schemes(size: Size, runtimes: Distribution, codes: list[Measured], trials: int) -> Iterator[Completion]:
    """Every scheme at one size under one distribution, with a third more tasks where it codes."""
    n, k = size.n, size.k

    def found(name: str, scheme: str, tasks: int = n, **options: float) -> Completion:
        taken = completion_time(tasks, k, scheme, runtimes, n_trials=trials, **options)  # type: ignore[arg-type]
        return taken._replace(scheme=name)

    yield found("uncoded", "uncoded", k)
    for copies in (2, 3):
        yield found(f"{copies}x replication", "replication", copies * k)
    yield found("backup tasks (cubed)", "backup-cubed", k)
    yield found("backup tasks (Spark 4)", "backup-spark", k)
    yield tuned_backups(size, runtimes, trials)
    for code in codes:
        yield completion_from_arrivals(code.needed, code.n, k, runtimes, code.name)
    yield found("on demand", "on_demand")
    few = max(1, (n - k) // 4)
    yield found(f"{few} upfront, rest on demand", "on_demand", n_upfront_parity=few)
    for pieces in PIECES:
        if pieces * n <= MAX_N:
            name = f"{pieces}x as many blocks"
            yield found(name, "small_blocks", tasks_per_worker=pieces, task_overhead=TASK_PRICE)


def tuned_backups(size: Size, runtimes: Distribution, trials: int) -> Completion:
    """Backup tasks by cubed's rule with the multiple that gives the least 99 % quantile."""
    few = max(200, trials // 5)
    slow = min(MULTIPLES, key=lambda slow: with_backups(slow, size, runtimes, few).p99)
    return with_backups(slow, size, runtimes, trials)


def with_backups(slow: float, size: Size, runtimes: Distribution, trials: int) -> Completion:
    """Backup tasks by cubed's rule with another multiple."""
    rng, k = np.random.default_rng(0), size.k
    jobs = simulate_backups(
        runtimes.sample(rng, (trials, k)),
        lambda late: runtimes.sample(rng, late.sum()),
        CUBED_RULE._replace(slowdown=slow),
    )
    return summarize_jobs(f"backup tasks (tuned: {slow:g} x)", k, k, jobs)


# --- coding and transfer -------------------------------------------------------------------------

DRIVER = 1.25e9  # bytes per second of the driver, 10 Gbit/s
WORKER = 75e6  # bytes per second of a worker, 0.6 Gbit/s
BLOCKS = (1_000_000, 64_000_000)  # bytes


class Whole(NamedTuple):
    """Seconds of one scheme beside its tasks.

    encode, decode : on one core of the driver; decoding with its plan.
    transfer : blocks and results, to and from driver and workers.
    """

    encode: float
    transfer: float
    decode: float

    @property
    def seconds(self) -> float:
        """Together."""
        return sum(self)


def beside_tasks(job: Completion, codes: dict[str, Measured], size: int) -> Whole:
    """What a scheme takes beside its tasks, with blocks of so many bytes.

    On demand is charged all the coding of rotation, and sends the parity blocks that are started.
    """
    late = "on demand" in job.scheme
    code = codes["rotation"] if late else codes.get(job.scheme)
    sent = job.n_tasks_started if late else float(job.k if code is None else job.n)
    transfer = 2 * size / WORKER + (sent + job.n_results_awaited) * size / DRIVER
    if code is None:
        return Whole(0.0, transfer, 0.0)
    data = job.k * size
    return Whole(code.encode_seconds * data, transfer, code.plan_seconds + code.decode_seconds * data)
