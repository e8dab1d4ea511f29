"""Measure speed and accuracy as ratios within one run; each module prints its tables or writes its page."""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
N_REPEATS = 5
PAUSE_SECONDS = 0.15  # BLAS threads spin for about 0.1 s after a product and occupy a core.


def parse_quick_flag(description: str | None) -> bool:
    """Return whether --quick was given on the command line, for smaller sizes and fewer repetitions."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions")
    return bool(parser.parse_args().quick)


def format_median_and_p90(values: Sequence[float]) -> str:
    """Return the median of the values, followed by their 90 % quantile in brackets.

    >>> format_median_and_p90([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    '6.00 (10.0)'
    """
    p90 = sorted(values)[math.ceil(0.9 * len(values)) - 1]
    return f"{format_number(median(values))} ({format_number(p90)})"


def format_number(value: float) -> str:
    """Return the value with three significant digits, in exponent form only if it is tiny."""
    if not math.isfinite(value):
        return "never"
    if value == 0:
        return "0"
    n_decimals = max(0, 2 - int(math.log10(abs(value)) // 1))
    return f"{value:,.{n_decimals}f}" if n_decimals < 7 else f"{value:.1e}"


def time_in_turns(
    actions: Sequence[Callable[[], object]], n_turns: int, n_steps: int = 1
) -> list[list[float]]:
    """Return the seconds of every run of each action, measured in turns so that load slows all actions alike.

    Each action runs `n_steps` times in a turn. Warm-up runs are not counted: the whole first turn, and the
    first two steps of a turn that has several steps.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(n_turns + 1):
        for action, action_seconds in zip(actions, seconds, strict=True):
            sleep(PAUSE_SECONDS)
            step_seconds = time_calls(action, n_steps, n_warmup_calls=2 if n_steps > 1 else 0)
            if turn:
                action_seconds += step_seconds
    return seconds


def time_call(action: Callable[[], object]) -> float:
    """Return how many seconds one call takes."""
    started_at = perf_counter()
    action()
    return perf_counter() - started_at


def time_calls(action: Callable[[], object], n_calls: int, n_warmup_calls: int = 1) -> list[float]:
    """Return how many seconds each of `n_calls` calls takes, after warm-up calls that are not counted."""
    return [time_call(action) for _ in range(n_warmup_calls + n_calls)][n_warmup_calls:]


def measure_cpu_seconds(
    action: Callable[[], Any], summarize: Callable[[list[float]], float]
) -> tuple[float, Any]:
    """Return the summarized processor time of a few runs in seconds, and the result of the last run.

    Parameters
    ----------
    summarize : Callable[[list[float]], float]
        Reduces the seconds of all runs to one number, e.g. `min` or `median`.
    """
    seconds, result = [], None
    with single_blas_thread():
        for _ in range(N_REPEATS):
            result = None  # Free the memory of the last result for the next run.
            started_at = process_time()
            result = action()
            seconds.append(process_time() - started_at)
    return summarize(seconds), result


def count_python_calls(action: Callable[[], object]) -> int:
    """Return how many Python functions an action calls in this process, in all threads."""
    n_calls = 0

    def count_call(frame: Any, event: str, argument: Any) -> None:
        nonlocal n_calls
        n_calls += event == "call"

    threading.setprofile(count_call)
    sys.setprofile(count_call)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return n_calls


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread: threads that wait for each other would inflate the processor time."""
    with threadpool_limits(1):
        sleep(PAUSE_SECONDS)
        yield


class Row(NamedTuple):
    """A row of a table: times in milliseconds (or counts), a baseline to divide them by, and a target.

    The target is an upper bound of the median ratio, of the median time or count with its unit, or of both.
    """

    label: str
    times: Sequence[float]
    baseline: str
    baseline_times: Sequence[float]
    target: str = ""

    def format_cells(self) -> tuple[object, ...]:
        """Return the cells of the row; ratios are relative to the median of the baseline."""
        ratios = [value / median(self.baseline_times) for value in self.times]
        times_text, baseline_text, ratio_text = map(
            format_median_and_p90, (self.times, self.baseline_times, ratios)
        )
        return self.label, times_text, self.baseline, baseline_text, ratio_text, self.target


def to_milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1e3 * value for value in seconds]


def print_rows(rows: Iterable[Row]) -> None:
    """Print a table with one line for each row."""
    header = ("milliseconds: median (90 %)", "polarmap", "baseline", "its time", "ratio", "target")
    print_table(header, (row.format_cells() for row in rows), label_width=48)


def print_table(header: Sequence[object], rows: Iterable[Sequence[object]], label_width: int = 28) -> None:
    """Print a plain table, each row once it is measured: first column to the left, the rest to the right."""
    for name, *cells in chain([header], rows):
        print(
            f"{name!s:<{label_width}}", *(f"{_format_cell(cell):>14}" for cell in cells), sep="  ", flush=True
        )


def _format_cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
