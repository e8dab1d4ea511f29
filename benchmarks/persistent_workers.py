"""Time a step of an iteration on persistent workers against numpy, joblib, Dask and Ray on the same data.

python -m benchmarks.persistent_workers

Every row does the same job: 24 blocks times a vector of 1,000 numbers. polarmap sends 32 tasks and takes the
first results that determine the rest. The other libraries need the results of all their tasks. "2 sleep":
two tasks of every step sleep for longer than the benchmark lasts. "1 killed": in every step a worker is
killed with SIGKILL. No environment variable is set, so each library uses its own default for the threads of
its workers. A library that is not installed is reported as such.

Rows take turns, a few steps each. The table shows the median of all steps, with the 90 % quantile in
brackets.
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

FaultKind = Literal["none", "sleep", "killed"]  # What happens to workers in every step.
Step = Callable[[], Any]

BLOCKS, WORKERS, COLUMNS = 24, 32, 1_000
SLEEPING_TASKS, KILLED_TASK = (3, 11), 5  # Numbers of tasks.
SLEEP_SECONDS = 600.0  # Seconds: longer than the benchmark lasts.
FAULTS: dict[FaultKind, dict[int, Fault]] = {
    "none": {},
    "sleep": {task: Fault("sleep", seconds=SLEEP_SECONDS, attempts=99) for task in SLEEPING_TASKS},
    "killed": {KILLED_TASK: Fault("kill")},
}
STEP_TIMEOUT = 10.0  # Seconds after which a step of another library is given up.

RowFactory = Callable[[np.ndarray, np.ndarray, FaultKind], AbstractContextManager[Step]]


@contextmanager
def numpy_step(A: np.ndarray, x: np.ndarray, fault_kind: FaultKind) -> Iterator[Step]:
    yield lambda: A @ x


@contextmanager
def coded_step(
    A: np.ndarray,
    x: np.ndarray,
    fault_kind: FaultKind,
    n_blocks: int = BLOCKS,
    n_tasks: int = WORKERS,
    executor: Any = None,
) -> Iterator[Step]:
    """Open the step CodedOperator @ x."""
    faulty_executor = FaultyExecutor(executor, FAULTS[fault_kind]) if FAULTS[fault_kind] else executor
    with CodedOperator(A, blocks=n_blocks, tasks=n_tasks, executor=faulty_executor) as operator:
        yield lambda: operator @ x


@contextmanager
def socket_step(A: np.ndarray, x: np.ndarray, fault_kind: FaultKind) -> Iterator[Step]:
    """Open the same step on bare sockets, whose time is a lower bound."""
    with SocketPool(np.reshape(A, (BLOCKS, -1, A.shape[1])), WORKERS, CORES + 1) as sockets:
        yield lambda: np.ravel(sockets.map(methodcaller("dot", x)))


@contextmanager
def coded_step_on(
    make_executor: Callable[[], AbstractContextManager[Any]], *coded_arguments: Any
) -> Iterator[Step]:
    """Open the step CodedOperator @ x on another executor."""
    with make_executor() as executor, coded_step(*coded_arguments, executor=executor) as step:
        yield step


def make_rival_row(open_rival: Any, n_blocks: int = BLOCKS) -> RowFactory:
    """Return the row of another library."""

    @contextmanager
    def row(A: np.ndarray, x: np.ndarray, fault_kind: FaultKind) -> Iterator[Step]:
        with (
            make_fault_source(fault_kind, n_blocks) as faults,
            open_rival(matmul, np.split(A, n_blocks), faults, timeout=STEP_TIMEOUT) as step,
        ):
            yield lambda: np.concatenate(step(x))

    return row


@contextmanager
def make_fault_source(fault_kind: FaultKind, n_tasks: int) -> Iterator[step_rivals.GetFaults]:
    """Provide a function that returns the faults of all tasks of a new step."""
    with tempfile.TemporaryDirectory() as folder:
        kill_file = Path(folder) / "to be killed"

        def faults() -> Sequence[step_rivals.Fault]:
            task_faults: list[step_rivals.Fault] = [0.0] * n_tasks
            if fault_kind == "sleep":
                for task in SLEEPING_TASKS:
                    task_faults[task] = SLEEP_SECONDS
            elif fault_kind == "killed":
                kill_file.touch()
                task_faults[KILLED_TASK] = str(kill_file)
            return task_faults

        yield faults


POLARMAP_DEFAULT, BARE_SOCKETS, FEW_BLOCKS, NUMPY_ONLY = (
    *("polarmap, default", "bare sockets"),
    *(f"polarmap, {CORES} blocks of {CORES + 1}", "numpy, no workers"),
)
# Maps the name of a row to the library it needs, its factory, and the faults to measure it with.
ROWS: dict[str, tuple[str, RowFactory, tuple[FaultKind, ...]]] = {
    NUMPY_ONLY: ("numpy", numpy_step, ("none",)),
    BARE_SOCKETS: ("numpy", socket_step, ("none",)),
    POLARMAP_DEFAULT: ("numpy", coded_step, get_args(FaultKind)),
    # The smallest number of tasks that tolerates one loss.
    FEW_BLOCKS: ("numpy", partial(coded_step, n_blocks=CORES, n_tasks=CORES + 1), ("none",)),
    "polarmap, default without fork": (
        "numpy",
        partial(coded_step_on, partial(Pool, fork=False)),
        get_args(FaultKind),
    ),
    "polarmap, thread pool": ("numpy", partial(coded_step_on, partial(ThreadPoolExecutor, 4)), ("none",)),
    "joblib (loky)": ("joblib", make_rival_row(step_rivals.joblib_step), get_args(FaultKind)),
    "Dask": ("distributed", make_rival_row(step_rivals.dask_step), get_args(FaultKind)),
    "Ray, an actor a block": ("ray", make_rival_row(step_rivals.ray_step), get_args(FaultKind)),
    f"Ray, {CORES} actors": ("ray", make_rival_row(step_rivals.ray_step, CORES), ("none",)),
}


@contextmanager
def open_steps(
    A: np.ndarray, x: np.ndarray, fault_kind: FaultKind, row_names: Iterable[str] = tuple(ROWS)
) -> Iterator[dict[str, Step]]:
    """Open the steps of the rows that are installed and measured with this kind of fault."""
    with ExitStack() as stack:
        steps = {}
        for name in row_names:
            library, row, fault_kinds = ROWS[name]
            if fault_kind in fault_kinds and step_rivals.is_installed(library):
                steps[name] = stack.enter_context(row(A, x, fault_kind))
        yield steps


def measure_column(
    A: np.ndarray, x: np.ndarray, fault_kind: FaultKind, n_turns: int, n_steps: int
) -> dict[str, str]:
    """Return the time of each row in milliseconds, or how it failed."""
    failures: dict[str, str] = {}
    times_by_row: dict[str, list[float]] = defaultdict(list)
    with open_steps(A, x, fault_kind) as steps_by_row:
        for _ in range(n_turns):
            for name in [row_name for row_name in steps_by_row if row_name not in failures]:
                try:
                    times = time_calls(steps_by_row[name], n_steps, n_warmup_calls=2)
                except Exception as error:  # Libraries raise exceptions of all kinds for a dead worker.
                    error_name = type(error).__name__
                    is_timeout = error_name.endswith("TimeoutError")
                    failures[name] = f"> {1e3 * STEP_TIMEOUT:,.0f}" if is_timeout else f"fails: {error_name}"
                else:
                    times_by_row[name] += to_milliseconds(times)
    return {name: format_median_and_p90(times) for name, times in times_by_row.items()} | failures


def main() -> None:
    """Print a table for large and a table for small blocks."""
    n_turns, n_steps = (2, 5) if parse_quick_flag(__doc__) else (8, 12)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(COLUMNS)
    for block_rows in (1_000, 4):
        A = rng.standard_normal((BLOCKS * block_rows, COLUMNS))
        columns = [
            measure_column(
                A, x, fault_kind, *((2, 5) if fault_kind == "killed" else (n_turns, n_steps))
            )  # Some rows need seconds to replace a killed worker.
            for fault_kind in get_args(FaultKind)
        ]
        load = "/".join(f"{load_average:.1f}" for load_average in os.getloadavg())
        print(f"\n{BLOCKS} blocks of {block_rows:,} x {COLUMNS:,}, ms of a step, median (90 %); load {load}")
        lines = [
            (name, *[cells_by_row.get(name, "") for cells_by_row in columns])
            if step_rivals.is_installed(library)
            else (name, "not installed")
            for name, (library, *_) in ROWS.items()
        ]
        print_table(("row", "no faults", "2 sleep", "1 killed"), lines)


if __name__ == "__main__":
    main()
