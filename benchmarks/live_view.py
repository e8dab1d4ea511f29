"""Measure what the live view costs the driver: processor time and Python calls for each map.

python -m benchmarks.live_view [--quick]

Maps of 32 short tasks run on the default pool at a steady rate of about 1,000 tasks a second. The program is
invisible, visible without a viewer, watched by a viewer that asks for snapshots without a pause, or connected
to a viewer that has stopped reading. The ways take turns. Processor time is that of the whole driver, with
the threads that serve viewers. A second table has maps of many tasks on the virtual clock of
`ReplayExecutor`: the time that one snapshot takes, its size, and the interval that follows from it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np

import polarmap
from benchmarks import (
    N_REPEATS,
    count_python_calls,
    format_median_and_p90,
    parse_quick_flag,
    print_table,
    single_blas_thread,
    time_calls,
)
from polarmap.live import activation
from polarmap.live.hub import MIN_SNAPSHOT_INTERVAL
from polarmap.live.pace import compute_pause_seconds
from polarmap.live.program_socket import REQUEST, list_visible_programs
from polarmap.live.snapshots import ProgramSnapshot, make_map_snapshot
from polarmap.testing import ReplayExecutor

N_TASKS, N_BLOCKS = 32, 24
TASKS_PER_SECOND = 1_000
MAX_OVERHEAD = "1.05"
VIEWER_PROGRAM = """
import sys
from polarmap.live.program_socket import list_visible_programs
[program] = [program for program in list_visible_programs() if program.pid == int(sys.argv[1])]
connection = program.connect()
print("connected", flush=True)
while connection.read_snapshot(60.0) is not None:
    pass
"""


@contextmanager
def be_invisible() -> Iterator[None]:
    """Run maps without a live view."""
    yield


@contextmanager
def be_visible() -> Iterator[None]:
    """Make the program visible, without a viewer."""
    activation.activate()
    try:
        yield
    finally:
        activation.deactivate()


@contextmanager
def be_watched() -> Iterator[None]:
    """Let another process ask for one snapshot after another."""
    with be_visible():
        command = [sys.executable, "-c", VIEWER_PROGRAM, str(os.getpid())]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as viewer:
            assert viewer.stdout is not None
            viewer.stdout.readline()
            yield
            viewer.kill()


@contextmanager
def be_connected_to_a_stuck_viewer() -> Iterator[None]:
    """Connect a viewer that asks for many snapshots and reads none of them."""
    with be_visible(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as viewer:
        viewer.connect(str(list_visible_programs()[-1].socket_path))
        viewer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while viewer.send(REQUEST * 1024):
                pass
        yield


WAYS: dict[str, Callable[[], Any]] = {
    "invisible": be_invisible,
    "visible, no viewer": be_visible,
    "watched without a pause": be_watched,
    "a viewer that does not read": be_connected_to_a_stuck_viewer,
}


def run_paced_maps(n_maps: int) -> list[float]:
    """Run maps at the rate of `TASKS_PER_SECOND`, and return the driver's processor time for each map."""
    A, x = np.ones((4 * N_BLOCKS, 1_000)), np.ones(1_000)
    seconds, next_at = [], time.monotonic()
    for _ in range(n_maps):
        started_at = time.process_time()
        polarmap.coded_map(lambda block: block @ x, A, blocks=N_BLOCKS, tasks=N_TASKS, progress=False)
        next_at += N_TASKS / TASKS_PER_SECOND
        time.sleep(max(0.0, next_at - time.monotonic()))  # Viewers are served in the meantime.
        seconds.append(time.process_time() - started_at)
    return seconds


def measure_overhead(n_maps: int, n_turns: int) -> Iterator[tuple[object, ...]]:
    """Yield one row for each way to watch the program."""
    run_paced_maps(n_maps)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    calls: dict[str, list[int]] = {name: [] for name in WAYS}
    for _ in range(n_turns):
        for name, be in WAYS.items():
            with be():
                seconds[name] += run_paced_maps(n_maps)
                calls[name] += [count_python_calls(lambda: run_paced_maps(1)) for _ in range(5)]
    # Means, since the work for viewers is concentrated in a few of the maps.
    baseline = sum(seconds["invisible"])
    for name in WAYS:
        milliseconds = [1e3 * value for value in seconds[name]]
        yield (
            name,
            format_median_and_p90(milliseconds),
            sum(milliseconds) / len(milliseconds),
            sum(seconds[name]) / baseline,
            f"{median(calls[name]):,.0f}",
            MAX_OVERHEAD,
        )


def measure_snapshots(task_counts: tuple[int, ...]) -> Iterator[tuple[object, ...]]:
    """Yield one row for each number of tasks: the time and the size of a snapshot."""
    for n in task_counts:
        data = [np.ones(4)] * (3 * n // 4)
        report = polarmap.coded_map(np.sum, data, tasks=n, executor=ReplayExecutor(), progress=False).report

        def take(report: Any = report) -> str:
            return ProgramSnapshot(1, "", "", 0.0, maps=(make_map_snapshot(1, "", report, True),)).to_json()

        milliseconds = [1e3 * value for value in time_calls(take, N_REPEATS * 4)]
        interval = compute_pause_seconds(median(milliseconds) / 1e3, MIN_SNAPSHOT_INTERVAL)
        yield f"{n:,} tasks", format_median_and_p90(milliseconds), len(take()) / 1e3, interval


def main() -> None:
    quick = parse_quick_flag(__doc__)
    header = "32 tasks, 1,000 a second: ms of the driver", "median (90 %)", "mean", "ratio", "calls", "target"
    with single_blas_thread():
        print_table(header, measure_overhead(30 if quick else 150, 1 if quick else 3), label_width=44)
    header = "one snapshot", "ms", "kB of JSON", "s between two"
    print_table(header, measure_snapshots((32, 1_000) if quick else (32, 1_000, 10_000)), label_width=44)


if __name__ == "__main__":
    main()
