"""`polarmap plan` and `polarmap simulate`: recommend a number of workers, and compare schemes."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from polarmap.blocks.code_choice import get_default_n_tasks
from polarmap.cli.output import EXISTING_FILE, OUTPUT_FILE, CommandResult, result_command
from polarmap.clouds import lithops_config
from polarmap.clouds.limits import WorkerSpec, parse_worker_spec
from polarmap.errors import CodeError, ExecutorError
from polarmap.planning import (
    SCHEMES,
    Distribution,
    Empirical,
    FailureProne,
    completion_time,
    load_training_trace,
    with_cold_starts,
    with_stragglers,
)
from polarmap.planning import plan as plan_workers
from polarmap.planning.measurement import DISTRIBUTION_FAMILIES
from polarmap.planning.objective import OBJECTIVES
from polarmap.planning.planner import CODES, SCHEDULES
from polarmap.report import to_json_value

PROBABILITY = click.FloatRange(0, 1)
SIMULATION_NOTE = (
    "Notes: the two numbers after a scheme are its workers and data blocks. The mean is over the jobs that "
    "complete;\n+- is its standard error if it is simulated. p50 and p99 are quantiles over all jobs, inf if "
    "fewer jobs complete.\nA job fails if too many tasks never complete. Worker-seconds are the run times of "
    "all tasks of a job, added up."
)
RUN_TIME_OPTIONS = (
    click.option(
        "--times",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
        help="Run times in seconds: a text file of numbers, a CSV file, or a JSON file of `measure`. "
        "- reads standard input.",
    ),
    click.option(
        "--column",
        metavar="NAME",
        help="Column of a CSV file, or cold or warm (the default) for a JSON file.",
    ),
    click.option(
        "--distribution",
        "distribution_spec",
        metavar="NAME:A,B",
        help="Instead of --times: exponential:SHIFT,SCALE, pareto:SCALE,SHAPE or training-trace.",
    ),
    click.option(
        "--stragglers",
        "straggler_parameters",
        type=(PROBABILITY, float),
        metavar="SHARE FACTOR",
        help="SHARE of the tasks (0 to 1) take FACTOR times as long.",
    ),
    click.option(
        "--cold-starts",
        "cold_start_parameters",
        type=(PROBABILITY, float),
        metavar="SHARE SECONDS",
        help="SHARE of the tasks start SECONDS late.",
    ),
    click.option("--failing", type=PROBABILITY, metavar="SHARE", help="SHARE of the tasks never finish."),
)
DISTRIBUTIONS: dict[str, tuple[int, Callable[..., Distribution]]] = {
    **{name: (2, law) for name, law in DISTRIBUTION_FAMILIES.items()},
    "training-trace": (0, load_training_trace),
}


def add_run_time_options(command_function: Callable[..., CommandResult]) -> Callable[..., CommandResult]:
    """Add the options that specify the distribution of task run times to a command.

    The option values are combined into a `Distribution`, which is passed to the command as the argument
    `run_times`.
    """

    @functools.wraps(command_function)
    def call_with_distribution(
        times: Path | None,
        column: str | None,
        distribution_spec: str | None,
        straggler_parameters: Any,
        cold_start_parameters: Any,
        failing: Any,
        **other_options: Any,
    ) -> CommandResult:
        if (times is None) == (distribution_spec is None):
            raise click.UsageError(
                "pass the run times of tasks: either --times FILE or --distribution NAME:A,B"
            )
        run_times = (
            read_run_times(times, column) if times is not None else parse_distribution(str(distribution_spec))
        )
        if straggler_parameters is not None:
            run_times = with_stragglers(run_times, *straggler_parameters)
        if cold_start_parameters is not None:
            run_times = with_cold_starts(run_times, *cold_start_parameters)
        return command_function(
            run_times=run_times if failing is None else FailureProne(run_times, failing), **other_options
        )

    for option in reversed(RUN_TIME_OPTIONS):
        option(call_with_distribution)
    return call_with_distribution


def parse_distribution(spec: str) -> Distribution:
    """Parse the value of --distribution: the name of a distribution and its parameters, as NAME:A,B.

    >>> parse_distribution("exponential:1,0.5")
    ShiftedExponential(shift=1.0, scale=0.5)
    """
    name, _, parameter_text = spec.partition(":")
    if name not in DISTRIBUTIONS:
        _raise_bad_option(
            "--distribution", f"unknown distribution {name!r}; choose one of: {', '.join(DISTRIBUTIONS)}"
        )
    n_parameters, make_distribution = DISTRIBUTIONS[name]
    parameters = _parse_floats([part for part in parameter_text.split(",") if part.strip()])
    if parameters is None:
        _raise_bad_option("--distribution", f"{parameter_text!r} is not a list of numbers")
    if len(parameters) != n_parameters:
        _raise_bad_option(
            "--distribution", f"{name} takes {n_parameters} parameters, got {len(parameters)} in {spec!r}"
        )
    try:
        return make_distribution(*parameters)
    except CodeError as error:
        raise CodeError(f"--distribution {spec}: {error}") from None


def read_run_times(path: Path, column: str | None) -> Empirical:
    """Read measured run times from a file, and return their empirical distribution.

    Parameters
    ----------
    path : Path
        A text file of numbers, a CSV file, or a JSON file written by `polarmap measure`; "-" for standard
        input.
    column : str or None
        The column of a CSV file, or "cold" or "warm" for a JSON file. By default, the only column of a CSV
        file, or "warm".
    """
    try:
        if path.suffix == ".json":
            return Empirical.from_json(path, column or "warm")
        with click.open_file(str(path), encoding="utf-8-sig") as file:
            lines = [line for line in file if line.strip()]
        column_names = next(csv.reader(lines), [])
        # If the first line consists of numbers, there is no header with column names.
        if column is None and _parse_floats(" ".join(column_names).split()) is not None:
            return Empirical(" ".join(lines).replace(",", " ").split())
        if column is None and len(column_names) > 1:
            _raise_bad_option(
                "--column", f"{path} has the columns {', '.join(column_names)}: choose one with --column"
            )
        return Empirical.from_csv(lines, column or column_names[0])
    except UnicodeDecodeError as error:
        _raise_bad_option("--times", f"{path} is not UTF-8 text: {error}")
    except CodeError as error:
        _raise_bad_option("--times", f"{path}: {error}")


def _raise_bad_option(option_name: str, message: str) -> NoReturn:
    raise click.BadParameter(message, param_hint=option_name)


def _parse_floats(tokens: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in tokens]
    except ValueError:
        return None


@result_command("plan")
@click.option("--k", type=click.IntRange(1), required=True, help="Number of data blocks.")
@add_run_time_options
@click.option("--objective", type=click.Choice(OBJECTIVES), default="p99", show_default=True)
@click.option("--max-workers", type=click.IntRange(1), help="The default is 2 k.")
@click.option("--deadline", type=float, default=math.inf, help="Upper bound of the objective, in seconds.")
@click.option(
    "--budget", type=float, default=math.inf, help="Upper bound of the mean cost, in worker-seconds."
)
@click.option("--code", type=click.Choice(CODES), default="rotation", show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="upfront",
    show_default=True,
    help="When parity tasks start: at once, when tasks are late, or whichever is better.",
)
@click.option(
    "--slack",
    type=float,
    help="Accepted relative loss of the objective. By default the knee of the frontier of time and cost.",
)
@click.option(
    "--max-failure-probability",
    type=float,
    default=1e-3,
    show_default=True,
    help="Accepted probability that too many tasks never finish.",
)
@click.option(
    "--plot",
    "figure_path",
    metavar="FILE",
    type=OUTPUT_FILE,
    help="Plot the frontier of completion time and cost to FILE (.png, .svg, .pdf).",
)
@click.option(
    "--config",
    type=EXISTING_FILE,
    help="A Lithops YAML file: the plan stays within the limits of its backend, and is priced in dollars.",
)
def plan_command(config: Path | None, figure_path: Path | None, **options: Any) -> CommandResult:
    """Recommend a number of workers for k data blocks.

    The recommendation depends on the distribution of task run times, which the options specify.
    """
    worker_spec = None if config is None else _read_worker_spec(config)
    k, run_times, objective = (options.pop(name) for name in ("k", "run_times", "objective"))
    chosen_plan = plan_workers(k, run_times, objective, worker_spec=worker_spec, **options)
    if figure_path is not None:
        chosen_plan.plot(figure_path)
    plan_fields = {
        **to_json_value(replace(chosen_plan, run_times=None)),
        "run_times": repr(chosen_plan.run_times),
    }
    data = {"plan": plan_fields, "cost": chosen_plan.cost, "uncoded_cost": chosen_plan.uncoded_cost}
    return CommandResult(data, str(chosen_plan))


def _read_worker_spec(config_path: Path) -> WorkerSpec:
    """Return the resources of each worker in a Lithops configuration, such as memory and time limit.

    Raises ExecutorError if the configuration does not specify the memory.
    """
    spec = parse_worker_spec(lithops_config.read_config(config_path))
    if spec is None:
        raise ExecutorError(
            f"{config_path} has no runtime_memory for its backend, so the memory of its workers is unknown: "
            "add it"
        )
    return spec


@result_command("simulate")
@click.option("--k", type=click.IntRange(1), required=True, help="Number of data blocks.")
@click.option("--n", type=click.IntRange(1), help="Number of workers of the codes; the default is k + k/3.")
@add_run_time_options
@click.option(
    "--scheme",
    "schemes",
    type=click.Choice(SCHEMES),
    multiple=True,
    default=("uncoded", "replication", "backup", "sequential", "rotation"),
    show_default=True,
    help="A scheme to simulate. May be given more than once.",
)
@click.option("--trials", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def simulate_command(
    k: int, n: int | None, run_times: Any, schemes: tuple[str, ...], trials: int, seed: int
) -> CommandResult:
    """Compare plain maps, replication, backup tasks and codes.

    For each scheme, the completion time of a job is computed or simulated from the distribution of task run
    times, which the options specify.
    """
    n_coded = get_default_n_tasks(k) if n is None else n
    completions = [
        completion_time(
            _count_workers_of_scheme(scheme, n_coded, k), k, scheme, run_times, n_trials=trials, seed=seed
        )
        for scheme in schemes
    ]
    return CommandResult(
        {"k": k, "n": n_coded, "completions": completions},
        "\n".join([*map(str, completions), SIMULATION_NOTE]),
    )


def _count_workers_of_scheme(scheme: str, n: int, k: int) -> int:
    """Return how many workers a scheme, such as "replication", starts at the beginning of a job.

    A code starts `n` workers for `k` data blocks. Replication starts n // k workers for each data block, but
    at least 2. A plain map starts one worker for each data block, and so does a map with backup tasks.
    """
    if scheme == "replication":
        return max(2, n // k) * k
    return k if scheme == "uncoded" or scheme.startswith("backup") else n
