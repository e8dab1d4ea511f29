"""python -m testbed.soak: run random maps on Dask or Ray while machines are throttled, cut and killed."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from testbed.cluster import EngineNetwork, dask_network, ray_network
from testbed.machines import missing_rights

TIMEOUT = 60.0  # Seconds after which a map raises an error.
PATIENCE = 30.0  # Seconds after the timeout until the map counts as hanging.
MOST_FAULTS = 2  # The most faults at the same time.
MEGABIT = 1e6
SIZES = {"small": 8_000, "medium": 200_000, "large": 2_000_000}  # Bytes of a block.
SHARES = {"small": 5, "medium": 3, "large": 2}
Event = tuple[float, Callable[[], object]]


@dataclass
class Fault:
    """A fault of a machine while a map runs.

    Attributes
    ----------
    begin : float
        Seconds from the start of the map to the fault.
    seconds : float
        Duration of the fault, which ends with the map at the latest.
    """

    kind: str
    machine: int
    begin: float
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)

    def events(self, cluster: EngineNetwork) -> list[Event]:
        """Return the actions of the fault, each with its time in seconds after the start of the map."""
        machine = cluster.workers[self.machine]
        if self.kind == "kill":
            return [(self.begin, lambda: cluster.kill_tasks(machine))]
        cable, end = machine.cable, self.begin + self.seconds
        return [(self.begin, lambda: cable.configure(**self.options)), (end, cable.configure)]


@dataclass
class Case:
    """A map and its faults, drawn from a seed."""

    seed: int
    size: str
    options: dict[str, Any]
    faults: list[Fault]

    def __str__(self) -> str:
        faults = ", ".join(f"{one.kind} {one.machine + 1} at {one.begin:.2f} s" for one in self.faults)
        return f"case {self.seed}: {self.size} blocks, {self.options}; {faults or 'no fault'}"


@dataclass
class Tally:
    """Counts the outcomes of the maps."""

    counts: Counter[str] = field(default_factory=Counter)
    n_faults: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def note(self, case: Case, verdict: str, reply: dict[str, Any]) -> None:
        """Add the outcome of one map."""
        self.counts[verdict] += 1
        self.n_faults.update(fault.kind for fault in case.faults)
        self.seconds.append(reply.get("seconds", TIMEOUT + PATIENCE))
        self.memory.append(reply.get("memory", 0))
        if verdict != "right":
            self.findings.append(f"{verdict}: {case}\n    {reply.get('error', '')[:300]}")

    def table(self) -> str:
        """Return all counts as a Markdown table."""
        sorted_seconds, count = sorted(self.seconds), len(self.seconds)
        columns = {
            "maps": count,
            "faults": self.n_faults.total(),
            **{name: self.counts[name] for name in ("right", "error", "hang", "wrong")},
            "median": f"{statistics.median(sorted_seconds):.2f} s",
            "99 %": f"{sorted_seconds[int(0.99 * (count - 1))]:.1f} s",
            "maximum": f"{sorted_seconds[-1]:.1f} s",
            "memory": f"{max(self.memory) / 1e6:.0f} MB",
        }
        heads, cells = " | ".join(columns), " | ".join(map(str, columns.values()))
        return f"| {heads} |\n|{'--:|' * len(columns)}\n| {cells} |\n\nFaults: {dict(self.n_faults)}"


def draw_case(seed: int, n_machines: int) -> Case:
    """Draw a map and at most two faults on different machines."""
    random = Random(seed)
    size = random.choices(list(SHARES), list(SHARES.values()))[0]
    options = {"block_bytes": SIZES[size], "timeout": TIMEOUT, "on_client": random.random() < 0.2}
    options["task_seconds"] = random.choice([0.0, 0.0, 0.1])
    if random.random() < 0.2:
        options["result_bytes"] = random.choice([100_000, 1_000_000])
    machines = random.sample(range(n_machines), random.choice([0, 1, 1, MOST_FAULTS]))
    return Case(seed, size, options, [draw_fault(random, machine) for machine in machines])


def draw_fault(random: Random, machine: int) -> Fault:
    """Draw the fault of a machine."""
    kind = random.choices(["throttle", "cut", "kill", "loss", "delay"], [4, 3, 2, 1, 1])[0]
    options = {
        "throttle": {"rate": random.choice([1, 4, 20]) * MEGABIT},
        "cut": {"is_cut": True},
        "loss": {"loss": 0.02},
        "delay": {"delay": 0.05},
    }
    begin = random.choice([0.0, random.uniform(0.0, 0.5)])
    return Fault(kind, machine, begin, random.choice([0.3, 3.0, 15.0]), options.get(kind, {}))


def run_case(cluster: EngineNetwork, case: Case) -> tuple[str, dict[str, Any]]:
    """Run a map while its faults happen, then restore the network; return a verdict and the reply."""
    events = sorted(
        (event for fault in case.faults for event in fault.events(cluster)),
        key=lambda event: event[0],
    )
    began = time.monotonic()
    cluster.driver.start("run", **case.options)
    try:
        for reply in replies(cluster, began + TIMEOUT + PATIENCE):
            while events and time.monotonic() >= began + events[0][0]:
                events.pop(0)[1]()
            if reply is not None:
                verdict = "error" if reply["error"] else "right" if reply["is_right"] else "wrong"
                return verdict, reply
    finally:
        cluster.net.restore()
    return "hang", {}


def replies(cluster: EngineNetwork, deadline: float) -> Iterator[dict[str, Any] | None]:
    """Yield None every few milliseconds until the driver replies, then the reply; end at the deadline."""
    while time.monotonic() < deadline:
        try:
            yield cluster.driver.result(0.01)
        except TimeoutError:
            yield None


def soak(cluster: EngineNetwork, seed: int, n_maps: int, deadline: float) -> Tally:
    """Run cases with this seed and the following ones."""
    tally = Tally()
    cluster.driver.call("open_pool")
    for number in range(seed, seed + n_maps):
        if time.monotonic() > deadline:
            break
        cluster.restart_workers()
        case = draw_case(number, len(cluster.workers))
        verdict, reply = run_case(cluster, case)
        tally.note(case, verdict, reply)
        if verdict != "right":
            print(tally.findings[-1], flush=True)
        if verdict == "hang":
            cluster.new_driver().call("open_pool")
        if sum(tally.counts.values()) % 50 == 0:
            print(tally.table(), flush=True)
    return tally


def main() -> None:
    """Run the soak test with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m testbed.soak", description=__doc__)
    parser.add_argument("--maps", type=int, default=1000, help="number of maps (1000)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this many minutes")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first map; later maps count up (1)")
    parser.add_argument("--engine", choices=["dask", "ray"], default="dask", help="dask (the default) or ray")
    asked = parser.parse_args()
    if reason := missing_rights():
        raise SystemExit(reason)
    with (dask_network if asked.engine == "dask" else ray_network)() as cluster:
        deadline = time.monotonic() + 60 * asked.minutes
        tally = soak(cluster, asked.seed, asked.maps, deadline)
    print(f"\n{tally.table()}")
    raise SystemExit(1 if tally.counts["wrong"] or tally.counts["hang"] else 0)


if __name__ == "__main__":
    main()
