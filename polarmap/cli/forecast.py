"""`polarmap plan` and `polarmap simulate`: how many workers, and what to expect of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from polarmap.cli.answer import FILE, Answer, answering
from polarmap.cli.distributions import of_runtimes
from polarmap.clouds import settings
from polarmap.clouds.limits import Worker, worker_of
from polarmap.errors import ExecutorError
from polarmap.planning import SCHEMES, completion_time
from polarmap.planning import plan as plan_workers
from polarmap.planning.objective import OBJECTIVES
from polarmap.planning.planner import CODES, SCHEDULES
from polarmap.report import json_value


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
    type=click.Path(dir_okay=False, path_type=Path),
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
    chosen = plan_workers(k, runtimes, objective, worker=worker, **options)
    if picture is not None:
        chosen.plot(picture)
    fields = {**json_value(replace(chosen, runtimes=None)), "runtimes": repr(chosen.runtimes)}
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
    """Compare a plain map, copies, backup tasks and codes: completion time and cost."""
    coded = k + math.ceil(k / 3) if n is None else n
    options = [
        completion_time(_workers(scheme, coded, k), k, scheme, runtimes, trials=trials, seed=seed)
        for scheme in schemes
    ]
    return Answer({"k": k, "n": coded, "completions": options}, "\n".join(map(str, options)))


def _workers(scheme: str, n: int, k: int) -> int:
    """How many workers a scheme starts: copies double the map, backups start only when needed."""
    if scheme == "replication":
        return max(2, n // k) * k
    return k if scheme == "uncoded" or scheme.startswith("backup") else n
