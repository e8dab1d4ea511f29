"""python -m testbed.table: measure maps with slow or disconnected machines, and at full speed."""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from testbed.cluster import BLOCKS, MACHINES, TASKS, EngineNetwork, dask_network, ray_network
from testbed.machines import missing_rights, wait_until

MEGABYTE, MEGABIT = 10**6, 10**6
Reply = dict[str, Any]


@dataclass
class Row:
    """A line of the table.

    Attributes
    ----------
    name : str
        What is slow or cut.
    aim : str
        The seconds that the map may take.
    options : dict
        Options of the map: keywords of `testbed.driver.Maps.run`.
    rate : float
        Rate of the first machine's cable in bits per second; inf if it is not slow.
    n_cut : int
        The number of machines that are cut before the map begins.
    is_cut_later : bool
        Whether the first machine is cut while its blocks are being sent.
    cut_seconds : float
        Seconds after which cut machines are restored.
    has_pool : bool
        Whether the map runs on a pool, or as tasks of the engine.
    start : callable
        Starts the machines and the engine.
    """

    name: str
    aim: str
    options: dict[str, Any]
    rate: float = float("inf")
    n_cut: int = 0
    is_cut_later: bool = False
    cut_seconds: float = 240.0
    has_pool: bool = True
    start: Callable[[], AbstractContextManager[EngineNetwork]] = dask_network
    seconds: list[float] = field(default_factory=list)
    undisturbed: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def prepare(self, cluster: EngineNetwork) -> None:
        """Restore the network, and open a new pool or warm up the client."""
        cluster.net.restore()
        cluster.wait_for_workers()
        if self.has_pool:
            cluster.driver.call("open_pool")
        else:
            cluster.driver.call("close_pool")
            cluster.driver.call("run", block_bytes=100, on_client=True)

    def measure(self, cluster: EngineNetwork, is_disturbed: bool) -> Reply:
        """Run one map and return its reply. With a timeout in its options, the reply may be an error."""
        machines = cluster.workers[: max(1, self.n_cut)]
        options = self.options if self.has_pool else {**self.options, "on_client": True}
        if self.options.get("is_kept"):
            cluster.driver.call("keep", block_bytes=self.options["block_bytes"])
        if not is_disturbed:
            return cluster.driver.call("run", **options)
        for machine in machines:
            machine.cable.configure(rate=self.rate, is_cut=self.n_cut > 0)
        before = machines[0].cable.down.n_bytes
        cluster.driver.start("run", **options)
        if self.is_cut_later:
            wanted = before + 0.3 * self.options["block_bytes"] * TASKS / MACHINES
            wait_until(lambda: machines[0].cable.down.n_bytes > wanted)
            machines[0].cable.configure(is_cut=True)
        with contextlib.suppress(TimeoutError):
            return cluster.driver.result(self.cut_seconds)
        cluster.net.restore()
        return cluster.driver.result()

    def take(self, cluster: EngineNetwork, is_disturbed: bool) -> None:
        """Measure once and store the seconds."""
        self.prepare(cluster)
        reply = self.measure(cluster, is_disturbed)
        (self.seconds if is_disturbed else self.undisturbed).append(reply["seconds"])
        if not reply["is_right"]:
            self.errors.append(reply["error"] or "WRONG RESULT")

    def line(self) -> str:
        """Return the row of a Markdown table."""
        kinds = sorted({error.partition(":")[0] for error in self.errors})
        note = f"{len(self.errors)} times {', '.join(kinds)}" if self.errors else ""
        return f"| {self.name} | {spread(self.seconds)} | {spread(self.undisturbed)} | {self.aim} | {note} |"


def spread(seconds: list[float]) -> str:
    """Return the median and the range."""
    if not seconds:
        return ""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f})"


def rows() -> list[Row]:
    """Return the rows, each measured on a new cluster."""

    def blocks(megabytes: int, **options: Any) -> dict[str, Any]:
        return {"block_bytes": megabytes * MEGABYTE, **options}

    brief = {"block_bytes": 8000, "task_seconds": 0.2}
    results = {"block_bytes": 8000, "result_bytes": 8 * MEGABYTE}
    return [
        Row("pool: 4 MB blocks, 20 Mbit/s", "0.9 s", blocks(4), rate=20 * MEGABIT),
        Row("pool: 6 MB blocks, 20 Mbit/s", "1.1 s", blocks(6), rate=20 * MEGABIT),
        Row("pool: 8 MB blocks, 10 Mbit/s", "5 s", blocks(8), rate=10 * MEGABIT),
        Row("pool: 8 MB blocks, cut during the transfer", "4 s", blocks(8), is_cut_later=True),
        Row(
            "pool: 8 MB blocks, 4 Mbit/s, timeout=5",
            "5.5 s",
            blocks(8, timeout=5.0),
            rate=4 * MEGABIT,
        ),
        Row("pool: two of four machines cut between maps", "12 s", brief, n_cut=2),
        Row("client: 8 MB results, 20 Mbit/s", "3.5 s", results, rate=20 * MEGABIT, has_pool=False),
        Row(
            "client: new map of a dask.array, a machine cut",
            "15 s",
            blocks(1, is_kept=True),
            n_cut=1,
            has_pool=False,
        ),
        *ray_rows(brief),
    ]


