"""How long tasks take, as the options of `plan` and `simulate` say it: one distribution."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from polarmap.cli.answer import Answer
from polarmap.errors import CodeError
from polarmap.planning import (
    Distribution,
    Empirical,
    Failing,
    Pareto,
    ShiftedExponential,
    cold_starts,
    stragglers,
    training_trace,
)

SHARE = click.FloatRange(0, 1)
OPTIONS = (
    click.option(
        "--times",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
        help="Measured run times in seconds: a file of numbers, or a CSV file; - is standard input.",
    ),
    click.option("--column", metavar="NAME", help="Column of the CSV file."),
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
    "exponential": (2, ShiftedExponential),
    "pareto": (2, Pareto),
    "training-trace": (0, training_trace),
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
            runtimes = stragglers(runtimes, *slow)
        if cold is not None:
            runtimes = cold_starts(runtimes, *cold)
        return function(runtimes=runtimes if failing is None else Failing(runtimes, failing), **rest)

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
    """The numbers of a text file, or of one column of a CSV file with a header; - is standard input."""
    try:
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
