"""A step of an iteration by joblib, Dask and Ray: blocks that stay on workers times a vector.

Each is used as its documentation says, with the options that let it survive a dead worker where it has
them, and is given a few seconds. What is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

Trouble = Literal["nobody", "asleep", "killed"]  # what befalls the workers, in every step
Step = Callable[[], Any]

ASLEEP, KILLED = (3, 11), 5  # tasks
DEADLINE = 10.0  # seconds for a step


def product(block: np.ndarray, x: np.ndarray, fault: str) -> np.ndarray:
    """Block times x, unless the worker sleeps for good or dies, once for each time `fault` is made."""
    if fault == "sleep":
        time.sleep(600.0)
    elif fault:
        try:
            os.unlink(fault)
        except FileNotFoundError:
            return block @ x
        os.kill(os.getpid(), signal.SIGKILL)
    return block @ x


@contextmanager
def faults_of(trouble: Trouble, count: int) -> Iterator[Callable[[], list[str]]]:
    """A function that gives the faults of all tasks of a new step."""
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "to be killed"

        def faults() -> list[str]:
            found = [""] * count
            if trouble == "asleep":
                for task in ASLEEP:
                    found[task] = "sleep"
            elif trouble == "killed":
                mark.touch()
                found[KILLED] = str(mark)
            return found

        yield faults


@contextmanager
def joblib(A: np.ndarray, x: np.ndarray, blocks: int, trouble: Trouble) -> Iterator[Step]:
    """All blocks on loky's processes, which map large blocks."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    parts = np.split(A, blocks)
    with faults_of(trouble, blocks) as faults, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Parallel(n_jobs=-1, timeout=DEADLINE) as parallel:  # keeps what it has mapped
            yield lambda: np.concatenate(
                parallel(delayed(product)(part, x, fault) for part, fault in zip(parts, faults()))
            )
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def dask(A: np.ndarray, x: np.ndarray, blocks: int, trouble: Trouble) -> Iterator[Step]:
    """All blocks held as futures by processes with one thread each, which read them from a file."""
    from distributed import Client, LocalCluster, wait

    def part(path: str, index: int) -> np.ndarray:
        return np.array(np.split(np.load(path, mmap_mode="r"), blocks)[index])

    def step() -> np.ndarray:
        futures = client.map(product, held, [x] * blocks, faults(), pure=False)
        wait(futures, timeout=DEADLINE)
        return np.concatenate(client.gather(futures))

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        faults_of(trouble, blocks) as faults,
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        np.save(f"{folder}/A.npy", A)
        held = client.map(part, [f"{folder}/A.npy"] * blocks, range(blocks))
        wait(held)
        yield step


@contextmanager
def ray(A: np.ndarray, x: np.ndarray, blocks: int, trouble: Trouble) -> Iterator[Step]:
    """An actor for each block, which is made again when it dies."""
    import ray

    class Holder:
        def __init__(self, block: np.ndarray) -> None:
            self.block = block

        def product(self, x: np.ndarray, fault: str) -> np.ndarray:
            return product(self.block, x, fault)

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Holder)
        parts = [ray.put(part) for part in np.split(A, blocks)]
        actors = [actor.remote(part) for part in parts]
        ray.get([one.product.remote(x, "") for one in actors])  # all have started
        with faults_of(trouble, blocks) as faults:
            yield lambda: np.concatenate(
                ray.get(
                    [one.product.remote(x, fault) for one, fault in zip(actors, faults())], timeout=DEADLINE
                )
            )
    finally:
        if is_ours:
            ray.shutdown()


def is_installed(name: str) -> bool:
    """Whether a rival can be imported."""
    return importlib.util.find_spec(name) is not None
