"""`polarmap plan` and `polarmap simulate`: how many workers, and what to expect of them."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from polarmap.blocks.code_choice import third_more
from polarmap.cli.answer import FILE, NEW_FILE, Answer, answering
from polarmap.clouds import settings
from polarmap.clouds.limits import Worker, worker_of
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
from polarmap.report import json_value

SHARE = click.FloatRange(0, 1)
OPTIONS = (
    click.option(
        "--times",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
        help="Run times in seconds: numbers, CSV, or the JSON file of `measure`; - is standard input.",
    ),
    click.option(
        "--column", metavar="NAME", help="Column of the CSV file; of a JSON file cold or warm (the default)."
    ),
    click.option(
        "--distribution",
        "named",
        metavar="NAME:A,B",
        help="exponential:SHIFT,SCALE, pareto:SCALE,SHAPE or training-trace, instead of --times.",
    ),
    click.option(
        "--stragglers", "slow", type=(SHARE, float), metavar="SHARE FACTOR", help="Some tasks take longer."
    ),
    click.option(
        "--cold-starts", "cold", type=(SHARE, float), metavar="SHARE SECONDS", help="Some tasks wait first."
    ),
    click.option("--failing", type=SHARE, metavar="SHARE", help="Some tasks never end."),
)
DISTRIBUTIONS: dict[str, tuple[int, Callable[..., Distribution]]] = {
    **{name: (2, law) for name, law in DISTRIBUTION_FAMILIES.items()},
    "training-trace": (0, load_training_trace),
}


def of_runtimes(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Add the options that say how long tasks take; the function gets `runtimes`, one distribution."""

    @functools.wraps(function)
    def with_distribution(
        times: Path | None,
        column: str | None,
        named: str | None,
        slow: Any,
        cold: Any,
        failing: Any,
        **rest: Any,
    ) -> Answer:
        if (times is None) == (named is None):
            raise click.UsageError("say how long tasks take: either --times FILE or --distribution NAME:A,B")
        runtimes = read_times(times, column) if times is not None else named_distribution(str(named))
        if slow is not None:
            runtimes = with_stragglers(runtimes, *slow)
        if cold is not None:
            runtimes = with_cold_starts(runtimes, *cold)
        return function(runtimes=runtimes if failing is None else FailureProne(runtimes, failing), **rest)

    for option in reversed(OPTIONS):
        option(with_distribution)
    return with_distribution


def named_distribution(text: str) -> Distribution:
    """The distribution that NAME:A,B names.

    >>> named_distribution("exponential:1,0.5")
    ShiftedExponential(shift=1.0, scale=0.5)
    """
    name, _, rest = text.partition(":")
    if name not in DISTRIBUTIONS:
        _refuse("--distribution", f"there is no distribution {name!r}; there are: {', '.join(DISTRIBUTIONS)}")
    count, build = DISTRIBUTIONS[name]
    numbers = _numbers([part for part in rest.split(",") if part.strip()])
    if numbers is None:
        _refuse("--distribution", f"{rest!r} is not a list of numbers")
    if len(numbers) != count:
        _refuse("--distribution", f"{name} has {count} parameters, {text!r} gives {len(numbers)}")
    try:
        return build(*numbers)
    except CodeError as error:
        raise CodeError(f"--distribution {text}: {error}") from None


def read_times(path: Path, column: str | None) -> Empirical:
    """The numbers of a text or JSON file, or of a column of a CSV file with a header; - is standard input."""
    try:
        if path.suffix == ".json":
            return Empirical.from_json(path, column or "warm")
        with click.open_file(str(path), encoding="utf-8-sig") as file:
            lines = [line for line in file if line.strip()]
        names = next(csv.reader(lines), [])
        if column is None and _numbers(" ".join(names).split()) is not None:  # of a run time, or of none
            return Empirical(" ".join(lines).replace(",", " ").split())
        if column is None and len(names) > 1:
            _refuse("--column", f"{path} has the columns {', '.join(names)}: --column says which is needed")
        return Empirical.from_csv(lines, column or names[0])
    except UnicodeDecodeError as error:
        _refuse("--times", f"{path} is no UTF-8 text: {error}")
    except CodeError as error:
        _refuse("--times", f"{path}: {error}")


