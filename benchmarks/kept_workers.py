"""A step of an iteration on workers that stay, beside numpy, joblib, Dask and Ray on the same data.

python -m benchmarks.kept_workers

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

from benchmarks import is_quick, median_and_most, milliseconds, seconds_of_steps, show, step_rivals
from benchmarks.bare_sockets import BareSockets
from benchmarks.step_rivals import CORES
from polarmap import CodedOperator, Pool
from polarmap.testing import Fault, FaultyExecutor

Trouble = Literal["nobody", "asleep", "killed"]  # what befalls the workers, in every step
Step = Callable[[], Any]

BLOCKS, WORKERS, COLUMNS = 24, 32, 1_000
ASLEEP, KILLED = (3, 11), 5  # tasks
SECONDS = 600.0  # of sleep
FAULTS: dict[Trouble, dict[int, Fault]] = {
    "nobody": {},
    "asleep": {task: Fault("sleep", seconds=SECONDS, attempts=99) for task in ASLEEP},
    "killed": {KILLED: Fault("kill")},
}
DEADLINE = 10.0  # seconds, of a step of another library

Row = Callable[[np.ndarray, np.ndarray, Trouble], AbstractContextManager[Step]]


@contextmanager
def with_numpy(A: np.ndarray, x: np.ndarray, trouble: Trouble) -> Iterator[Step]:
    yield lambda: A @ x


@contextmanager
def coded(
    A: np.ndarray,
    x: np.ndarray,
    trouble: Trouble,
    blocks: int = BLOCKS,
    tasks: int = WORKERS,
    executor: Any = None,
) -> Iterator[Step]:
    """CodedOperator @ x."""
    unlucky = FaultyExecutor(executor, FAULTS[trouble]) if FAULTS[trouble] else executor
    with CodedOperator(A, blocks=blocks, tasks=tasks, executor=unlucky) as operator:
        yield lambda: operator @ x


@contextmanager
def on_bare_sockets(A: np.ndarray, x: np.ndarray, trouble: Trouble) -> Iterator[Step]:
    """What CodedOperator @ x could take at the least."""
    with BareSockets(np.reshape(A, (BLOCKS, -1, A.shape[1])), WORKERS, CORES + 1) as sockets:
        yield lambda: np.ravel(sockets.map(methodcaller("dot", x)))


@contextmanager
def on(executor: Callable[[], AbstractContextManager[Any]], *given: Any) -> Iterator[Step]:
    """The same on another executor."""
    with executor() as one, coded(*given, executor=one) as step:
        yield step


def rival(way: Any, blocks: int = BLOCKS) -> Row:
    """A row of another library."""

    @contextmanager
    def row(A: np.ndarray, x: np.ndarray, trouble: Trouble) -> Iterator[Step]:
        with (
            faults_of(trouble, blocks) as faults,
            way(matmul, np.split(A, blocks), faults, deadline=DEADLINE) as step,
        ):
            yield lambda: np.concatenate(step(x))

    return row


@contextmanager
def faults_of(trouble: Trouble, count: int) -> Iterator[step_rivals.Faults]:
    """A function that gives the faults of all tasks of a new step."""
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "to be killed"

        def faults() -> Sequence[step_rivals.Fault]:
            found: list[step_rivals.Fault] = [0.0] * count
            if trouble == "asleep":
                for task in ASLEEP:
                    found[task] = SECONDS
            elif trouble == "killed":
                mark.touch()
                found[KILLED] = str(mark)
            return found

        yield faults


DEFAULT, BARE, FEW, NUMPY = (
    *("polarmap, default", "bare sockets"),
    *(f"polarmap, {CORES} blocks of {CORES + 1}", "numpy, no workers"),
)
# Name -> library that it takes, row, what may befall its workers.
ROWS: dict[str, tuple[str, Row, tuple[Trouble, ...]]] = {
    NUMPY: ("numpy", with_numpy, ("nobody",)),
    BARE: ("numpy", on_bare_sockets, ("nobody",)),
    DEFAULT: ("numpy", coded, get_args(Trouble)),
    # The least tasks that survive one.
    FEW: ("numpy", partial(coded, blocks=CORES, tasks=CORES + 1), ("nobody",)),
    "polarmap, default without fork": ("numpy", partial(on, partial(Pool, fork=False)), get_args(Trouble)),
    "polarmap, thread pool": ("numpy", partial(on, partial(ThreadPoolExecutor, 4)), ("nobody",)),
    "joblib (loky)": ("joblib", rival(step_rivals.joblib), get_args(Trouble)),
    "Dask": ("distributed", rival(step_rivals.dask), get_args(Trouble)),
    "Ray, an actor a block": ("ray", rival(step_rivals.ray), get_args(Trouble)),
    f"Ray, {CORES} actors": ("ray", rival(step_rivals.ray, CORES), ("nobody",)),
}


@contextmanager
def opened(
    A: np.ndarray, x: np.ndarray, trouble: Trouble, names: Iterable[str] = tuple(ROWS)
) -> Iterator[dict[str, Step]]:
    """The steps of those that are installed and meet such trouble."""
    with ExitStack() as stack:
        steps = {}
        for name in names:
            library, row, troubles = ROWS[name]
            if trouble in troubles and step_rivals.is_installed(library):
                steps[name] = stack.enter_context(row(A, x, trouble))
        yield steps


def column(A: np.ndarray, x: np.ndarray, trouble: Trouble, turns: int, steps: int) -> dict[str, str]:
    """What each row takes, in milliseconds, or what becomes of it."""
    found: dict[str, str] = {}
    taken: dict[str, list[float]] = defaultdict(list)
    with opened(A, x, trouble) as rows:
        for _ in range(turns):
            for name in [one for one in rows if one not in found]:
                try:
                    times = seconds_of_steps(rows[name], steps, not_counted=2)
                except Exception as error:  # whatever a library says of a dead worker
                    kind = type(error).__name__
                    late = kind.endswith("TimeoutError")
                    found[name] = f"> {1e3 * DEADLINE:,.0f}" if late else f"fails: {kind}"
                else:
                    taken[name] += milliseconds(times)
    return {name: median_and_most(times) for name, times in taken.items()} | found


def main() -> None:
    """Print both tables."""
    turns, steps = (2, 5) if is_quick(__doc__) else (8, 12)
    stream = np.random.default_rng(0)
    x = stream.standard_normal(COLUMNS)
    for rows in (1_000, 4):
        A = stream.standard_normal((BLOCKS * rows, COLUMNS))
        columns = [
            column(A, x, trouble, *((2, 5) if trouble == "killed" else (turns, steps)))  # some take seconds
            for trouble in get_args(Trouble)
        ]
        load = "/".join(f"{number:.1f}" for number in os.getloadavg())
        print(f"\n{BLOCKS} blocks of {rows:,} x {COLUMNS:,}, ms of a step, median (90 %); load {load}")
        lines = [
            (name, *[one.get(name, "") for one in columns])
            if step_rivals.is_installed(library)
            else (name, "not installed")
            for name, (library, *_) in ROWS.items()
        ]
        show(("", "nobody asleep", "2 asleep", "1 killed"), lines)


if __name__ == "__main__":
    main()
