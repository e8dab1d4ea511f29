"""Speed and accuracy as ratios measured in one run; each module prints one table."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

ROOT = Path(__file__).resolve().parents[1]
REST = 0.15  # seconds: the threads of BLAS spin for about 0.1 after a product, and take a core


def is_quick(description: str | None) -> bool:
    """Whether --quick was given: smaller sizes and fewer repetitions."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer")
    return bool(parser.parse_args().quick)


def page_folder(quick: bool) -> Path:
    """The folder of pages that programs write: that of the site, or one of a quick run."""
    folder = ROOT / "build" / "comparison" if quick else ROOT / "docs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def interleaved(actions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each action, run in turns so that a busy machine slows all alike."""
    return [median(measured) for measured in in_turns(actions, repeats)]


def median_and_most(numbers: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets what nine in ten do not exceed.

    >>> median_and_most([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    '6.00 (10.00)'
    """
    most = sorted(numbers)[math.ceil(0.9 * len(numbers)) - 1]
    return f"{median(numbers):.{digits}f} ({most:.{digits}f})"


def in_turns(actions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """The seconds of each run of each action, a first one of each not counted."""
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(repeats + 1):
        for action, measured in zip(actions, seconds, strict=True):
            sleep(REST)
            start = perf_counter()
            action()
            if turn:  # the first turn warms up
                measured.append(perf_counter() - start)
    return seconds


def show(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a plain table, right-aligned, row by row as they are measured."""
    print("  ".join(f"{name:>14}" for name in header), flush=True)
    for row in rows:
        print("  ".join(f"{_text(value):>14}" for value in row), flush=True)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
