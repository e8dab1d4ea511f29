"""`polarmap measure`: measure task run times on an executor, for `polarmap plan` and `simulate`."""

from __future__ import annotations

from pathlib import Path

import click

from polarmap.cli.output import OUTPUT_FILE, CommandResult, LithopsConfigType, result_command
from polarmap.planning import plot_run_times
from polarmap.planning.measurement import fit_closest_family
from polarmap.planning.measurement import measure as measure_run_times


@result_command("measure")
@click.argument("config", type=LithopsConfigType(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option(
    "--tasks", type=click.IntRange(1), default=200, show_default=True, help="Number of tasks of each map."
)
@click.option(
    "--seconds", type=float, default=2.0, show_default=True, help="Seconds that each task computes."
)
@click.option("--timeout", type=float, help="Seconds after which each of the two maps is given up.")
@click.option(
    "--out",
    type=OUTPUT_FILE,
    help="Write the run times to a JSON file for --times of `plan` and `simulate`.",
)
@click.option(
    "--plot",
    "figure_path",
    metavar="FILE",
    type=OUTPUT_FILE,
    help="Plot the run times of the second map to FILE (.png, .svg, .pdf).",
)
def measure_command(
    config: Path | str | None,
    tasks: int,
    seconds: float,
    timeout: float | None,
    out: Path | None,
    figure_path: Path | None,
) -> CommandResult:
    """Measure task run times on cold workers, then on warm ones.

    The same map runs twice. In the first run, the workers are cold, because they have to be started.

    CONFIG is the path of a Lithops configuration, or "localhost" for Lithops on this machine. Without
    CONFIG, tasks run in worker processes on this machine.
    """
    executor = None if config is None else str(config)
    measurement = measure_run_times(executor, tasks=tasks, task_seconds=seconds, timeout=timeout)
    text = str(measurement)
    if out is not None:
        measurement.save(out)
        text += f"\npolarmap plan --k 24 --times {out}"
    if figure_path is not None:
        plot_run_times(
            measurement.warm, figure_path, fitted_distribution=fit_closest_family(measurement.warm)
        )
    return CommandResult(measurement._asdict(), text)