def ray_rows(options: dict[str, Any]) -> list[Row]:
    """Return the rows that are measured on Ray."""
    cut: dict[str, Any] = {"cut_seconds": 40.0, "start": ray_network}
    # Long tasks, so that a node is cut while they run.
    long_tasks = {"block_bytes": MEGABYTE, "task_seconds": 2.0}
    return [
        Row("Ray, pool: a node cut for 40 s", "15 s", options, n_cut=1, **cut),
        Row("Ray, pool: two nodes cut for 40 s", "15 s", options, n_cut=2, **cut),
        Row("Ray, tasks: a node cut for 40 s", "15 s", options, n_cut=1, has_pool=False, **cut),
        Row("Ray, pool: a node cut while tasks run", "15 s", long_tasks, is_cut_later=True, **cut),
        Row(
            "Ray, tasks: a node cut while tasks run",
            "15 s",
            long_tasks,
            is_cut_later=True,
            has_pool=False,
            **cut,
        ),
    ]


def print_table(measured_rows: list[Row]) -> None:
    """Print all rows in Markdown."""
    print("| one machine of four | slow or cut: median (range), s | full speed, s | aim | |")
    print("|---|--:|--:|--:|---|")
    for row in measured_rows:
        print(row.line())


def print_steps(start: Callable[[], AbstractContextManager[EngineNetwork]], count: int) -> None:
    """Print the milliseconds of steps with 24 blocks of 80 kB for each latency, and of the engine alone."""
    with start() as cluster:
        print(f"\n| each cable | polarmap: median, 90 %, ms | {cluster.engine} alone |\n|---|--:|--:|")
        for name, options in latencies().items():
            cluster.net.restore()
            cluster.driver.call("open_pool")
            for machine in cluster.workers:
                machine.cable.configure(**options)
            cells = list[str]()
            for engine_alone in (False, True):
                reply = cluster.driver.call(
                    "steps", block_bytes=80_000, count=count, engine_alone=engine_alone
                )
                if reply.get("error"):
                    cells.append(reply["error"][:80])
                    continue
                sorted_seconds = sorted(reply["seconds"])
                middle, p90 = statistics.median(sorted_seconds), sorted_seconds[int(0.9 * count)]
                cells.append(f"{1e3 * middle:.0f}, {1e3 * p90:.0f}")
            print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


def latencies() -> dict[str, dict[str, float]]:
    """Return the settings of the workers' cables; a round trip passes each cable twice."""
    return {
        "0 ms": {},
        "5 ms": {"delay": 0.005},
        "50 ms": {"delay": 0.05},
        "1 % loss": {"loss": 0.01},
    }


def main() -> None:
    """Measure the rows and steps that the command line selects."""
    parser = argparse.ArgumentParser(prog="python -m testbed.table", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="maps per row (5); 0: no rows, only steps")
    parser.add_argument("--only", default="", help="measure rows whose name has this regular expression")
    parser.add_argument("--steps", type=int, default=50, help="steps per latency (50); 0: none")
    asked = parser.parse_args()
    if reason := missing_rights():
        raise SystemExit(reason)
    print(f"{BLOCKS} of {TASKS} tasks suffice; {MACHINES} machines; {asked.runs} runs per row.", flush=True)
    selected_rows = [row for row in rows() if asked.runs and re.search(asked.only, row.name)]
    for row in selected_rows:
        began = time.monotonic()
        with row.start() as cluster:
            for is_disturbed in [False] * asked.runs + [True] * asked.runs:
                row.take(cluster, is_disturbed)
        print(row.line(), f"({time.monotonic() - began:.0f} s)", flush=True)
    if selected_rows:
        print()
        print_table(selected_rows)
    for start in (dask_network, ray_network) if asked.steps and not asked.only else ():
        print_steps(start, asked.steps)


if __name__ == "__main__":
    main()
