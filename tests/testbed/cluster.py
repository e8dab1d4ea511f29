"""A driver, a Dask scheduler and Dask workers, each on a machine of its own."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from testbed.machines import Machine, Network, network, wait_until

MACHINES, THREADS = 4, 8  # of workers, and on each
TASKS, BLOCKS = 32, 24  # of a map: the tasks of one machine may be missing
PORT = 8786
# Standard output of processes that nobody reads.
SILENT = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Driver:
    """A process that runs maps when it is told to by lines of JSON; see `testbed.driver`."""

    def __init__(self, machine: Machine, scheduler: str) -> None:
        self.machine = machine
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._log = (machine.folder / "driver.log").open("w+")
        self._process = machine.popen(
            [sys.executable, "-m", "testbed.driver", scheduler], stderr=self._log, **pipes
        )
        self._replies: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(json.loads(line))
        self._replies.put(None)

    def start(self, name: str, **arguments: Any) -> None:
        """Begin a call of a function of `testbed.driver.Maps`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
        self._process.stdin.flush()

    def result(self, seconds: float = 240.0) -> dict[str, Any]:
        """Return what the call that began last has returned; TimeoutError if it takes longer."""
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


class DaskNetwork:
    """A network with a Dask cluster in it. The workers are on machines worker-1 to worker-4."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.scheduler = f"tcp://{net['scheduler'].address}:{PORT}"
        self.workers = [machine for name, machine in net.machines.items() if name.startswith("worker")]
        address = net["scheduler"].address
        command = ["distributed.cli.dask_scheduler", "--host", address, "--port", str(PORT), "--no-dashboard"]
        self._scheduler = net["scheduler"].popen([sys.executable, "-m", *command], **SILENT)
        for machine in self.workers:
            self.start_worker(machine)
        self.driver = Driver(net["driver"], self.scheduler)

    def start_worker(self, machine: Machine) -> None:
        """Start a Dask worker with its nanny, which restarts the worker if it ends."""
        options = ["--host", machine.address, "--name", machine.name, "--nthreads", str(THREADS)]
        options += ["--memory-limit", "0", "--no-dashboard", "--local-directory", str(machine.folder / "tmp")]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.scheduler, *options]
        machine.popen(command, **SILENT)

    def wait_for_workers(self, patience: float = 20.0) -> None:
        """Wait until all workers are there. Those that are not after `patience` seconds are started again."""
        missing = list(self.workers)

        def are_all_there() -> bool:
            names = self.driver.call("worker_names")["names"]
            missing[:] = [machine for machine in self.workers if machine.name not in names]
            return not missing

        for seconds in (patience, 120.0):
            with contextlib.suppress(TimeoutError):
                wait_until(are_all_there, seconds)
                return
            for machine in missing:
                machine.kill("dask_worker")
                machine.kill("multiprocessing")
                self.start_worker(machine)
        wait_until(are_all_there, 120.0)

    def new_driver(self) -> Driver:
        """End the driver and start another one."""
        self.driver.close()
        self.driver = Driver(self.net["driver"], self.scheduler)
        return self.driver


@contextlib.contextmanager
def dask_network(machines: int = MACHINES) -> Iterator[DaskNetwork]:
    """Start a driver, a scheduler and so many machines with a Dask worker each."""
    with network(["driver", "scheduler", *(f"worker-{i + 1}" for i in range(machines))]) as net:
        cluster = DaskNetwork(net)
        try:
            cluster.wait_for_workers(240.0)
            yield cluster
        finally:
            for machine in net.machines.values():
                machine.close()  # first, so that the driver waits for nobody
            cluster.driver.close()
