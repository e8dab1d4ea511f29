"""A step of an iteration by joblib, Dask, Ray and cubed: a task for each block that stays on workers.

Each is used as its documentation says, with the options that let it survive a dead worker where it has
them. With `slots` that many tasks run at a time, by default one on each core; a step that takes longer than
`deadline` seconds raises. Workers import this module, so it imports no more than they need.
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

Fault = float | str  # seconds for which a task sleeps first, or a file: who removes it is killed
GetFaults = Callable[[], Sequence[Fault]]  # of all tasks of a new step
Task = Callable[[Any, np.ndarray], np.ndarray]  # of a block and the iterate
Step = Callable[[np.ndarray], Sequence[np.ndarray]]  # from the iterate to what all tasks return
CORES = os.cpu_count() or 1


def run_task(task: Task, block: Any, x: np.ndarray, fault: Fault) -> np.ndarray:
    """What the task returns, unless its worker dies."""
    apply_fault(fault)
    return task(block, x)


def apply_fault(fault: Fault) -> None:
    """Sleep, or die if nobody has for this file."""
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
    """All blocks on loky's processes, which map large blocks."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    batch = 1 if n_slots >= len(blocks) else "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # all have started
        Parallel(n_jobs=n_slots, batch_size=1)(delayed(apply_fault)(0.5) for _ in range(n_slots))
        with Parallel(n_slots, batch_size=batch, timeout=timeout) as parallel:  # keeps what it has mapped
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
    """All blocks held as futures by a process for each core, which reads them from files."""
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
    """A client of a process for each core, which have so many threads together."""
    import dask.config
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        # Else a process is given up that is away, for whatever time, 15 s after it was killed before.
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
    """An actor for each block, which is made again when it dies."""
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
        block_refs = [ray.put(block) for block in blocks]  # from which an actor is made again
        actors = [actor.remote(part) for part in block_refs]
        ray.get([block_actor.__ray_ready__.remote() for block_actor in actors])  # all have started
        yield step


@contextmanager
def local_ray_session() -> Iterator[Any]:
    """Ray on this machine, started unless it is there already."""
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
    """A Zarr array of all rows, whose chunks threads read in every step: none is kept."""
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
    """Whether a rival can be imported."""
    return importlib.util.find_spec(package) is not None
