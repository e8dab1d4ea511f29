"""Time a step on the cluster of an engine, by the engine alone and by polarmap.

python -m benchmarks.engines [--quick]

The engine alone is used as its documentation recommends. Dask holds blocks as futures and Ray holds them in
actors; both wait for all of their tasks. polarmap has persistent workers on the same cluster (`Pool(client)`,
`Pool(ray)`) and needs 24 of 32 results. In every step no task sleeps, two tasks sleep, or one process is
killed; the tasks are drawn at random, the same for all rows. Each row runs on a new cluster. Figures are
medians, with the 90 % quantile in brackets. Ray starts a process for each block, so run this on an otherwise
idle machine.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import matmul
from pathlib import Path
from typing import Any

import numpy as np

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


def measure_row(row: RowFactory, iteration: Iteration, size: Size) -> list[str]:
    """Return the milliseconds of a step in each case. A killed process is restarted before the next step."""
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        fault_sampler, iterates = FaultSampler(folder), [iteration.start]
        with row(iteration, fault_sampler) as step:
            for fault_sampler.case in CASES:
                # Dask gives up a task whose worker was killed too often.
                n_steps = size.n_turns if fault_sampler.case == "one killed" else size.n_turns * size.n_steps
                step_seconds = time_calls(lambda: iterates.append(step(iterates.pop())), n_steps)
                cells.append(format_median_and_p90(to_milliseconds(step_seconds)))
    return cells


def main() -> None:
    """Print one table for each job."""
    size = QUICK if parse_quick_flag(__doc__) else WHOLE
    jobs = {"24 of 32 blocks, 4 x 1,000": partial(make_product, 4, 1_000)}
    if size is WHOLE:
        jobs["24 of 32 blocks, 1,000 x 1,000"] = partial(make_product, 1_000, 1_000)
    warnings.simplefilter("ignore")  # Engines warn about killed processes.
    for title, make_iteration in (jobs | size.make_iterations).items():
        rows = [
            (name, *measure_row(row, make_iteration(), size))
            for name, (library, row) in ROWS.items()
            if step_rivals.is_installed(library)
        ]
        print_table((title, *(f"{case}, ms (90 %)" for case in CASES)), rows, label_width=26)


if __name__ == "__main__":
    main()
