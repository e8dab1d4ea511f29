"""A step of an iteration on persistent workers, beside numpy, joblib, Dask and Ray on the same data.

python -m benchmarks.persistent_workers

Every row does the same job: 24 blocks times a vector of 1,000 numbers. polarmap sends 32 and takes the
first results that determine the rest; the others need all of theirs. "2 asleep": two tasks of every step
sleep for good. "1 killed": in every step a worker is killed with SIGKILL. No environment variable is set:
each library limits the threads of its workers as it does by itself. What is not installed says so.

Rows take turns, a few steps each. Each has the median of all its steps, and in brackets what nine in ten of
them take at most.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from operator import matmul, methodcaller
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from benchmarks import (
    format_median_and_p90,
    parse_quick_flag,
    print_table,
    step_rivals,
    time_calls,
    to_milliseconds,
)
from benchmarks.bare_sockets import SocketPool
from benchmarks.step_rivals import CORES
from polarmap import CodedOperator, Pool
from polarmap.testing import Fault, FaultyExecutor

Trouble = Literal["nobody", "asleep", "killed"]  # what befalls the workers, in every step
Step = Callable[[], Any]

BLOCKS, WORKERS, COLUMNS = 24, 32, 1_000
SLEEPING_TASKS, KILLED_TASK = (3, 11), 5  # tasks
SLEEP_SECONDS = 600.0  # of sleep
FAULTS: dict[Trouble, dict[int, Fault]] = {
    "nobody": {},
    "asleep": {task: Fault("sleep", seconds=SLEEP_SECONDS, attempts=99) for task in SLEEPING_TASKS},
    "killed": {KILLED_TASK: Fault("kill")},
}
STEP_TIMEOUT = 10.0  # seconds, of a step of another library

RowFactory = Callable[[np.ndarray, np.ndarray, Trouble], AbstractContextManager[Step]]


@contextmanager
def numpy_step(A: np.ndarray, x: np.ndarray, trouble: Trouble) -> Iterator[Step]:
    yield lambda: A @ x


@contextmanager
def coded_step(
    A: np.ndarray,
    x: np.ndarray,
    trouble: Trouble,
    n_blocks: int = BLOCKS,
    n_tasks: int = WORKERS,
    executor: Any = None,
) -> Iterator[Step]:
    """CodedOperator @ x."""
    faulty_executor = FaultyExecutor(executor, FAULTS[trouble]) if FAULTS[trouble] else executor
    with CodedOperator(A, blocks=n_blocks, tasks=n_tasks, executor=faulty_executor) as operator:
        yield lambda: operator @ x


@contextmanager
def socket_step(A: np.ndarray, x: np.ndarray, trouble: Trouble) -> Iterator[Step]:
    """What CodedOperator @ x could take at the least."""
    with SocketPool(np.reshape(A, (BLOCKS, -1, A.shape[1])), WORKERS, CORES + 1) as sockets:
        yield lambda: np.ravel(sockets.map(methodcaller("dot", x)))


@contextmanager
def coded_step_on(
    make_executor: Callable[[], AbstractContextManager[Any]], *coded_arguments: Any
) -> Iterator[Step]:
    """The same on another executor."""
    with make_executor() as executor, coded_step(*coded_arguments, executor=executor) as step:
        yield step


def make_rival_row(open_rival: Any, n_blocks: int = BLOCKS) -> RowFactory:
    """A row of another library."""

    @contextmanager
    def row(A: np.ndarray, x: np.ndarray, trouble: Trouble) -> Iterator[Step]:
        with (
            make_fault_source(trouble, n_blocks) as faults,
            open_rival(matmul, np.split(A, n_blocks), faults, deadline=STEP_TIMEOUT) as step,
        ):
            yield lambda: np.concatenate(step(x))

    return row


@contextmanager
def make_fault_source(trouble: Trouble, n_tasks: int) -> Iterator[step_rivals.GetFaults]:
    """A function that gives the faults of all tasks of a new step."""
    with tempfile.TemporaryDirectory() as folder:
        kill_file = Path(folder) / "to be killed"

        def faults() -> Sequence[step_rivals.Fault]:
            task_faults: list[step_rivals.Fault] = [0.0] * n_tasks
            if trouble == "asleep":
                for task in SLEEPING_TASKS:
                    task_faults[task] = SLEEP_SECONDS
            elif trouble == "killed":
                kill_file.touch()
                task_faults[KILLED_TASK] = str(kill_file)
            return task_faults

        yield faults


POLARMAP_DEFAULT, BARE_SOCKETS, FEW_BLOCKS, NUMPY_ONLY = (
    *("polarmap, default", "bare sockets"),
    *(f"polarmap, {CORES} blocks of {CORES + 1}", "numpy, no workers"),
)
# Name -> library that it takes, row, what may befall its workers.
ROWS: dict[str, tuple[str, RowFactory, tuple[Trouble, ...]]] = {
    NUMPY_ONLY: ("numpy", numpy_step, ("nobody",)),
    BARE_SOCKETS: ("numpy", socket_step, ("nobody",)),
    POLARMAP_DEFAULT: ("numpy", coded_step, get_args(Trouble)),
    # The least tasks that survive one.
    FEW_BLOCKS: ("numpy", partial(coded_step, n_blocks=CORES, n_tasks=CORES + 1), ("nobody",)),
    "polarmap, default without fork": (
        "numpy",
        partial(coded_step_on, partial(Pool, fork=False)),
        get_args(Trouble),
    ),
    "polarmap, thread pool": ("numpy", partial(coded_step_on, partial(ThreadPoolExecutor, 4)), ("nobody",)),
    "joblib (loky)": ("joblib", make_rival_row(step_rivals.joblib_step), get_args(Trouble)),
    "Dask": ("distributed", make_rival_row(step_rivals.dask_step), get_args(Trouble)),
    "Ray, an actor a block": ("ray", make_rival_row(step_rivals.ray_step), get_args(Trouble)),
    f"Ray, {CORES} actors": ("ray", make_rival_row(step_rivals.ray_step, CORES), ("nobody",)),
}


@contextmanager
def open_steps(
    A: np.ndarray, x: np.ndarray, trouble: Trouble, row_names: Iterable[str] = tuple(ROWS)
) -> Iterator[dict[str, Step]]:
    """The steps of those that are installed and meet such trouble."""
    with ExitStack() as stack:
        steps = {}
        for name in row_names:
            library, row, troubles = ROWS[name]
            if trouble in troubles and step_rivals.is_installed(library):
                steps[name] = stack.enter_context(row(A, x, trouble))
        yield steps


def measure_column(
    A: np.ndarray, x: np.ndarray, trouble: Trouble, n_turns: int, n_steps: int
) -> dict[str, str]:
    """What each row takes, in milliseconds, or what becomes of it."""
    failures: dict[str, str] = {}
    times_by_row: dict[str, list[float]] = defaultdict(list)
    with open_steps(A, x, trouble) as steps_by_row:
        for _ in range(n_turns):
            for name in [row_name for row_name in steps_by_row if row_name not in failures]:
                try:
                    times = time_calls(steps_by_row[name], n_steps, n_warmup_calls=2)
                except Exception as error:  # whatever a library says of a dead worker
                    error_name = type(error).__name__
                    is_timeout = error_name.endswith("TimeoutError")
                    failures[name] = f"> {1e3 * STEP_TIMEOUT:,.0f}" if is_timeout else f"fails: {error_name}"
                else:
                    times_by_row[name] += to_milliseconds(times)
    return {name: format_median_and_p90(times) for name, times in times_by_row.items()} | failures


def main() -> None:
    """Print both tables."""
    n_turns, n_steps = (2, 5) if parse_quick_flag(__doc__) else (8, 12)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(COLUMNS)
    for block_rows in (1_000, 4):
        A = rng.standard_normal((BLOCKS * block_rows, COLUMNS))
        columns = [
            measure_column(
                A, x, trouble, *((2, 5) if trouble == "killed" else (n_turns, n_steps))
            )  # some take seconds
            for trouble in get_args(Trouble)
        ]
        load = "/".join(f"{load_average:.1f}" for load_average in os.getloadavg())
        print(f"\n{BLOCKS} blocks of {block_rows:,} x {COLUMNS:,}, ms of a step, median (90 %); load {load}")
        lines = [
            (name, *[cells_by_row.get(name, "") for cells_by_row in columns])
            if step_rivals.is_installed(library)
            else (name, "not installed")
            for name, (library, *_) in ROWS.items()
        ]
        print_table(("", "nobody asleep", "2 asleep", "1 killed"), lines)


if __name__ == "__main__":
    main()
