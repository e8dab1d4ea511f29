"""Maps of several threads on the workers of one pool."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import ends
from pool_processes import PATIENCE, A, check, descendants, folders, leave_out_others, runs, until

import polarmap
from polarmap import Pool
from polarmap.blocks.uneven import PartBlocks
from polarmap.errors import ExecutorError
from polarmap.executors.base import Payload, Run


@pytest.mark.parametrize("count", [2, 8])
def test_each_thread_gets_the_results_of_its_own_data_though_one_raises(count: int) -> None:
    def fail(block: Any) -> Any:
        raise ZeroDivisionError("so it goes")

    def maps(thread: int) -> None:
        stream = np.random.default_rng(thread)
        for _ in range(8):
            if thread == 1:
                with pytest.raises(ZeroDivisionError, match="so it goes"):
                    polarmap.coded_map(fail, A, blocks=6, workers=8, executor=pool)
            else:
                check(pool, None, stream.standard_normal(A.shape), thread + 1.0)

    with Pool() as pool, ThreadPoolExecutor(count) as threads:
        list(threads.map(maps, range(count)))
        check(pool)


@pytest.mark.parametrize("ended", ["Pool.close", "shutdown"])
def test_a_map_whose_workers_another_thread_ends_says_so(ended: str, tmp_path: Path) -> None:
    def begin(block: Any) -> Any:
        (tmp_path / "begun").touch()
        threading.Event().wait(600)

    leave_out_others()
    with Pool() as own:
        pool, end = (own, own.close) if ended == "Pool.close" else (None, polarmap.shutdown)
        check(pool)
        before, threads = set(folders()), threading.active_count()
        with ThreadPoolExecutor(1) as other:
            running = other.submit(polarmap.coded_map, begin, A, blocks=6, workers=8, executor=pool)
            assert until((tmp_path / "begun").exists)
            workers = descendants()
            end()
            with pytest.raises(ExecutorError, match=r"ended while a map ran on them"):
                running.result(PATIENCE)
        assert not [process for process in workers if runs(process)]
        assert not before & set(folders())
        assert until(lambda: threading.active_count() < threads)
        if pool is None:
            check(pool)
            polarmap.shutdown()


# --- what they have of its slots ---------------------------------------------------------------------


class Gates:
    """Tasks that say when they begin, and end when they are let go: files, which workers here see.

    A task is called by the name of its map and its number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def f(self, name: str) -> Callable[[Any], Any]:
        folder = self.folder

        def task(block: Any) -> Any:
            path = folder / f"{name}-{int(block)}"
            path.touch()
            while not path.with_suffix(".open").exists():
                time.sleep(0.002)
            return block

        return task

    def begun(self) -> Counter[str]:
        """How many tasks of each map have begun and have not been let go."""
        names = {path.name for path in self.folder.iterdir()}
        shut = [name for name in names if not name.endswith(".open") and f"{name}.open" not in names]
        return Counter(name.partition("-")[0] for name in shut)

    def let_go(self, name: str) -> None:
        """One task of this map, the one that began first."""
        paths = [path for path in self.folder.glob(f"{name}-*") if not path.suffix]
        shut = [path for path in paths if not path.with_suffix(".open").exists()]
        min(shut, key=lambda path: path.stat().st_mtime).with_suffix(".open").touch()

    def let_all_go(self, name: str, tasks: int) -> None:
        for task in range(tasks):
            (self.folder / f"{name}-{task}.open").touch()


def numbers(count: int) -> PartBlocks:
    return PartBlocks([[np.float64(number)] for number in range(count)], ("array",))


def drive(run: Run, count: int) -> list[int]:
    """The tasks of a run in the order in which they end."""
    ended: list[int] = []
    with closing(run):
        run.submit([(task, 0) for task in range(count)])
        while len(ended) < count:
            for one in ends(run.wait(PATIENCE)):
                assert one.failure is None, one
                ended.append(one.task)
    return ended


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


@contextmanager
def gated(
    pool: Pool, gates: Gates, tasks: Mapping[str, int], threads: ThreadPoolExecutor
) -> Iterator[dict[str, Future[list[int]]]]:
    """Maps that are begun one after the other, each when it waits; all are let go at the end."""
    try:
        yield {
            name: threads.submit(drive, pool.open(Payload(gates.f(name), numbers(count))), count)
            for name, count in tasks.items()
        }
    finally:
        for name, count in tasks.items():
            gates.let_all_go(name, count)


def test_two_maps_on_two_workers_have_one_each_and_a_small_one_ends_long_before_them(gates: Gates) -> None:
    tasks = {"first": 12, "second": 12}
    with (
        Pool(workers=2) as pool,
        ThreadPoolExecutor(3) as threads,
        gated(pool, gates, tasks, threads) as maps,
    ):
        assert until(lambda: gates.begun().total() == 2)
        gates.let_go(gates.begun().most_common(1)[0][0])
        for _ in range(5):
            assert until(lambda: gates.begun() == {"first": 1, "second": 1}, PATIENCE)
            gates.let_go("first")
            assert until(lambda: gates.begun() == {"first": 1, "second": 1}, PATIENCE)
            gates.let_go("second")
        small = threads.submit(drive, pool.open(Payload(lambda block: block, numbers(2))), 2)
        for name in ("first", "second"):
            assert until(lambda: gates.begun() == {"first": 1, "second": 1}, PATIENCE)
            gates.let_go(name)
        assert sorted(small.result(PATIENCE)) == [0, 1]
        assert not any(one.done() for one in maps.values())
    for one in maps.values():
        assert sorted(one.result(PATIENCE)) == list(range(12))


def test_a_map_whose_tasks_hang_keeps_no_other_from_going_on(gates: Gates) -> None:
    with (
        Pool() as pool,
        ThreadPoolExecutor(2) as threads,
        gated(pool, gates, {"hung": 40}, threads),
    ):
        assert until(lambda: gates.begun()["hung"] >= 2, PATIENCE)
        check(pool)


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_slots_of_tasks_that_do_not_come_to_their_end_are_free(gates: Gates, ending: str) -> None:
    with (
        Pool(workers=2) as pool,
        ThreadPoolExecutor(1) as threads,
        closing(pool.open(Payload(gates.f("first"), numbers(9)))) as run,
    ):
        run.submit([(task, 0) for task in range(9)])
        assert until(lambda: gates.begun() == {"first": 2})
        assert ends(run.wait(0.1)) == []
        with gated(pool, gates, {"second": 2}, threads):
            if ending == "closed":
                run.close()
            for worker in list(run._lease.workers.values()) if ending == "killed" else ():
                assert worker.process
                os.kill(worker.process, signal.SIGKILL)
                assert until(lambda: any(one.failure for one in ends(run.wait(0.1))))
            assert until(lambda: gates.begun()["second"] > 0, PATIENCE)
