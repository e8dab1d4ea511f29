"""The distribution of run times that the options of `plan` and `simulate` describe."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import click

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

DISTRIBUTIONS: dict[str, tuple[int, Callable[..., Distribution]]] = {
    "exponential": (2, ShiftedExponential),
    "pareto": (2, Pareto),
    "training-trace": (0, training_trace),
}


def distribution_of(
    times: Path | None,
    column: str | None,
    distribution: str | None,
    slow: tuple[float, float] | None,
    cold: tuple[float, float] | None,
    failing: float | None,
) -> Distribution:
    """What the options say, as one distribution."""
    if (times is None) == (distribution is None):
        raise click.UsageError("say how long tasks take: either --times FILE or --distribution NAME:A,B")
    runtimes = (
        Empirical(read_times(times, column)) if times is not None else named_distribution(str(distribution))
    )
    if slow is not None:
        runtimes = stragglers(runtimes, *slow)
    if cold is not None:
        runtimes = cold_starts(runtimes, *cold)
    return runtimes if failing is None else Failing(runtimes, failing)


def named_distribution(text: str) -> Distribution:
    """The distribution that NAME:A,B names.

    >>> named_distribution("exponential:1,0.5")
    ShiftedExponential(shift=1.0, scale=0.5)
    """
    name, _, rest = text.partition(":")
    if name not in DISTRIBUTIONS:
        raise click.BadParameter(
            f"there is no distribution {name!r}; there are: {', '.join(DISTRIBUTIONS)}",
            param_hint="--distribution",
        )
    count, build = DISTRIBUTIONS[name]
    try:
        numbers = [float(part) for part in rest.split(",") if part.strip()]
    except ValueError as error:
        raise click.BadParameter(
            f"{rest!r} is not a list of numbers: {error}", param_hint="--distribution"
        ) from None
    if len(numbers) != count:
        raise click.BadParameter(
            f"{name} has {count} parameters, {text!r} gives {len(numbers)}", param_hint="--distribution"
        )
    try:
        return build(*numbers)
    except CodeError as error:
        raise CodeError(f"--distribution {text}: {error}") from None


def read_times(path: Path, column: str | None) -> list[float]:
    """The numbers of a text file, or of one column of a CSV file with a header."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is no UTF-8 text: {error}", param_hint="--times") from None
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows:
        raise click.BadParameter(f"{path} is empty", param_hint="--times")
    if column is None and (len(rows[0]) == 1 or _numbers(rows[0]) is not None):
        header = _numbers(rows[0][0].split()) is None  # a file of one column may have its name on top
        words = [word for row in rows[header:] for entry in row for word in entry.split()]
    else:
        place = _place(rows[0], column, path)
        words = [row[place] if place < len(row) else "" for row in rows[1:]]
    numbers = _numbers(words)
    if numbers is None:
        wrong = next(word for word in words if _numbers([word]) is None)
        raise click.BadParameter(f"{path} holds {wrong!r}, which is no number", param_hint="--times")
    return numbers


def _place(header: list[str], column: str | None, path: Path) -> int:
    names = [name.strip() for name in header]
    if column not in names:
        what = "--column says which is needed" if column is None else f"there is no column {column!r}"
        raise click.BadParameter(f"{path} has the columns {', '.join(names)}: {what}", param_hint="--column")
    return names.index(column)


def _numbers(words: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None
