"""A step on the cluster of an engine: by the engine alone, as its documentation writes it, and by polarmap.

python -m benchmarks.engines [--quick]

Dask holds blocks as futures, Ray in actors, and both wait for all of their tasks; polarmap on the same
cluster has workers that stay (`Pool(client)`, `Pool(ray)`) and needs 24 of 32. In every step nobody sleeps,
two tasks do, or one is killed with its process, drawn at random and the same for all. One row after the
other, each on a cluster of its own; medians, and what nine in ten steps do not exceed. Quiet machines only:
Ray has a process for each block.
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

from benchmarks import is_quick, median_and_most, milliseconds, seconds_of_steps, show, step_rivals
from benchmarks.familiar_iterations import Array, Iteration
from benchmarks.iterations import BLOCKS, QUICK, SLOW, WHOLE, WORKERS, Size, Step
from polarmap import CodedOperator, Pool
from polarmap.testing import Fault, FaultyExecutor

SLEEP_SECONDS = 0.5
CASES = ("nobody asleep", "two asleep", "one killed")


def product(rows: int, columns: int) -> Iteration:
    """The same product in every step, of blocks with so many rows: 24 of them are all data."""
    A = np.random.default_rng(3).standard_normal((BLOCKS * rows, columns))
    x = np.ones(columns)
    return Iteration(
        np.split(A, BLOCKS), matmul, lambda x, _: x, A, lambda operator, x: (operator @ x, x)[1], x
    )


class Misfortunes:
    """What the tasks of a step suffer: of each step in turn other ones, the same for every row.

    case : which of `CASES` it is, from now on.
    """

    def __init__(self, folder: str) -> None:
        self._stream, self._folder, self.case = np.random.default_rng(7), Path(folder), CASES[0]

    def __call__(self, count: int) -> dict[int, step_rivals.Fault]:
        """For how long tasks sleep, or the file of one that is killed, by their numbers."""
        drawn = self._stream.permutation(count)[:SLOW].tolist()
        if self.case == "two asleep":
            return dict.fromkeys(drawn, SLEEP_SECONDS)
        if self.case == "one killed":
            file = self._folder / "kill"
            file.touch()
            return {drawn[0]: str(file)}
        return {}


Row = Callable[[Iteration, Misfortunes], AbstractContextManager[Step]]


@contextmanager
def alone(way: Any, iteration: Iteration, misfortunes: Misfortunes) -> Iterator[Step]:
    """By the engine, with a slot for every task."""
    count = len(iteration.blocks)

    def faults() -> list[step_rivals.Fault]:
        suffer = misfortunes(count)
        return [suffer.get(task, 0.0) for task in range(count)]

    with way(iteration.task, iteration.blocks, faults, count) as step:
        yield lambda x: iteration.update(x, step(x))


@contextmanager
def coded(cluster: Any, iteration: Iteration, misfortunes: Misfortunes) -> Iterator[Step]:
    """By products of an operator, on workers that stay on the cluster."""
    faults: dict[int, Fault] = {}

    def step(x: Array) -> Array:
        faults.clear()
        for task, fault in misfortunes(WORKERS).items():
            faults[task] = Fault("kill") if isinstance(fault, str) else Fault("sleep", fault)
        return iteration.coded(operator, x)

    with (
        cluster() as engine,
        Pool(engine, workers=WORKERS) as pool,
        CodedOperator(
            iteration.matrix, blocks=BLOCKS, tasks=WORKERS, executor=FaultyExecutor(pool, faults), retries=3
        ) as operator,
    ):
        iteration.coded(operator, iteration.start)
        while (kept := pool._resources) is None or len(
            kept.worker_pool
        ) < operator.report.n:  # all have started
            iteration.coded(operator, iteration.start)
        yield step


# Name -> library that it takes, row.
ROWS: dict[str, tuple[str, Row]] = {
    "Dask alone": ("distributed", partial(alone, step_rivals.dask)),
    "polarmap on Dask": ("distributed", partial(coded, partial(step_rivals.dask_here, WORKERS))),
    "Ray alone": ("ray", partial(alone, step_rivals.ray)),
    "polarmap on Ray": ("ray", partial(coded, step_rivals.ray_here)),
}


def measured(row: Row, iteration: Iteration, size: Size) -> list[str]:
    """Milliseconds of a step in each case; a killed process is there again before the next step."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        misfortunes, reached = Misfortunes(folder), [iteration.start]
        with row(iteration, misfortunes) as step:
            for misfortunes.case in CASES:
                # Dask gives up what was killed too often.
                count = size.turns if misfortunes.case == "one killed" else size.turns * size.steps
                taken = seconds_of_steps(lambda: reached.append(step(reached.pop())), count)
                found.append(median_and_most(milliseconds(taken)))
    return found


def main() -> None:
    """Measure and print one table for each job."""
    size = QUICK if is_quick(__doc__) else WHOLE
    jobs = {"24 of 32 blocks, 4 x 1,000": partial(product, 4, 1_000)}
    if size is WHOLE:
        jobs["24 of 32 blocks, 1,000 x 1,000"] = partial(product, 1_000, 1_000)
    warnings.simplefilter("ignore")  # of engines whose processes are killed
    for what, make in (jobs | size.iterations).items():
        rows = [
            (name, *measured(row, make(), size))
            for name, (library, row) in ROWS.items()
            if step_rivals.is_installed(library)
        ]
        show((what, *(f"{case}, ms (90 %)" for case in CASES)), rows, width=26)


if __name__ == "__main__":
    main()
