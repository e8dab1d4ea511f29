"""`polarmap demo`: a matrix-vector product with two sleeping workers and one that is killed."""

from __future__ import annotations

from operator import methodcaller

import click
import numpy as np

from polarmap import coded_map, hedged_map
from polarmap.cli.output import CommandResult, result_command
from polarmap.testing import Fault, FaultyExecutor

N_BLOCKS, N_TASKS = 24, 32
SLEEPING_TASKS, KILLED_TASK = (3, 11), 17


@result_command("demo")
@click.option("--rows", type=click.IntRange(N_BLOCKS), default=20_000, show_default=True)
@click.option("--columns", type=click.IntRange(1), default=960, show_default=True)
@click.option(
    "--sleep",
    type=click.FloatRange(0),
    default=15.0,
    show_default=True,
    help="Seconds that stragglers sleep.",
)
def demo_command(rows: int, columns: int, sleep: float) -> CommandResult:
    """Compare plain and coded maps when workers are slow or die.

    Both maps multiply a matrix by a vector on this machine. In both, two workers sleep before they start, to
    simulate stragglers. In the coded map, worker 17 is killed as well.
    """
    rng = np.random.default_rng(0)
    A, x = rng.standard_normal((rows, columns)), rng.standard_normal(columns)
    multiply_by_x, faults = methodcaller("dot", x), {index: Fault("sleep", sleep) for index in SLEEPING_TASKS}
    uncoded_result = hedged_map(
        multiply_by_x, A, blocks=N_BLOCKS, backups=0, executor=FaultyExecutor(None, faults), progress=False
    )
    faulty_executor = FaultyExecutor(None, faults | {KILLED_TASK: Fault("kill")})
    coded_result = coded_map(
        multiply_by_x, A, blocks=N_BLOCKS, tasks=N_TASKS, executor=faulty_executor, progress=False
    )
    exact = uncoded_result.concatenate()
    error = float(np.abs(coded_result.concatenate() - exact).max() / np.abs(exact).max())
    data = {
        "rows": rows,
        "columns": columns,
        "sleep": sleep,
        "plain_seconds": uncoded_result.report.seconds,
        "coded_seconds": coded_result.report.seconds,
        "error": error,
        "report": coded_result.report,
    }
    lines = [
        f"A is {rows:,} x {columns:,}; tasks {SLEEPING_TASKS} sleep {sleep:g} s, coded task "
        f"{KILLED_TASK} is killed too",
        f"plain map, {N_BLOCKS} tasks: {uncoded_result.report.seconds:6.2f} s",
        f"coded map, {N_TASKS} tasks: {coded_result.report.seconds:6.2f} s",
        str(coded_result.report),
        f"largest error of the coded result: {error:.1e} of the largest entry",
    ]
    return CommandResult(data, "\n".join(lines))
