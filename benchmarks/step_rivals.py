"""Run a step of an iteration with joblib, Dask, Ray and cubed: one task per block kept on the workers.

Each library is used as its documentation recommends, with the options that let it survive a dead worker if it
has them. `n_slots` tasks run at a time, by default one per core. A step that takes longer than `timeout`
seconds raises. Workers import this module, so it imports only what they need.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Fault = float | str  # Seconds to sleep before the task, or a file: the worker that removes it is killed.
GetFaults = Callable[[], Sequence[Fault]]  # returns the fault of each task of a new step
Task = Callable[[Any, np.ndarray], np.ndarray]  # takes a block and the iterate
Step = Callable[[np.ndarray], Sequence[np.ndarray]]  # takes the iterate, returns the results of all tasks
CORES = os.cpu_count() or 1


def run_task(task: Task, block: Any, x: np.ndarray, fault: Fault) -> np.ndarray:
    """Return the result of the task, after its fault."""
    apply_fault(fault)
    return task(block, x)


def apply_fault(fault: Fault) -> None:
    """Sleep, or kill this process if it is the first to remove the file."""
    if not isinstance(fault, str):
        time.sleep(fault)
        return
    try:
        os.unlink(fault)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def joblib_step(
    task: Task,
    blocks: Sequence[Any],
    get_faults: GetFaults,
    n_slots: int = CORES,
    timeout: float | None = None,
) -> Iterator[Step]:
    """Open a step on loky's processes, which memory-map large blocks."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    batch = 1 if n_slots >= len(blocks) else "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Start all processes.
        Parallel(n_jobs=n_slots, batch_size=1)(delayed(apply_fault)(0.5) for _ in range(n_slots))
        # Keeps its memory-mapped blocks.
        with Parallel(n_slots, batch_size=batch, timeout=timeout) as parallel:
            yield lambda x: parallel(
                delayed(run_task)(task, block, x, fault) for block, fault in zip(blocks, get_faults())
            )
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def dask_step(
    task: Task,
    blocks: Sequence[Any],
    get_faults: GetFaults,
    n_slots: int = CORES,
    timeout: float | None = None,
) -> Iterator[Step]:
    """Open a step on blocks that Dask's processes, one per core, have read from files and hold as futures."""
    from distributed import wait

    def step(x: np.ndarray) -> Sequence[np.ndarray]:
        n_blocks = len(blocks)
        futures = client.map(
            run_task, [task] * n_blocks, block_futures, [x] * n_blocks, list(get_faults()), pure=False
        )
        wait(futures, timeout=timeout)
        results: Sequence[np.ndarray] = client.gather(futures)
        return results

    with tempfile.TemporaryDirectory() as folder, local_dask_client(n_slots) as client:
        paths = [Path(folder) / str(index) for index in range(len(blocks))]
        for path, block in zip(paths, blocks):
            path.write_bytes(pickle.dumps(block))
        block_futures = client.map(lambda path: pickle.loads(path.read_bytes()), paths)
        wait(block_futures)
        yield step


@contextmanager
def local_dask_client(n_slots: int) -> Iterator[Any]:
    """Open a client of one process per core, with `n_slots` threads in total."""
    import dask.config
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        # By default, Dask drops a worker that happens to be away 15 s after an earlier kill.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        LocalCluster(
            n_workers=CORES,
            threads_per_worker=-(-n_slots // CORES),
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def ray_step(
    task: Task,
    blocks: Sequence[Any],
    get_faults: GetFaults,
    n_slots: int = CORES,
    timeout: float | None = None,
) -> Iterator[Step]:
    """Open a step on one actor per block, which Ray restarts when it dies."""
    import ray

    class Holder:
        def __init__(self, block: Any) -> None:
            self.block = block

        def run(self, x: np.ndarray, fault: Fault) -> np.ndarray:
            return run_task(task, self.block, x, fault)

    def step(x: np.ndarray) -> Sequence[np.ndarray]:
        x_ref = ray.put(x)
        results: Sequence[np.ndarray] = ray.get(
            [block_actor.run.remote(x_ref, fault) for block_actor, fault in zip(actors, get_faults())],
            timeout=timeout,
        )
        return results

    with local_ray_session():
        actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Holder)
        # A restarted actor gets its block from the object store.
        block_refs = [ray.put(block) for block in blocks]
        actors = [actor.remote(part) for part in block_refs]
        # Wait until all actors have started.
        ray.get([block_actor.__ray_ready__.remote() for block_actor in actors])
        yield step


@contextmanager
def local_ray_session() -> Iterator[Any]:
    """Provide Ray on this machine, started here unless it is running already."""
    import ray

    is_started_here = not ray.is_initialized()
    if is_started_here:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        yield ray
    finally:
        if is_started_here:
            ray.shutdown()


@contextmanager
def cubed_step(
    task: Task,
    blocks: Sequence[Any],
    get_faults: GetFaults,
    n_slots: int = CORES,
    timeout: float | None = None,
) -> Iterator[Step]:
    """Open a step on a Zarr array of all rows, whose chunks are read by threads in every step."""
    import zarr
    from cubed import Spec, from_zarr, map_blocks
    from cubed.runtime.create import create_executor

    def step(x: np.ndarray) -> Sequence[np.ndarray]:
        step_faults = get_faults()

        def process_block(block: np.ndarray, block_id: tuple[int, ...]) -> np.ndarray:
            return run_task(task, block, x, step_faults[block_id[0]])[np.newaxis]

        width = len(x)
        results: np.ndarray = map_blocks(
            process_block, rows, dtype=x.dtype, chunks=((1,) * len(blocks), (width,))
        ).compute(executor=executor)
        return results

    with tempfile.TemporaryDirectory() as folder:
        shape = (sum(len(block) for block in blocks), blocks[0].shape[1])
        chunks = blocks[0].shape
        array = zarr.create_array(f"{folder}/rows.zarr", shape=shape, chunks=chunks, dtype=blocks[0].dtype)
        for index, block in enumerate(blocks):
            array[index * chunks[0] : (index + 1) * chunks[0]] = block
        rows = from_zarr(f"{folder}/rows.zarr", spec=Spec(f"{folder}/work", allowed_mem="500MB"))
        executor = create_executor("threads", {"max_workers": n_slots})
        yield step


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
