"""Start a driver and an engine, Dask or Ray, with each part on a separate machine."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from testbed.machines import Machine, Network, network, wait_until

MACHINES, THREADS = 4, 8  # Machines with workers, and threads on each.
TASKS, BLOCKS = 32, 24  # Tasks and blocks of a map: the tasks of one machine may be missing.
DASK_PORT, RAY_PORT = 8786, 6379
RAY_FOLDER = "/dev/shm/ray"  # A folder on each machine with a short path, since it contains sockets.
RAY_STORE_BYTES = 512 << 20  # Bytes of shared memory of each node.
# On a busy machine, Ray's processes take longer to start than Ray waits by default.
RAY_PATIENCE = ("RAY_agent_register_timeout_ms=300000", "RAY_worker_register_timeout_seconds=300")
RAY_STARTS = 5  # The most attempts to start a node.
RAY_IS_UP = "This command will now block forever"  # A node prints this once it has started.
# The standard streams of processes whose output is not read.
SILENT = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Driver:
    """A process that runs the maps requested by lines of JSON; see `testbed.driver`."""

    def __init__(self, machine: Machine, engine: str, address: str) -> None:
        self.machine = machine
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._log = (machine.folder / "driver.log").open("w+")
        self._process = machine.popen(
            [sys.executable, "-m", "testbed.driver", engine, address], stderr=self._log, **pipes
        )
        self._replies: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(json.loads(line))
        self._replies.put(None)

    def start(self, name: str, **arguments: Any) -> None:
        """Start a call of a function of `testbed.driver.Maps`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
        self._process.stdin.flush()

    def result(self, seconds: float = 240.0) -> dict[str, Any]:
        """Return the result of the call that was started last. Raise TimeoutError if it takes longer."""
        try:
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"the driver has not replied within {seconds:g} s") from None
        if reply is None:
            raise ChildProcessError(f"the driver has ended:\n{self.log()}")
        return reply

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Call a function of `testbed.driver.Maps`."""
        self.start(name, **arguments)
        return self.result()

    def log(self) -> str:
        """Return what the driver has written to its standard error."""
        self._log.flush()
        return (self.machine.folder / "driver.log").read_text()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        try:
            self._process.wait(20.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class EngineNetwork:
    """A network with the cluster of an engine. The workers are on machines worker-1 to worker-4."""

    engine: str  # The name of the engine for `testbed.driver`.
    patience = 20.0  # Seconds in which workers reconnect by themselves.
    address: str  # The address of the cluster for drivers.

    def __init__(self, net: Network) -> None:
        self.net = net
        # The latest process on each machine, by the machine's name.
        self.processes = dict[str, subprocess.Popen[str]]()
        self.workers = [machine for name, machine in net.machines.items() if name.startswith("worker")]
        self.start_head()
        for machine in self.workers:
            self.start_worker(machine)
        self.driver = self._started_driver()

    def start_head(self) -> None:
        """Start the process that schedules tasks."""
        raise NotImplementedError

    def start_worker(self, machine: Machine) -> None:
        """Start the processes that run tasks on a machine."""
        raise NotImplementedError

    def end_worker(self, machine: Machine) -> None:
        """Kill all processes that run tasks on a machine."""
        raise NotImplementedError

    def kill_tasks(self, machine: Machine) -> int:
        """Kill the processes in which tasks run, which the engine replaces, and return their number."""
        raise NotImplementedError

    def restart_workers(self) -> None:
        """Restart workers that have ended by themselves, as after a cut."""
        for machine in self.workers:
            if self.processes[machine.name].poll() is not None:
                self.start_worker(machine)

    def wait_for_workers(self, patience: float | None = None) -> None:
        """Wait until all workers are available. Restart those still missing after `patience` seconds."""
        missing = list(self.workers)

        def are_all_there() -> bool:
            self.restart_workers()
            names = self.driver.call("worker_names")["names"]
            missing[:] = [machine for machine in self.workers if machine.name not in names]
            return not missing

        for seconds in (patience or self.patience, 120.0):
            with contextlib.suppress(TimeoutError):
                wait_until(are_all_there, seconds)
                return
            for machine in missing:
                self.end_worker(machine)
                self.start_worker(machine)
        wait_until(are_all_there, 120.0)

    def new_driver(self) -> Driver:
        """End the driver and start another one."""
        self.driver.close()
        self.driver = self._started_driver()
        return self.driver

    def _started_driver(self) -> Driver:
        return Driver(self.net["driver"], self.engine, self.address)


class DaskNetwork(EngineNetwork):
    """A Dask cluster whose scheduler has a separate machine."""

    engine = "dask"

    def start_head(self) -> None:
        machine = self.net["scheduler"]
        self.address = f"tcp://{machine.address}:{DASK_PORT}"
        options = ["--host", machine.address, "--port", str(DASK_PORT), "--no-dashboard"]
        machine.popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *options], **SILENT)

    def start_worker(self, machine: Machine) -> None:
        """Start a Dask worker with its nanny, which restarts the worker if it ends."""
        options = ["--host", machine.address, "--name", machine.name, "--nthreads", str(THREADS)]
        options += ["--memory-limit", "0", "--no-dashboard", "--local-directory", str(machine.folder / "tmp")]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *options]
        self.processes[machine.name] = machine.popen(command, **SILENT)

    def end_worker(self, machine: Machine) -> None:
        machine.kill("dask_worker")
        self.kill_tasks(machine)

    def kill_tasks(self, machine: Machine) -> int:
        return machine.kill("multiprocessing")


class RayNetwork(EngineNetwork):
    """A Ray cluster whose head node is on the machine of the scheduler, if there is one, or of the driver.

    Each driver needs a node on its machine. Neither of these nodes runs tasks.
    """

    engine = "ray"
    patience = 120.0

    def start_head(self) -> None:
        machines = [self.net.machines[name] for name in ("scheduler", "driver") if name in self.net.machines]
        self.address = f"{machines[0].address}:{RAY_PORT}"
        for machine in machines:
            is_head = machine is machines[0]
            place = ["--address", self.address]
            if is_head:
                place = ["--head", "--port", str(RAY_PORT), "--include-dashboard", "false"]
            self._start_node(machine, *place, "--num-cpus", "0")

    def start_worker(self, machine: Machine) -> None:
        self._start_node(machine, "--address", self.address, "--num-cpus", str(THREADS))

    def end_worker(self, machine: Machine) -> None:
        machine.kill("ray")

    def kill_tasks(self, machine: Machine) -> int:
        return machine.kill("ray::")

    def _start_node(self, machine: Machine, *options: str) -> None:
        """Start a Ray node, which ends with its machine, and wait until it has started.

        A raylet aborts if its agents take more than 15 s to start. It is then started again.
        """
        options += ("--node-ip-address", machine.address, "--node-name", machine.name, "--block")
        options += ("--object-store-memory", str(RAY_STORE_BYTES), "--temp-dir", RAY_FOLDER)
        options += ("--disable-usage-stats",)
        command = ["env", *RAY_PATIENCE, sys.executable, "-m", "testbed.ray_node", "start", *options]
        log = machine.folder / "ray.log"
        for _ in range(RAY_STARTS):
            with log.open("w") as output:
                process = machine.popen(command, **{**SILENT, "stdout": output, "stderr": output})
            self.processes[machine.name] = process
            wait_until(lambda one=process: RAY_IS_UP in log.read_text() or one.poll() is not None, 300.0)
            if process.poll() is None:
                return
            machine.kill("ray")
        raise ChildProcessError(f"no Ray node starts on {machine.name}:\n{log.read_text()}")


@contextlib.contextmanager
def engine_network(
    kind: type[EngineNetwork], names: Iterable[str], in_two_networks: Collection[str] = ()
) -> Iterator[EngineNetwork]:
    """Start machines with these names, and an engine on them."""
    with network(names, in_two_networks) as net:
        cluster = kind(net)
        try:
            cluster.wait_for_workers(240.0)
            yield cluster
        finally:
            for machine in net.machines.values():
                machine.close()  # Machines are closed first, so that the driver does not wait for them.
            cluster.driver.close()


def worker_names(count: int = MACHINES) -> list[str]:
    """Return the names of the given number of worker machines."""
    return [f"worker-{number + 1}" for number in range(count)]


def dask_network(count: int = MACHINES) -> contextlib.AbstractContextManager[EngineNetwork]:
    """Start a driver, a scheduler and the given number of machines with one Dask worker each."""
    return engine_network(DaskNetwork, ["driver", "scheduler", *worker_names(count)])


def ray_network(count: int = MACHINES) -> contextlib.AbstractContextManager[EngineNetwork]:
    """Start a driver with Ray's head node, and the given number of machines with another node each."""
    return engine_network(RayNetwork, ["driver", *worker_names(count)])
