"""`polarmap demo`: a matrix times a vector on workers of which some sleep and one dies."""

from __future__ import annotations

from operator import methodcaller

import click
import numpy as np

from polarmap import coded_map, hedged_map
from polarmap.cli.answer import Answer, answering
from polarmap.testing import Fault, FaultyExecutor

BLOCKS, TASKS = 24, 32
SLEEPERS, KILLED = (3, 11), 17


@answering("demo")
@click.option("--rows", type=click.IntRange(BLOCKS), default=20_000, show_default=True)
@click.option("--columns", type=click.IntRange(1), default=960, show_default=True)
@click.option(
    "--sleep", type=click.FloatRange(0), default=15.0, show_default=True, help="Of stragglers, in s."
)
def demo(rows: int, columns: int, sleep: float) -> Answer:
    """Multiply a matrix by a plain and a coded map, with stragglers.

    Both run on this machine. Two workers sleep before they work; the coded map's worker 17 is killed too.
    """
    rng = np.random.default_rng(0)
    A, x = rng.standard_normal((rows, columns)), rng.standard_normal(columns)
    product, faults = methodcaller("dot", x), {index: Fault("sleep", sleep) for index in SLEEPERS}
    plain = hedged_map(
        product, A, blocks=BLOCKS, backups=0, executor=FaultyExecutor(None, faults), progress=False
    )
    killing = FaultyExecutor(None, faults | {KILLED: Fault("kill")})
    y = coded_map(product, A, blocks=BLOCKS, tasks=TASKS, executor=killing, progress=False)
    exact = plain.concatenate()
    error = float(np.abs(y.concatenate() - exact).max() / np.abs(exact).max())
    data = {
        "rows": rows,
        "columns": columns,
        "sleep": sleep,
        "plain_seconds": plain.report.seconds,
        "coded_seconds": y.report.seconds,
        "error": error,
        "report": y.report,
    }
    lines = [
        f"A is {rows:,} x {columns:,}; tasks {SLEEPERS} sleep {sleep:g} s, coded task {KILLED} is killed too",
        f"plain map, {BLOCKS} tasks: {plain.report.seconds:6.2f} s",
        f"coded map, {TASKS} tasks: {y.report.seconds:6.2f} s",
        str(y.report),
        f"largest error of the coded result: {error:.1e} of the largest entry",
    ]
    return Answer(data, "\n".join(lines))
