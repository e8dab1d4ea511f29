"""Time the steps of familiar iterations in several libraries, with two of 32 workers slow in every step.

python -m benchmarks.iterations [--quick]

Data stays on the workers if the library supports it. In every step two tasks of 32, drawn at random and the
same for every library, sleep before they compute. polarmap sends 32 tasks for 24 blocks. The other libraries
cut the data into 32 blocks and need all results. Libraries take turns, a few steps each. Tables are written
to docs/comparison-iterations.md, or with --quick, which measures small iterations, to build/comparison/. A
library that is not installed is left out, and the page says so. The table in README repeats the columns with
slow workers.
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

from benchmarks import ROOT, format_number, pages, parse_quick_flag, step_rivals, time_in_turns
from benchmarks.familiar_iterations import (
    Array,
    Iteration,
    make_linear_regression,
    make_logistic_regression,
    make_page_rank,
)
from benchmarks.pages import extract_part, markdown_table, parse_tables, replace_parts
from polarmap import CodedOperator, Pool
from polarmap.testing import Fault, FaultyExecutor

PAGE = "comparison-iterations.md"
COMMAND = "python -m benchmarks.iterations"
BLOCKS, WORKERS = 24, 32
N_SLOW = 2  # Slow workers in each step.
MEMORY_BYTES = 4 << 30  # Bytes of coded blocks that may stay in memory; the other libraries keep theirs, too.
Step = Callable[[Array], Array]  # takes an iterate, returns the next one


class Size(NamedTuple):
    """The size of a run.

    Attributes
    ----------
    sleep_seconds : float
        Seconds that slow tasks sleep.
    n_turns : int
        Turns of each library.
    n_steps : int
        Steps in a turn.
    make_iterations : dict[str, Callable[[], Iteration]]
        Title -> function that returns the iteration.
    """

    sleep_seconds: float
    n_turns: int
    n_steps: int
    make_iterations: dict[str, Callable[[], Iteration]]


WHOLE = Size(
    0.5,
    4,
    6,
    {
        "least squares, 20,000 x 4,800": partial(make_linear_regression, 20_000, 4_800, WORKERS),
        "logistic regression, 200,000 x 200": partial(make_logistic_regression, 200_000, 200, WORKERS),
        "PageRank, 320,000 pages, 3.2 million links": partial(make_page_rank, 320_000, 10, WORKERS),
    },
)
QUICK = Size(
    0.1,
    1,
    2,
    {
        "least squares, 1,600 x 96": partial(make_linear_regression, 1_600, 96, WORKERS),
        "logistic regression, 3,200 x 20": partial(make_logistic_regression, 3_200, 20, WORKERS),
        "PageRank, 3,200 pages, 32,000 links": partial(make_page_rank, 3_200, 10, WORKERS),
    },
)


class SleepSampler:
    """Draws the seconds that each task of a step sleeps, in the same random order for every library.

    Attributes
    ----------
    n_slow
        Number of tasks that sleep in each step.
    """

    def __init__(self, sleep_seconds: float) -> None:
        self._rng, self._sleep_seconds, self.n_slow = np.random.default_rng(7), sleep_seconds, 0

    def __call__(self) -> list[float]:
        sleeps = np.zeros(WORKERS)
        sleeps[self._rng.permutation(WORKERS)[: self.n_slow]] = self._sleep_seconds
        return sleeps.tolist()


@contextmanager
def polarmap_step(iteration: Iteration, sleep_sampler: SleepSampler) -> Iterator[Step]:
    """Open the step of an operator, on persistent workers."""
    faults: dict[int, Fault] = {}

    def step(x: Array) -> Array:
        faults.clear()  # Both products of a step have the same slow workers.
        faults.update(
            (task, Fault("sleep", seconds)) for task, seconds in enumerate(sleep_sampler()) if seconds
        )
        return iteration.step_with_operator(operator, x)

    with (
        Pool(memory_limit=MEMORY_BYTES) as pool,
        CodedOperator(
            iteration.matrix, blocks=BLOCKS, tasks=WORKERS, executor=FaultyExecutor(pool, faults)
        ) as operator,
    ):
        yield step


def numpy_step(iteration: Iteration, sleep_sampler: SleepSampler) -> AbstractContextManager[Step]:
    """Open a step that runs the same tasks one after another in this process, without sleep."""
    return nullcontext(
        lambda x: iteration.update(x, [iteration.task(block, x) for block in iteration.blocks])
    )


@contextmanager
def rival_step(open_rival: Any, iteration: Iteration, sleep_sampler: SleepSampler) -> Iterator[Step]:
    """Open the step of another library, with a slot for every task."""
    with open_rival(iteration.task, iteration.blocks, sleep_sampler, WORKERS) as step:
        yield lambda x: iteration.update(x, step(x))


RowFactory = Callable[[Iteration, SleepSampler], AbstractContextManager[Step]]
# Maps the name of a row to the library it needs and its factory.
ROWS: dict[str, tuple[str, RowFactory]] = {
    "numpy, no workers": ("numpy", numpy_step),
    "**polarmap**": ("numpy", polarmap_step),
    "Dask": ("distributed", partial(rival_step, step_rivals.dask_step)),
    "joblib": ("joblib", partial(rival_step, step_rivals.joblib_step)),
    "Ray": ("ray", partial(rival_step, step_rivals.ray_step)),
    "cubed": ("cubed", partial(rival_step, step_rivals.cubed_step)),
}


def available_rows(iteration: Iteration) -> dict[str, RowFactory]:
    """Return the rows whose library is installed and supports the data: arrays of cubed are dense."""
    is_sparse = scipy.sparse.issparse(iteration.matrix)
    return {
        name: row
        for name, (library, row) in ROWS.items()
        if step_rivals.is_installed(library) and not (is_sparse and library == "cubed")
    }


def measure_steps(iteration: Iteration, size: Size) -> list[dict[str, float]]:
    """Return the median seconds of a step by row, first without slow workers, then with them.

    All rows must end with the same iterate.
    """
    rows = available_rows(iteration)
    samplers = {name: SleepSampler(size.sleep_seconds) for name in rows}
    iterates = dict.fromkeys(rows, iteration.start)
    medians_by_load: list[dict[str, float]] = []

    def advance(name: str) -> None:
        iterates[name] = steps[name](iterates[name])

    with ExitStack() as stack:
        steps = {name: stack.enter_context(row(iteration, samplers[name])) for name, row in rows.items()}
        for n_slow in (0, N_SLOW):
            for sampler in samplers.values():
                sampler.n_slow = n_slow
            times_by_row = time_in_turns(
                [partial(advance, name) for name in steps], size.n_turns, size.n_steps
            )
            medians_by_load.append({name: median(times) for name, times in zip(steps, times_by_row)})
    for x in iterates.values():
        assert np.allclose(x, iterates["numpy, no workers"])
    return medians_by_load


def format_tables(medians_by_iteration: dict[str, list[dict[str, float]]]) -> str:
    """Return the tables of all iterations, without and with slow workers."""
    missing_libraries = [name for name, (library, _) in ROWS.items() if not step_rivals.is_installed(library)]
    sections = [f"{name} was not installed, so it is missing from the tables." for name in missing_libraries]
    header = ["seconds of a step", "no slow workers", "two slow workers", "two slow / polarmap"]
    for title, (without_slow, with_slow) in medians_by_iteration.items():
        polarmap_seconds = with_slow["**polarmap**"]
        rows = [
            [
                name,
                format_number(without_slow[name]),
                format_number(with_slow[name]),
                f"{with_slow[name] / polarmap_seconds:.1f}",
            ]
            for name in without_slow
        ]
        sections += [f"## {title}", markdown_table(header, rows)]
    return "\n\n".join(sections)


def update_readme_table(readme: str) -> str:
    """Return the README with the columns with slow workers of the page's tables."""
    page = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    tables_by_title = parse_tables(page)
    seconds_columns = [{row[0]: row[2] for row in rows} for rows in tables_by_title.values()]
    table_rows = [
        [name, *(seconds_by_name.get(name, "-") for seconds_by_name in seconds_columns)]
        for name in list(seconds_columns[0])[1:]
    ]
    text = markdown_table(
        [f"seconds of a step; load average {extract_part(page, 'load')}", *tables_by_title], table_rows
    )
    return replace_parts(readme, {f"from docs/{PAGE}: {COMMAND}": text})


def main() -> None:
    """Measure, print the tables, and write them into the page and README."""
    quick = parse_quick_flag(__doc__)
    size = QUICK if quick else WHOLE
    medians_by_iteration = {}
    for title, make_iteration in size.make_iterations.items():
        medians_by_iteration[title] = measure_steps(make_iteration(), size)
        print(f"{title}: measured", flush=True)
    text = format_tables(medians_by_iteration)
    print(text)
    load = f"{os.getloadavg()[1]:.1f}"
    parts = {"load": load, "seconds": f"{size.sleep_seconds:g}", "iterations": text}
    pages.write_page(PAGE, parts, quick)
    if not quick:
        readme = ROOT / "README.md"
        readme.write_text(update_readme_table(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
