"""Workers join and vanish during a map: never a wrong answer, no work done again that was done."""

from __future__ import annotations

import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import assert_same, cut, process_pool

from polarmap import coded_map
from polarmap.errors import NotDecodableError
from polarmap.run.trusted import TRUSTED

N, K = 8, 6
DATA = np.random.default_rng(0).standard_normal((4 * K, 5))
BLOCKS = cut(DATA, K)
PATIENCE = 100.0


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    TRUSTED.clear()
    before = set(Path(tempfile.gettempdir()).glob("polarmap-*"))
    yield
    TRUSTED.clear()
    # What others left may vanish meanwhile.
    assert set(Path(tempfile.gettempdir()).glob("polarmap-*")) <= before


class ElasticPool(Executor):
    """One process for each worker; workers are added and killed while tasks run."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[Any] = queue.Queue()
        self._workers: list[tuple[ProcessPoolExecutor, threading.Thread]] = []
        self.lost = threading.Event()  # a worker, and its task was told so

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, partial(call, *arguments, **named)))
        return future

    def join(self) -> None:
        """One worker more."""
        process = process_pool(1)
        thread = threading.Thread(target=self._work, args=(process,))
        self._workers.append((process, thread))
        thread.start()

    def vanish(self, process: int) -> None:
        """The worker with this process dies in the middle of what it does."""
        os.kill(process, signal.SIGKILL)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for _ in self._workers:
            self._tasks.put(None)
        for process, thread in self._workers:
            thread.join()
            process.shutdown()

    def _work(self, process: ProcessPoolExecutor) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(process.submit(call).result())
            except Exception as error:
                future.set_exception(error)
                self.lost.set()
                return  # this worker is no more


def noted(folder: Path, block: np.ndarray) -> np.ndarray:
    """A copy, made when the folder says so; who makes it is written down."""
    name = f"{block[0, 0]}-{os.getpid()}"
    (folder / f"begun-{name}").touch()
    while not (folder / "open").exists():
        time.sleep(0.01)
    (folder / f"done-{name}").touch()
    return block.copy()


def found(folder: Path, kind: str, count: int) -> list[str]:
    """The names of so many notes, once there are that many."""
    while len(names := sorted(path.name for path in folder.glob(f"{kind}-*"))) < count:
        time.sleep(0.01)
    return names


def test_workers_that_vanish_and_join_during_a_map(tmp_path: Path) -> None:
    pool = ElasticPool()
    for _ in range(2):
        pool.join()

    def events() -> None:
        first = found(tmp_path, "begun", 2)
        for _ in range(3):
            pool.join()
        found(tmp_path, "begun", 5)
        pool.vanish(int(first[0].rpartition("-")[2]))
        pool.lost.wait(PATIENCE)
        (tmp_path / "open").touch()

    director = threading.Thread(target=events)
    director.start()
    options = {"blocks": K, "workers": N, "timeout": PATIENCE, "executor": pool}
    with pool:
        result = coded_map(partial(noted, tmp_path), DATA, **options)
        director.join()
    assert_same(result, BLOCKS, 1e-11)
    assert any("BrokenProcessPool" in text for task in result.report.tasks for text in task.failures)
    once = [name.split("-", 1)[1].rpartition("-")[0] for name in found(tmp_path, "done", K)]
    assert len(once) == len(set(once))  # nothing that was done has been done again


def test_a_pool_of_which_nothing_remains_is_one_clear_error(tmp_path: Path) -> None:
    pool = ElasticPool()
    pool.join()

    def events() -> None:
        [only] = found(tmp_path, "begun", 1)
        pool.vanish(int(only.rpartition("-")[2]))

    director = threading.Thread(target=events)
    director.start()
    options = {"blocks": K, "workers": N, "timeout": 5.0, "executor": pool}
    with pool, pytest.raises((NotDecodableError, TimeoutError), match="0 of 6 needed results"):
        coded_map(partial(noted, tmp_path), DATA, **options)
    director.join()
