"""Iterations that people know, with two of 32 workers slow in every step: seconds for a step of each library.

python -m benchmarks.iterations [--quick]

Data stays with the workers where a library lets it. In every step two tasks of 32, drawn at random and the
same for every library, sleep before they compute. polarmap sends 32 tasks for 24 blocks, the others cut into
32 and need all. Libraries take turns, a few steps each. Writes docs/comparison-iterations.md; with --quick
small ones, to build/comparison/. What is not installed is left out, and the page says so. README's table is
that of the page, its column with slow workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from benchmarks import ROOT, in_turns, is_quick, number, pages, step_rivals
from benchmarks.familiar_iterations import (
    Array,
    Iteration,
    least_squares,
    logistic_regression,
    page_rank,
)
from benchmarks.pages import part_of, table, tables_of, with_parts
from polarmap import CodedOperator, Pool
from polarmap.testing import Fault, FaultyExecutor

PAGE = "comparison-iterations.md"
COMMAND = "python -m benchmarks.iterations"
BLOCKS, WORKERS = 24, 32
SLOW = 2  # workers in each step
MEMORY = 4 << 30  # bytes of coded blocks that stay in memory, as those of the others do
Step = Callable[[Array], Array]  # from an iterate to the next one


class Size(NamedTuple):
    """Of a run: for how long slow tasks sleep, turns of the libraries, steps of a turn, the iterations."""

    seconds: float
    turns: int
    steps: int
    iterations: dict[str, Callable[[], Iteration]]


WHOLE = Size(
    0.5,
    4,
    6,
    {
        "least squares, 20,000 x 4,800": partial(least_squares, 20_000, 4_800, WORKERS),
        "logistic regression, 200,000 x 200": partial(logistic_regression, 200_000, 200, WORKERS),
        "PageRank, 320,000 pages, 3.2 million links": partial(page_rank, 320_000, 10, WORKERS),
    },
)
QUICK = Size(
    0.1,
    1,
    2,
    {
        "least squares, 1,600 x 96": partial(least_squares, 1_600, 96, WORKERS),
        "logistic regression, 3,200 x 20": partial(logistic_regression, 3_200, 20, WORKERS),
        "PageRank, 3,200 pages, 32,000 links": partial(page_rank, 3_200, 10, WORKERS),
    },
)


class Draws:
    """Of each step in turn: for how long each task sleeps, `slow` of them; every library gets the same."""

    def __init__(self, seconds: float) -> None:
        self._stream, self._seconds, self.slow = np.random.default_rng(7), seconds, 0

    def __call__(self) -> list[float]:
        found = np.zeros(WORKERS)
        found[self._stream.permutation(WORKERS)[: self.slow]] = self._seconds
        return found.tolist()


@contextmanager
def with_polarmap(iteration: Iteration, draws: Draws) -> Iterator[Step]:
    """By products of an operator, on workers that stay."""
    faults: dict[int, Fault] = {}

    def step(x: Array) -> Array:
        faults.clear()  # both products of a step meet the same slow workers
        faults.update((task, Fault("sleep", seconds)) for task, seconds in enumerate(draws()) if seconds)
        return iteration.coded(operator, x)

    with (
        Pool(memory_limit=MEMORY) as pool,
        CodedOperator(
            iteration.matrix, blocks=BLOCKS, tasks=WORKERS, executor=FaultyExecutor(pool, faults)
        ) as operator,
    ):
        yield step


def with_numpy(iteration: Iteration, draws: Draws) -> AbstractContextManager[Step]:
    """The same tasks one after another in this process, none of which sleeps."""
    return nullcontext(
        lambda x: iteration.update(x, [iteration.task(block, x) for block in iteration.blocks])
    )


@contextmanager
def rival(way: Any, iteration: Iteration, draws: Draws) -> Iterator[Step]:
    """By another library, with a slot for every task."""
    with way(iteration.task, iteration.blocks, draws, WORKERS) as step:
        yield lambda x: iteration.update(x, step(x))


Row = Callable[[Iteration, Draws], AbstractContextManager[Step]]
# Name -> library that it takes, row.
ROWS: dict[str, tuple[str, Row]] = {
    "numpy, no workers": ("numpy", with_numpy),
    "**polarmap**": ("numpy", with_polarmap),
    "Dask": ("distributed", partial(rival, step_rivals.dask)),
    "joblib": ("joblib", partial(rival, step_rivals.joblib)),
    "Ray": ("ray", partial(rival, step_rivals.ray)),
    "cubed": ("cubed", partial(rival, step_rivals.cubed)),
}


def rows_for(iteration: Iteration) -> dict[str, Row]:
    """Those that are installed and can do it: the arrays of cubed are dense."""
    is_sparse = scipy.sparse.issparse(iteration.matrix)
    return {
        name: row
        for name, (library, row) in ROWS.items()
        if step_rivals.is_installed(library) and not (is_sparse and library == "cubed")
    }


def measured(iteration: Iteration, size: Size) -> list[dict[str, float]]:
    """Row -> median seconds of a step, with nobody slow and with some; all arrive at the same iterate."""
    rows = rows_for(iteration)
    draws = {name: Draws(size.seconds) for name in rows}
    reached = dict.fromkeys(rows, iteration.start)
    found: list[dict[str, float]] = []

    def advance(name: str) -> None:
        reached[name] = steps[name](reached[name])

    with ExitStack() as stack:
        steps = {name: stack.enter_context(row(iteration, draws[name])) for name, row in rows.items()}
        for slow in (0, SLOW):
            for some in draws.values():
                some.slow = slow
            taken = in_turns([partial(advance, name) for name in steps], size.turns, size.steps)
            found.append({name: median(times) for name, times in zip(steps, taken)})
    for x in reached.values():
        assert np.allclose(x, reached["numpy, no workers"])
    return found


def tables(found: dict[str, list[dict[str, float]]]) -> str:
    """Of each iteration, without and with slow workers."""
    missing = [name for name, (library, _) in ROWS.items() if not step_rivals.is_installed(library)]
    parts = [f"{name} is not installed, and left out." for name in missing]
    header = ["seconds of a step", "nobody slow", "two slow", "two slow / polarmap"]
    for what, (lucky, unlucky) in found.items():
        ours = unlucky["**polarmap**"]
        rows = [
            [name, number(lucky[name]), number(unlucky[name]), f"{unlucky[name] / ours:.1f}"]
            for name in lucky
        ]
        parts += [f"## {what}", table(header, rows)]
    return "\n\n".join(parts)


def with_headlines(readme: str) -> str:
    """README with its table as the page has it now: a column for each iteration, with slow workers."""
    page = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    found = tables_of(page)
    columns = [{row[0]: row[2] for row in rows} for rows in found.values()]
    body = [[name, *(column.get(name, "-") for column in columns)] for name in list(columns[0])[1:]]
    text = table([f"seconds of a step; load average {part_of(page, 'load')}", *found], body)
    return with_parts(readme, {f"from docs/{PAGE}: {COMMAND}": text})


def main() -> None:
    """Measure, print the tables, write them into the page and README."""
    quick = is_quick(__doc__)
    size = QUICK if quick else WHOLE
    found = {}
    for what, make in size.iterations.items():
        found[what] = measured(make(), size)
        print(f"{what}: measured", flush=True)
    text = tables(found)
    print(text)
    load = f"{os.getloadavg()[1]:.1f}"
    parts = {"load": load, "seconds": f"{size.seconds:g}", "iterations": text}
    pages.write(PAGE, parts, quick)
    if not quick:
        readme = ROOT / "README.md"
        readme.write_text(with_headlines(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
