"""python -m testbed.driver SCHEDULER: runs maps that lines of JSON on the standard input ask for."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import distributed
import numpy as np

import polarmap
from testbed.cluster import BLOCKS, TASKS


class Maps:
    """Maps on a pool or on the client of a Dask cluster; each returns its seconds, and what went wrong."""

    def __init__(self, scheduler: str) -> None:
        self.client = distributed.Client(scheduler, timeout=120)  # which may start later
        self.pool: polarmap.Pool | None = None
        self._stream = np.random.default_rng(0)

    def worker_names(self) -> dict[str, Any]:
        """Return the names of the Dask workers that the scheduler knows."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return {"names": [worker["name"] for worker in workers]}

    def open_pool(self, **options: Any) -> dict[str, Any]:
        """Make a pool, and run a small map on it, so that its workers have called."""
        self.close_pool()
        self.pool = polarmap.Pool(self.client, workers=TASKS, **options)
        return self.run(100, task_seconds=0.1)

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
        is_on_cluster: bool = False,
        tasks: int = TASKS,
        blocks: int = BLOCKS,
        on_client: bool = False,
        task_seconds: float = 0.0,
    ) -> dict[str, Any]:
        """Run a map of new data: blocks of so many bytes, and results of about as many as asked for.

        is_on_cluster : whether the data is a `dask.array`; on_client : whether it runs without a pool.
        task_seconds : that each task takes at least: then each worker has one, and none has several.
        """
        columns = max(1, block_bytes // 80)
        data = self._stream.standard_normal((10 * blocks, columns))
        copies = max(1, result_bytes // 80)
        want = np.repeat(data.sum(axis=1, keepdims=True), copies, axis=1)
        source: Any = data
        if is_on_cluster:
            import dask.array

            source = dask.array.from_array(data, chunks=(10, columns)).persist()
            distributed.wait(source)

        def f(block: Any) -> Any:
            time.sleep(task_seconds)
            return np.repeat(block.sum(axis=1, keepdims=True), copies, axis=1)

        began, error, right = time.monotonic(), "", False
        executor = self.client if on_client else self.pool
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
        except Exception as caught:
            seconds, error = time.monotonic() - began, f"{type(caught).__name__}: {caught}"
        return {"seconds": seconds, "error": error, "is_right": right, "memory": memory_bytes()}

    def steps(self, block_bytes: int, count: int, engine_alone: bool = False) -> dict[str, Any]:
        """Return the seconds of each of so many maps of the same data, after one that does not count."""
        data = self._stream.standard_normal((10 * BLOCKS, max(1, block_bytes // 80)))
        parts = np.split(data, BLOCKS)
        seconds = list[float]()
        for number in range(count + 1):
            x = np.full(data.shape[1], number, float)
            began = time.monotonic()
            if engine_alone:
                futures = self.client.map(lambda block, x=x: block @ x, parts, pure=False)
                self.client.gather(futures)
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


def memory_bytes() -> int:
    """Return the resident memory of this process."""
    with open("/proc/self/statm") as statistics:
        return int(statistics.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Answer each line; what libraries print goes to the standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    maps = Maps(sys.argv[1])
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
