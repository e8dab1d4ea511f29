"""Time a step on the cluster of an engine, by the engine alone and by polarmap.

python -m benchmarks.engines [--quick]

The engine alone is used as its documentation recommends. Dask holds blocks as futures and Ray holds them in
actors; both wait for all of their tasks. polarmap has persistent workers on the same cluster (`Pool(client)`,
`Pool(ray)`) and needs 24 of 32 results. In every step no task sleeps, two tasks sleep, or one process is
killed; the tasks are drawn at random, the same for all rows. Each row runs on a new cluster. Figures are
medians, with the 90 % quantile in brackets. Ray starts a process for each block, so run this on an otherwise
idle machine. Each ratio is that of polarmap's median to the engine's.

The last table counts the bytes that maps of one array send to the workers of `Pool(client)`, as if these were
on other machines. The kernel counts them (TCP_INFO, on Linux).
"""

from __future__ import annotations

import socket
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import matmul
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

import polarmap
from benchmarks import (
    format_median_and_p90,
    parse_quick_flag,
    print_table,
    step_rivals,
    time_calls,
    to_milliseconds,
)
from benchmarks.familiar_iterations import Array, Iteration
from benchmarks.iterations import BLOCKS, N_SLOW, QUICK, WHOLE, WORKERS, Size, Step
from polarmap import CodedOperator, Pool
from polarmap.testing import Fault, FaultyExecutor

SLEEP_SECONDS = 0.5
CASES = ("no faults", "two sleep", "one killed")
# The size of the struct tcp_info of Linux, and the offset of its field tcpi_bytes_acked.
TCP_INFO_BYTES, ACKNOWLEDGED_BYTES_OFFSET = 256, 120


def make_product(block_rows: int, n_columns: int) -> Iteration:
    """Return an iteration with the same product in every step; 24 blocks of `block_rows` rows are data."""
    A = np.random.default_rng(3).standard_normal((BLOCKS * block_rows, n_columns))
    x = np.ones(n_columns)
    return Iteration(
        np.split(A, BLOCKS), matmul, lambda x, _: x, A, lambda operator, x: (operator @ x, x)[1], x
    )


class FaultSampler:
    """Draws the faults of the tasks of each step, the same for every row.

    Attributes
    ----------
    case
        The current case, one of `CASES`.
    """

    def __init__(self, folder: str) -> None:
        self._rng, self._folder, self.case = np.random.default_rng(7), Path(folder), CASES[0]

    def __call__(self, n_tasks: int) -> dict[int, step_rivals.Fault]:
        """Return each unlucky task's fault: seconds to sleep, or a file whose remover is killed."""
        unlucky_tasks = self._rng.permutation(n_tasks)[:N_SLOW].tolist()
        if self.case == "two sleep":
            return dict.fromkeys(unlucky_tasks, SLEEP_SECONDS)
        if self.case == "one killed":
            file = self._folder / "kill"
            file.touch()
            return {unlucky_tasks[0]: str(file)}
        return {}


RowFactory = Callable[[Iteration, FaultSampler], AbstractContextManager[Step]]


@contextmanager
def engine_step(open_engine: Any, iteration: Iteration, fault_sampler: FaultSampler) -> Iterator[Step]:
    """Open the step of an engine, with a slot for every task."""
    n_tasks = len(iteration.blocks)

    def faults() -> list[step_rivals.Fault]:
        faults_by_task = fault_sampler(n_tasks)
        return [faults_by_task.get(task, 0.0) for task in range(n_tasks)]

    with open_engine(iteration.task, iteration.blocks, faults, n_tasks) as step:
        yield lambda x: iteration.update(x, step(x))


@contextmanager
def coded_step(open_cluster: Any, iteration: Iteration, fault_sampler: FaultSampler) -> Iterator[Step]:
    """Open the step of an operator, on persistent workers on the cluster."""
    faults: dict[int, Fault] = {}

    def step(x: Array) -> Array:
        faults.clear()
        for task, fault in fault_sampler(WORKERS).items():
            faults[task] = Fault("kill") if isinstance(fault, str) else Fault("sleep", fault)
        return iteration.step_with_operator(operator, x)

    with (
        open_cluster() as engine,
        Pool(engine, workers=WORKERS) as pool,
        CodedOperator(
            iteration.matrix, blocks=BLOCKS, tasks=WORKERS, executor=FaultyExecutor(pool, faults), retries=3
        ) as operator,
    ):
        iteration.step_with_operator(operator, iteration.start)
        while (worker_pool := pool._executor._resources) is None or len(
            worker_pool.worker_pool
        ) < operator.report.n:  # Repeat until all workers have started.
            iteration.step_with_operator(operator, iteration.start)
        yield step


