"""`polarmap demo`: a matrix times a vector on workers of which some sleep and one dies."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.pool import Pool
from operator import methodcaller
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from polarmap import Fault, FaultyExecutor, coded_map
from polarmap.cli.answer import Answer, answering

Floats = npt.NDArray[np.float64]
BLOCKS, WORKERS = 24, 32
SLEEPERS, KILLED = (3, 11), 17
INTERRUPTIBLE_SECONDS = 0.1


@answering("demo")
@click.option("--rows", type=click.IntRange(BLOCKS), default=20_000, show_default=True)
@click.option("--columns", type=click.IntRange(1), default=960, show_default=True)
@click.option(
    "--sleep",
    type=click.FloatRange(0),
    default=15.0,
    show_default=True,
    help="Of stragglers, in s.",
)
def demo(rows: int, columns: int, sleep: float) -> Answer:
    """Multiply a matrix by a plain and by a coded map, with two stragglers.

    Both run on this machine. Two workers sleep before they work; the coded map's worker 17 is killed too.
    """
    rng = np.random.default_rng(0)
    A, x = rng.standard_normal((rows, columns)), rng.standard_normal(columns)
    plain_seconds, exact = _plain_map(A, x, sleep)
    began = time.perf_counter()
    faults = {index: Fault("sleep", sleep) for index in SLEEPERS} | {KILLED: Fault("kill")}
    y = coded_map(
        methodcaller("dot", x),
        A,
        blocks=BLOCKS,
        workers=WORKERS,
        executor=FaultyExecutor("localhost", faults),
        progress=False,
    )
    coded_seconds = time.perf_counter() - began
    error = float(np.abs(y.concatenate() - exact).max() / np.abs(exact).max())
    data = {
        "rows": rows,
        "columns": columns,
        "sleep": sleep,
        "plain_seconds": plain_seconds,
        "coded_seconds": coded_seconds,
        "error": error,
        "report": y.report,
    }
    return Answer(data, _text(data))


def _plain_map(A: Floats, x: Floats, sleep: float) -> tuple[float, Floats]:
    """Seconds and result of a map that waits for every task."""
    began = time.perf_counter()
    sleeps = [sleep * (index in SLEEPERS) for index in range(BLOCKS)]
    tasks = zip(np.array_split(A, BLOCKS), [x] * BLOCKS, sleeps)
    with _forked_pool() as pool:
        parts = pool.starmap_async(_plain_task, tasks, chunksize=1)
        while not parts.ready():  # an interrupt that another thread took does not end a wait
            parts.wait(INTERRUPTIBLE_SECONDS)
    return time.perf_counter() - began, np.concatenate(parts.get())


def _forked_pool() -> Pool:
    """A pool of processes that leave it to this one to be interrupted.

    Interrupts wait until all are forked: Python ignores what hooks of a fork raise. They are noted, not
    blocked, as a thread of a library would take one that this thread blocks.
    """
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        pool = multiprocessing.Pool(4, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        pool.terminate()
        raise KeyboardInterrupt
    return pool


def _plain_task(block: Floats, x: Floats, sleep: float) -> Any:
    time.sleep(sleep)
    return block @ x


def _text(data: dict[str, Any]) -> str:
    lines = [
        f"A is {data['rows']:,} x {data['columns']:,}; tasks {SLEEPERS} sleep {data['sleep']:g} s, "
        f"coded task {KILLED} is killed too",
        f"plain map, {BLOCKS} tasks: {data['plain_seconds']:6.2f} s",
        f"coded map, {WORKERS} tasks: {data['coded_seconds']:6.2f} s",
        str(data["report"]),
        f"largest error of the coded result: {data['error']:.1e} of the largest entry",
    ]
    return "\n".join(lines)
