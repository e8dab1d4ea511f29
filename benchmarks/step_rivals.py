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
Faults = Callable[[], Sequence[Fault]]  # of all tasks of a new step
Task = Callable[[Any, np.ndarray], np.ndarray]  # of a block and the iterate
Step = Callable[[np.ndarray], Sequence[np.ndarray]]  # from the iterate to what all tasks return
CORES = os.cpu_count() or 1


def run(task: Task, block: Any, x: np.ndarray, fault: Fault) -> np.ndarray:
    """What the task returns, unless its worker dies."""
    suffer(fault)
    return task(block, x)


def suffer(fault: Fault) -> None:
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
def joblib(
    task: Task, blocks: Sequence[Any], faults: Faults, slots: int = CORES, deadline: float | None = None
) -> Iterator[Step]:
    """All blocks on loky's processes, which map large blocks."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    batch = 1 if slots >= len(blocks) else "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Parallel(n_jobs=slots, batch_size=1)(delayed(suffer)(0.5) for _ in range(slots))  # all have started
        with Parallel(slots, batch_size=batch, timeout=deadline) as parallel:  # keeps what it has mapped
            yield lambda x: parallel(
                delayed(run)(task, block, x, fault) for block, fault in zip(blocks, faults())
            )
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def dask(
    task: Task, blocks: Sequence[Any], faults: Faults, slots: int = CORES, deadline: float | None = None
) -> Iterator[Step]:
    """All blocks held as futures by a process for each core, which reads them from files."""
    from distributed import wait

    def step(x: np.ndarray) -> Sequence[np.ndarray]:
        count = len(blocks)
        futures = client.map(run, [task] * count, held, [x] * count, list(faults()), pure=False)
        wait(futures, timeout=deadline)
        found: Sequence[np.ndarray] = client.gather(futures)
        return found

    with tempfile.TemporaryDirectory() as folder, dask_here(slots) as client:
        paths = [Path(folder) / str(index) for index in range(len(blocks))]
        for path, block in zip(paths, blocks):
            path.write_bytes(pickle.dumps(block))
        held = client.map(lambda path: pickle.loads(path.read_bytes()), paths)
        wait(held)
        yield step


@contextmanager
def dask_here(slots: int) -> Iterator[Any]:
    """A client of a process for each core, which have so many threads together."""
    import dask.config
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        # Else a process is given up that is away, for whatever time, 15 s after it was killed before.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}),
        LocalCluster(
            n_workers=CORES,
            threads_per_worker=-(-slots // CORES),
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def ray(
    task: Task, blocks: Sequence[Any], faults: Faults, slots: int = CORES, deadline: float | None = None
) -> Iterator[Step]:
    """An actor for each block, which is made again when it dies."""
    import ray

    class Holder:
        def __init__(self, block: Any) -> None:
            self.block = block

        def run(self, x: np.ndarray, fault: Fault) -> np.ndarray:
            return run(task, self.block, x, fault)

    def step(x: np.ndarray) -> Sequence[np.ndarray]:
        shared = ray.put(x)
        found: Sequence[np.ndarray] = ray.get(
            [one.run.remote(shared, fault) for one, fault in zip(actors, faults())], timeout=deadline
        )
        return found

    with ray_here():
        actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Holder)
        parts = [ray.put(block) for block in blocks]  # from which an actor is made again
        actors = [actor.remote(part) for part in parts]
        ray.get([one.__ray_ready__.remote() for one in actors])  # all have started
        yield step


@contextmanager
def ray_here() -> Iterator[Any]:
    """Ray on this machine, started unless it is there already."""
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


@contextmanager
def cubed(
    task: Task, blocks: Sequence[Any], faults: Faults, slots: int = CORES, deadline: float | None = None
) -> Iterator[Step]:
    """A Zarr array of all rows, whose chunks threads read in every step: none is kept."""
    import zarr
    from cubed import Spec, from_zarr, map_blocks
    from cubed.runtime.create import create_executor

    def step(x: np.ndarray) -> Sequence[np.ndarray]:
        now = faults()

        def one(block: np.ndarray, block_id: tuple[int, ...]) -> np.ndarray:
            return run(task, block, x, now[block_id[0]])[np.newaxis]

        width = len(x)
        found: np.ndarray = map_blocks(
            one, rows, dtype=x.dtype, chunks=((1,) * len(blocks), (width,))
        ).compute(executor=executor)
        return found

    with tempfile.TemporaryDirectory() as folder:
        shape = (sum(len(block) for block in blocks), blocks[0].shape[1])
        chunks = blocks[0].shape
        array = zarr.create_array(f"{folder}/rows.zarr", shape=shape, chunks=chunks, dtype=blocks[0].dtype)
        for index, block in enumerate(blocks):
            array[index * chunks[0] : (index + 1) * chunks[0]] = block
        rows = from_zarr(f"{folder}/rows.zarr", spec=Spec(f"{folder}/work", allowed_mem="500MB"))
        executor = create_executor("threads", {"max_workers": slots})
        yield step


def is_installed(name: str) -> bool:
    """Whether a rival can be imported."""
    return importlib.util.find_spec(name) is not None
