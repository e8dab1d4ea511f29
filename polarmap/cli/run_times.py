"""`polarmap measure`: how long tasks take on an executor, for `polarmap plan` and `polarmap simulate`."""

from __future__ import annotations

from pathlib import Path

import click

from polarmap.cli.answer import NEW_FILE, Answer, ConfigurationFile, answering
from polarmap.planning import plot_run_times
from polarmap.planning.measurement import fit_closest_family
from polarmap.planning.measurement import measure as measured


@answering("measure")
@click.argument("config", type=ConfigurationFile(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option(
    "--tasks", type=click.IntRange(1), default=200, show_default=True, help="As a map of yours has."
)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="That a task computes.")
@click.option("--timeout", type=float, help="Seconds that each of the two maps may take.")
@click.option(
    "--out",
    type=NEW_FILE,
    help="Write what was measured to a JSON file, which --times of plan and simulate takes.",
)
@click.option(
    "--plot",
    "picture",
    metavar="FILE",
    type=NEW_FILE,
    help="Draw how the times of the second map spread to FILE (.png, .svg, .pdf).",
)
def measure(
    config: Path | str | None,
    tasks: int,
    seconds: float,
    timeout: float | None,
    out: Path | None,
    picture: Path | None,
) -> Answer:
    """Measure how long tasks take, on cold and then on warm workers.

    CONFIG is the path of a Lithops configuration, or "localhost" for Lithops on this machine. Without it,
    tasks run in worker processes of this machine.
    """
    executor = None if config is None else str(config)
    found = measured(executor, tasks=tasks, task_seconds=seconds, timeout=timeout)
    text = str(found)
    if out is not None:
        found.save(out)
        text += f"\npolarmap plan --k 24 --times {out}"
    if picture is not None:
        plot_run_times(found.warm, picture, fitted_distribution=fit_closest_family(found.warm))
    return Answer(found._asdict(), text)