def _refuse(option: str, message: str) -> NoReturn:
    raise click.BadParameter(message, param_hint=option)


def _numbers(words: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


@answering("plan")
@click.option("--k", type=click.IntRange(1), required=True, help="Data blocks.")
@of_runtimes
@click.option("--objective", type=click.Choice(OBJECTIVES), default="p99", show_default=True)
@click.option("--max-workers", type=click.IntRange(1), help="By default 2 k.")
@click.option("--deadline", type=float, default=math.inf, help="Seconds the objective may take.")
@click.option("--budget", type=float, default=math.inf, help="Worker-seconds that may be paid in the mean.")
@click.option("--code", type=click.Choice(CODES), default="rotation", show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default="upfront",
    show_default=True,
    help="Whether parity starts at once, when tasks are late, or as is better.",
)
@click.option(
    "--slack",
    type=float,
    help="Relative loss accepted in the objective; by default the knee between waiting and paying.",
)
@click.option(
    "--max-failure-probability",
    type=float,
    default=1e-3,
    show_default=True,
    help="Largest accepted probability that too many tasks never end.",
)
@click.option(
    "--plot",
    "picture",
    metavar="FILE",
    type=NEW_FILE,
    help="Draw the frontier, what waiting less costs, to FILE (.png, .svg, .pdf).",
)
@click.option(
    "--config",
    type=FILE,
    help="A Lithops YAML file: its limits bound the plan, its prices say what it costs.",
)
def plan(config: Path | None, picture: Path | None, **options: Any) -> Answer:
    """Recommend how many workers to start for k blocks."""
    worker = None if config is None else _worker(config)
    k, runtimes, objective = (options.pop(name) for name in ("k", "runtimes", "objective"))
    chosen = plan_workers(k, runtimes, objective, worker_spec=worker, **options)
    if picture is not None:
        chosen.plot(picture)
    fields = {**json_value(replace(chosen, run_times=None)), "runtimes": repr(chosen.run_times)}
    data = {"plan": fields, "cost": chosen.cost, "uncoded_cost": chosen.uncoded_cost}
    return Answer(data, str(chosen))


def _worker(config: Path) -> Worker:
    """What the tasks of a configuration run on."""
    worker = worker_of(settings.read(config))
    if worker is None:
        raise ExecutorError(
            f"{config} says no runtime_memory of its workers: there is no limit to plan within"
        )
    return worker


@answering("simulate")
@click.option("--k", type=click.IntRange(1), required=True, help="Data blocks.")
@click.option("--n", type=click.IntRange(1), help="Workers of the codes; by default k + k/3.")
@of_runtimes
@click.option(
    "--scheme",
    "schemes",
    type=click.Choice(SCHEMES),
    multiple=True,
    default=("uncoded", "replication", "backup", "sequential", "rotation"),
    show_default=True,
    help="May be given more than once.",
)
@click.option("--trials", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def simulate(
    k: int, n: int | None, runtimes: Any, schemes: tuple[str, ...], trials: int, seed: int
) -> Answer:
    """Compare plain maps, copies, backup tasks and codes."""
    coded = third_more(k) if n is None else n
    options = [
        completion_time(_workers(scheme, coded, k), k, scheme, runtimes, n_trials=trials, seed=seed)
        for scheme in schemes
    ]
    return Answer({"k": k, "n": coded, "completions": options}, "\n".join(map(str, options)))


def _workers(scheme: str, n: int, k: int) -> int:
    """How many workers a scheme starts: copies double the map, backups start only when needed."""
    if scheme == "replication":
        return max(2, n // k) * k
    return k if scheme == "uncoded" or scheme.startswith("backup") else n
