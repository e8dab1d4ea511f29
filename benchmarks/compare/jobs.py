"""Compute completion times and costs of every scheme, by formulas if they exist, else by simulation.

For total times, one driver holds the data, encodes, sends, receives and decodes. Every worker fetches its
block and returns a result of the same size. The phases follow one another without overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.compare.codes import CodeMeasurement, Size
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
from polarmap.planning.completion import summarize_simulated_jobs
from polarmap.planning.simulation.backups import CUBED_RULE

DISTRIBUTIONS: dict[str, Distribution] = {
    "2 % stragglers at 5x": with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0),
    "shifted exponential 1 + Exp(1)": ShiftedExponential(1.0, 1.0),
    "heavy tail, Pareto(2.5)": Pareto(1.0, 2.5),
    "real trace of a training job": load_training_trace(),
}
OVERDECOMPOSITION_FACTORS = (4, 16)  # Blocks per worker of persistent workers.
TASK_OVERHEAD = 0.001  # Seconds of overhead for each task of a persistent worker.
# Multiples of the median time after which a task is late.
SLOWDOWNS = (1.0, 1.05, 1.1, 1.15, 1.25, 1.5, 2.0, 2.5, 3.0)


def simulate_schemes(
    size: Size, run_times: Distribution, codes: list[CodeMeasurement], n_trials: int
) -> Iterator[Completion]:
    """Yield every scheme at one size under one distribution; coded schemes have a third more tasks."""
    n, k = size.n, size.k

    def complete(name: str, scheme: str, n_tasks: int = n, **options: float) -> Completion:
        completion = completion_time(n_tasks, k, scheme, run_times, n_trials=n_trials, **options)  # type: ignore[arg-type]
        return completion._replace(scheme=name)

    yield complete("uncoded", "uncoded", k)
    for n_copies in (2, 3):
        yield complete(f"{n_copies}x replication", "replication", n_copies * k)
    yield complete("backup tasks (cubed)", "backup-cubed", k)
    yield complete("backup tasks (Spark 4)", "backup-spark", k)
    yield tune_backups(size, run_times, n_trials)
    for code in codes:
        yield completion_from_arrivals(code.arrivals_needed, code.n, k, run_times, code.name)
    yield complete("on demand", "on_demand")
    n_upfront = max(1, (n - k) // 4)
    yield complete(f"{n_upfront} upfront, rest on demand", "on_demand", n_upfront_parity=n_upfront)
    for overdecomposition in OVERDECOMPOSITION_FACTORS:
        if overdecomposition * n <= MAX_N:
            name = f"{overdecomposition}x as many blocks"
            yield complete(
                name, "small_blocks", tasks_per_worker=overdecomposition, task_overhead=TASK_OVERHEAD
            )


def tune_backups(size: Size, run_times: Distribution, n_trials: int) -> Completion:
    """Return backup tasks by cubed's rule with the multiple that minimizes the 99 % quantile."""
    n_tuning_trials = max(200, n_trials // 5)
    slowdown = min(
        SLOWDOWNS, key=lambda slowdown: complete_with_backups(slowdown, size, run_times, n_tuning_trials).p99
    )
    return complete_with_backups(slowdown, size, run_times, n_trials)


def complete_with_backups(slowdown: float, size: Size, run_times: Distribution, n_trials: int) -> Completion:
    """Return backup tasks by cubed's rule with the multiple `slowdown`."""
    rng, k = np.random.default_rng(0), size.k
    jobs = simulate_backups(
        run_times.sample(rng, (n_trials, k)),
        lambda late_mask: run_times.sample(rng, late_mask.sum()),
        CUBED_RULE._replace(slowdown=slowdown),
    )
    return summarize_simulated_jobs(f"backup tasks (tuned: {slowdown:g} x)", k, k, jobs)


# --- coding and transfer -------------------------------------------------------------------------

DRIVER_BANDWIDTH = 1.25e9  # Bytes per second of the driver: 10 Gbit/s.
WORKER_BANDWIDTH = 75e6  # Bytes per second of a worker: 0.6 Gbit/s.
BLOCK_SIZES = (1_000_000, 64_000_000)  # bytes


class CodingSeconds(NamedTuple):
    """The seconds of a scheme in addition to its tasks.

    Attributes
    ----------
    encode, decode : float
        Seconds on one core of the driver; decoding includes planning.
    transfer : float
        Seconds to transfer blocks and results between driver and workers.
    """

    encode: float
    transfer: float
    decode: float

    @property
    def total_seconds(self) -> float:
        """The sum of all parts."""
        return sum(self)


def estimate_coding_seconds(
    job: Completion, codes: dict[str, CodeMeasurement], block_bytes: int
) -> CodingSeconds:
    """Return the seconds of a scheme in addition to its tasks, for blocks of `block_bytes` bytes.

    The on-demand scheme is charged the full coding time of rotation, and sends only the parity blocks it
    starts.
    """
    is_on_demand = "on demand" in job.scheme
    code = codes["rotation"] if is_on_demand else codes.get(job.scheme)
    n_sent_blocks = job.n_tasks_started if is_on_demand else float(job.k if code is None else job.n)
    transfer = (
        2 * block_bytes / WORKER_BANDWIDTH
        + (n_sent_blocks + job.n_results_awaited) * block_bytes / DRIVER_BANDWIDTH
    )
    if code is None:
        return CodingSeconds(0.0, transfer, 0.0)
    data_bytes = job.k * block_bytes
    return CodingSeconds(
        code.encode_seconds * data_bytes, transfer, code.plan_seconds + code.decode_seconds * data_bytes
    )
