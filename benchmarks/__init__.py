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
N_REPEATS = 5
PAUSE_SECONDS = 0.15  # seconds: the threads of BLAS spin for about 0.1 after a product, and take a core


def parse_quick_flag(description: str | None) -> bool:
    """Whether --quick was given: smaller sizes and fewer repetitions."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer")
    return bool(parser.parse_args().quick)


def format_median_and_p90(values: Sequence[float]) -> str:
    """The median, and in brackets what nine in ten do not exceed.

    >>> format_median_and_p90([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    '6.00 (10.0)'
    """
    p90 = sorted(values)[math.ceil(0.9 * len(values)) - 1]
    return f"{format_number(median(values))} ({format_number(p90)})"


def format_number(value: float) -> str:
    """Three significant digits, without exponents where they are not needed."""
    if not math.isfinite(value):
        return "never"
    if value == 0:
        return "0"
    n_decimals = max(0, 2 - int(math.log10(abs(value)) // 1))
    return f"{value:,.{n_decimals}f}" if n_decimals < 7 else f"{value:.1e}"


def time_in_turns(
    actions: Sequence[Callable[[], object]], n_turns: int, n_steps: int = 1
) -> list[list[float]]:
    """The seconds of each run of each action, so many in a turn: so a busy machine slows all alike.

    Those that warm up are not counted: a first turn, and the first two of a turn that has several steps.
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
    """How long one call takes."""
    started_at = perf_counter()
    action()
    return perf_counter() - started_at


def time_calls(action: Callable[[], object], n_calls: int, n_warmup_calls: int = 1) -> list[float]:
    """How long each of some calls takes, after those that are not counted."""
    return [time_call(action) for _ in range(n_warmup_calls + n_calls)][n_warmup_calls:]


def measure_cpu_seconds(
    action: Callable[[], Any], summarize: Callable[[list[float]], float]
) -> tuple[float, Any]:
    """Seconds of processor time, the least or the median of a few runs, and the result of the last."""
    seconds, result = [], None
    with single_blas_thread():
        for _ in range(N_REPEATS):
            result = None  # whose memory the next run may have
            started_at = process_time()
            result = action()
            seconds.append(process_time() - started_at)
    return summarize(seconds), result


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Threads of BLAS that wait for each other take processor time: nothing that a job needs."""
    with threadpool_limits(1):
        sleep(PAUSE_SECONDS)
        yield


class Row(NamedTuple):
    """What was measured, in milliseconds or counted, beside another; what it is to come to, a ratio first."""

    label: str
    times: Sequence[float]
    baseline: str
    baseline_times: Sequence[float]
    target: str = ""

    def format_cells(self) -> tuple[object, ...]:
        """A ratio is to the median of the other."""
        ratios = [value / median(self.baseline_times) for value in self.times]
        times_text, baseline_text, ratio_text = map(
            format_median_and_p90, (self.times, self.baseline_times, ratios)
        )
        return self.label, times_text, self.baseline, baseline_text, ratio_text, self.target


def to_milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1e3 * value for value in seconds]


def print_rows(rows: Iterable[Row]) -> None:
    """Print each with its ratio."""
    header = ("milliseconds, median (90 %)", "polarmap", "beside", "its", "ratio", "target")
    print_table(header, (row.format_cells() for row in rows), label_width=48)


def print_table(header: Sequence[object], rows: Iterable[Sequence[object]], label_width: int = 28) -> None:
    """Print a plain table, row by row as they are measured: names to the left, numbers to the right."""
    for name, *cells in chain([header], rows):
        print(
            f"{name!s:<{label_width}}", *(f"{_format_cell(cell):>14}" for cell in cells), sep="  ", flush=True
        )


def _format_cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