# Maps the name of a row to the library it needs and its factory.
ROWS: dict[str, tuple[str, RowFactory]] = {
    "Dask alone": ("distributed", partial(engine_step, step_rivals.dask_step)),
    "polarmap on Dask": ("distributed", partial(coded_step, partial(step_rivals.local_dask_client, WORKERS))),
    "Ray alone": ("ray", partial(engine_step, step_rivals.ray_step)),
    "polarmap on Ray": ("ray", partial(coded_step, step_rivals.local_ray_session)),
}


def measure_row(row: RowFactory, iteration: Iteration, size: Size) -> list[list[float]]:
    """Return the milliseconds of each step, by case. A killed process is restarted before the next step."""
    milliseconds = []
    with tempfile.TemporaryDirectory() as folder:
        fault_sampler, iterates = FaultSampler(folder), [iteration.start]
        with row(iteration, fault_sampler) as step:
            for fault_sampler.case in CASES:
                # Dask gives up a task whose worker was killed too often.
                n_steps = size.n_turns if fault_sampler.case == "one killed" else size.n_turns * size.n_steps
                step_seconds = time_calls(lambda: iterates.append(step(iterates.pop())), n_steps)
                milliseconds.append(to_milliseconds(step_seconds))
    return milliseconds


def measure_rows(make_iteration: Callable[[], Iteration], size: Size) -> Iterator[tuple[str, ...]]:
    """Yield the row of each installed engine, and that of polarmap on it with the ratios of the medians."""
    engine_times: list[list[float]] = []
    for name, (library, row) in ROWS.items():
        if not step_rivals.is_installed(library):
            continue
        times = measure_row(row, make_iteration(), size)
        cells = list(map(format_median_and_p90, times))
        if name.endswith("alone"):
            engine_times = times
        else:
            ratios = [median(own) / median(other) for own, other in zip(times, engine_times)]
            cells = [f"{cell} {ratio:.2f}x" for cell, ratio in zip(cells, ratios)]
        yield (name, *cells)


def count_sent_bytes(pool: Pool) -> int:
    """Return the bytes that this process has sent to the workers of a pool, as the kernel counts them."""
    n_sent = 0
    for worker in pool._executor._resources.worker_pool._workers.values():  # type: ignore[union-attr]
        connection = worker.channel._connection  # type: ignore[union-attr]
        tcp_info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        n_sent += struct.unpack_from("Q", tcp_info, ACKNOWLEDGED_BYTES_OFFSET)[0]
    return n_sent


def measure_sent_bytes(n_bytes: int) -> Iterator[tuple[str, ...]]:
    """Yield the megabytes that each of several maps of one array sends to workers on Dask."""
    A = np.random.default_rng(0).standard_normal((BLOCKS, n_bytes // (8 * BLOCKS)))
    with (
        mock.patch("polarmap.executors.dask.is_every_host_local", return_value=False),
        step_rivals.local_dask_client(WORKERS) as client,
        Pool(client, workers=WORKERS) as pool,
    ):
        polarmap.coded_map(np.sum, np.ones((BLOCKS, 4)), blocks=BLOCKS, tasks=WORKERS, executor=pool)
        for label in ("first map", "second map", "third map", "a row has changed"):
            A[0] += label.startswith("a row")
            before = count_sent_bytes(pool)
            y = polarmap.coded_map(row_sums, A, blocks=BLOCKS, tasks=WORKERS, executor=pool)
            assert np.allclose(np.ravel(list(y)), A.sum(axis=1))
            yield label, f"{(count_sent_bytes(pool) - before) / 1e6:.2f}"


def row_sums(block: Array) -> Array:
    """Return the sum of each row of a block."""
    return np.asarray(block.sum(axis=1))


def main() -> None:
    """Print one table for each job."""
    size = QUICK if parse_quick_flag(__doc__) else WHOLE
    jobs = {"24 of 32 blocks, 4 x 1,000": partial(make_product, 4, 1_000)}
    if size is WHOLE:
        jobs["24 of 32 blocks, 1,000 x 1,000"] = partial(make_product, 1_000, 1_000)
    warnings.simplefilter("ignore")  # Engines warn about killed processes.
    for title, make_iteration in (jobs | size.make_iterations).items():
        header = title, *(f"{case}, ms (90 %)" for case in CASES)
        print_table(header, measure_rows(make_iteration, size), label_width=26)
    if step_rivals.is_installed("distributed"):
        n_bytes = 32_000_000 if size is WHOLE else 3_200_000
        header = f"an array of {n_bytes / 1e6:.1f} MB", "MB sent"
        print_table(header, measure_sent_bytes(n_bytes), label_width=26)


if __name__ == "__main__":
    main()
