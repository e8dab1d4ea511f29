"""python -m testbed.driver dask|ray ADDRESS: run the maps requested by lines of JSON on standard input."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import polarmap
from testbed.cluster import BLOCKS, TASKS


class Maps:
    """Maps on a pool or on the engine itself. Each returns its seconds and its error, if any.

    Parameters
    ----------
    engine : distributed.Client or module
        A Dask client, or the module `ray`; the value of `executor=` for maps.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.pool: polarmap.Pool | None = None
        self._stream = np.random.default_rng(0)
        self._kept: tuple[Any, Any] | None = None  # An array, and the object that keeps it on the cluster.

    def worker_names(self) -> dict[str, Any]:
        """Return the names of the machines whose workers the engine knows."""
        raise NotImplementedError

    def keep_on_cluster(self, data: Any, rows: int) -> Any:
        """Store an array on the cluster, in blocks of `rows` rows, and return the input of a map."""
        raise NotImplementedError

    def run_tasks(self, f: Callable[[Any], Any], blocks: list[Any]) -> None:
        """Run f on each block by tasks of the engine alone, and wait for all results."""
        raise NotImplementedError

    def open_pool(self, **options: Any) -> dict[str, Any]:
        """Open a pool, and run a small map on it so that its workers connect."""
        self.close_pool()
        self.pool = polarmap.Pool(self.engine, **{"workers": TASKS, **options})
        return self.run(100, task_seconds=0.1)

    def workers_by_host(self) -> dict[str, Any]:
        """Return how many workers of the pool run on each host."""
        return {"workers": {} if self.pool is None else self.pool.workers_by_host}

    def hosts(self) -> dict[str, Any]:
        """Return the addresses at which workers of the pool try to reach this process, in order."""
        assert self.pool is not None
        workers: Any = (resources := self.pool._executor._resources) and resources.worker_pool
        return {"hosts": [host for host, _ in workers._driver_address.endpoints]}

    def keep(self, block_bytes: int) -> dict[str, Any]:
        """Store an array with the blocks of the next map on the cluster."""
        data = self._stream.standard_normal((10 * BLOCKS, max(1, block_bytes // 80)))
        self._kept = data, self.keep_on_cluster(data, 10)
        return {"seconds": 0.0}

    def close_pool(self) -> dict[str, Any]:
        """Close the pool, if there is one."""
        pool, self.pool = self.pool, None
        began = time.monotonic()
        if pool is not None:
            pool.close()
        return {"seconds": time.monotonic() - began}

    def run(
        self,
        block_bytes: int,
        result_bytes: int = 0,
        timeout: float | None = 200.0,
        is_kept: bool = False,
        tasks: int = TASKS,
        blocks: int = BLOCKS,
        on_client: bool = False,
        task_seconds: float = 0.0,
    ) -> dict[str, Any]:
        """Run a map of new data with the given sizes of blocks and (approximately) of results, in bytes.

        Parameters
        ----------
        is_kept : bool
            Whether the data is the array that `keep` has stored.
        on_client : bool
            Whether the map runs without a pool.
        task_seconds : float
            The least duration of a task, so that each worker gets one task instead of several.
        """
        if is_kept:
            assert self._kept is not None
            (data, source), self._kept = self._kept, None
        else:
            source = data = self._stream.standard_normal((10 * blocks, max(1, block_bytes // 80)))
        copies = max(1, result_bytes // 80)
        want = np.repeat(data.sum(axis=1, keepdims=True), copies, axis=1)

        def f(block: Any) -> Any:
            time.sleep(task_seconds)
            return np.repeat(block.sum(axis=1, keepdims=True), copies, axis=1)

        began, error, right, hosts = time.monotonic(), "", False, set[str]()
        executor = self.engine if on_client else self.pool
        try:
            result = polarmap.coded_map(
                f,
                source,
                blocks=blocks,
                tasks=tasks,
                executor=executor,
                timeout=timeout,
            )
            seconds = time.monotonic() - began
            right = bool(np.allclose(result.concatenate(), want, rtol=1e-8, atol=1e-6))
            hosts = {one.host for one in result.report.tasks if one.arrived is not None and one.host}
        except Exception as caught:
            seconds, error = time.monotonic() - began, f"{type(caught).__name__}: {caught}"
        return {
            "seconds": seconds,
            "error": error,
            "is_right": right,
            "hosts": sorted(hosts),  # Hosts whose results have arrived.
            "memory": memory_bytes(),
        }

    def steps(self, block_bytes: int, count: int, engine_alone: bool = False) -> dict[str, Any]:
        """Return the seconds of each map of the same data, after a warm-up map that is not counted."""
        data = self._stream.standard_normal((10 * BLOCKS, max(1, block_bytes // 80)))
        parts = np.split(data, BLOCKS)
        seconds = list[float]()
        for number in range(count + 1):
            x = np.full(data.shape[1], number, float)
            began = time.monotonic()
            if engine_alone:
                self.run_tasks(lambda block, x=x: block @ x, parts)
            else:
                polarmap.coded_map(
                    lambda block, x=x: block @ x,
                    data,
                    blocks=BLOCKS,
                    tasks=TASKS,
                    executor=self.pool,
                    timeout=60,
                )
            seconds.append(time.monotonic() - began)
        return {"seconds": seconds[1:]}


class DaskMaps(Maps):
    """Maps on a Dask cluster, given by the address of its scheduler."""

    def __init__(self, address: str) -> None:
        import distributed

        # The scheduler may start later than the driver.
        super().__init__(distributed.Client(address, timeout=120))

    def worker_names(self) -> dict[str, Any]:
        workers = self.engine.scheduler_info(n_workers=-1)["workers"].values()
        return {"names": [worker["name"] for worker in workers]}

    def keep_on_cluster(self, data: Any, rows: int) -> Any:
        import dask.array
        import distributed

        source = dask.array.from_array(data, chunks=(rows, data.shape[1])).persist()
        distributed.wait(source)
        return source

    def run_tasks(self, f: Callable[[Any], Any], blocks: list[Any]) -> None:
        self.engine.gather(self.engine.map(f, blocks, pure=False))


class RayMaps(Maps):
    """Maps on a Ray cluster, given by the address of its head node; a node must run on this machine."""

    def __init__(self, address: str) -> None:
        import ray

        # By default, Ray looks for its node at the address of the default route, which may be another
        # network.
        own = {"_node_ip_address": socket.gethostbyname(socket.gethostname())}
        deadline = time.monotonic() + 120.0
        while not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, **own)
            except ConnectionError:  # The node on this machine is still starting.
                if time.monotonic() > deadline:
                    raise
        super().__init__(ray)

    def worker_names(self) -> dict[str, Any]:
        return {"names": [node["NodeName"] for node in self.engine.nodes() if node["Alive"]]}

    def keep_on_cluster(self, data: Any, rows: int) -> Any:
        references = [self.engine.put(part) for part in np.split(data, len(data) // rows)]
        self.engine.wait(references, num_returns=len(references), fetch_local=False)
        return references

    def run_tasks(self, f: Callable[[Any], Any], blocks: list[Any]) -> None:
        task = self.engine.remote(f)
        self.engine.get([task.remote(block) for block in blocks])


def memory_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as statistics:
        return int(statistics.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Answer each line on standard output; output of libraries is redirected to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine, address = sys.argv[1:]
    maps = DaskMaps(address) if engine == "dask" else RayMaps(address)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = getattr(maps, asked["name"])(**asked["arguments"])
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}", "seconds": 0.0, "is_right": False}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
