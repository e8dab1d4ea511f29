"""Speed and accuracy as ratios measured in one run; each module prints its tables, or writes its page."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
REST = 0.15  # seconds: the threads of BLAS spin for about 0.1 after a product, and take a core


def is_quick(description: str | None) -> bool:
    """Whether --quick was given: smaller sizes and fewer repetitions."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer")
    return bool(parser.parse_args().quick)


def median_and_most(numbers: Sequence[float]) -> str:
    """The median, and in brackets what nine in ten do not exceed.

    >>> median_and_most([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    '6.00 (10.0)'
    """
    most = sorted(numbers)[math.ceil(0.9 * len(numbers)) - 1]
    return f"{number(median(numbers))} ({number(most)})"


def number(value: float) -> str:
    """Three significant digits, without exponents where they are not needed."""
    if not math.isfinite(value):
        return "never"
    if value == 0:
        return "0"
    digits = max(0, 2 - int(math.log10(abs(value)) // 1))
    return f"{value:,.{digits}f}" if digits < 7 else f"{value:.1e}"


def in_turns(actions: Sequence[Callable[[], object]], repeats: int, steps: int = 1) -> list[list[float]]:
    """The seconds of each run of each action, so many in a turn: so a busy machine slows all alike.

    Those that warm up are not counted: a first turn, and the first two of a turn that has several steps.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(repeats + 1):
        for action, measured in zip(actions, seconds, strict=True):
            sleep(REST)
            taken = seconds_of_steps(action, steps, not_counted=2 if steps > 1 else 0)
            if turn:
                measured += taken
    return seconds


def seconds_of(action: Callable[[], object]) -> float:
    """How long one call takes."""
    began = perf_counter()
    action()
    return perf_counter() - began


def seconds_of_steps(step: Callable[[], object], steps: int, not_counted: int = 1) -> list[float]:
    """How long each of some calls takes, after those that are not counted."""
    return [seconds_of(step) for _ in range(not_counted + steps)][not_counted:]


def processor_seconds(action: Callable[[], Any], of: Callable[[list[float]], float]) -> tuple[float, Any]:
    """Seconds of processor time, the least or the median of a few runs, and the result of the last."""
    seconds, result = [], None
    with one_thread_of_blas():
        for _ in range(REPEATS):
            result = None  # whose memory the next run may have
            start = process_time()
            result = action()
            seconds.append(process_time() - start)
    return of(seconds), result


@contextmanager
def one_thread_of_blas() -> Iterator[None]:
    """Threads of BLAS that wait for each other take processor time: nothing that a job needs."""
    with threadpool_limits(1):
        sleep(REST)
        yield


class Row(NamedTuple):
    """What was measured, in milliseconds or counted, beside another; what it is to come to, a ratio first."""

    what: str
    ours: Sequence[float]
    beside: str
    theirs: Sequence[float]
    target: str = ""

    def cells(self) -> tuple[object, ...]:
        """A ratio is to the median of the other."""
        ratios = [one / median(self.theirs) for one in self.ours]
        ours, theirs, ratio = map(median_and_most, (self.ours, self.theirs, ratios))
        return self.what, ours, self.beside, theirs, ratio, self.target


def milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1e3 * one for one in seconds]


def show_rows(rows: Iterable[Row]) -> None:
    """Print each with its ratio."""
    header = ("milliseconds, median (90 %)", "polarmap", "beside", "its", "ratio", "target")
    show(header, (row.cells() for row in rows), width=48)


def show(header: Sequence[object], rows: Iterable[Sequence[object]], width: int = 28) -> None:
    """Print a plain table, row by row as they are measured: names to the left, numbers to the right."""
    for name, *cells in chain([header], rows):
        print(f"{name!s:<{width}}", *(f"{_text(cell):>14}" for cell in cells), sep="  ", flush=True)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
