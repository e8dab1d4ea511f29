"""Maps of several threads on the workers of one pool."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_processes import PATIENCE, A, check, descendants, folders, leave_out_others, runs, until

import polarmap
from polarmap import Pool
from polarmap.errors import ExecutorError


def test_each_thread_gets_the_results_of_its_data_even_if_one_raises() -> None:
    def fail(block: Any) -> Any:
        raise ZeroDivisionError("so it goes")

    def maps(thread: int) -> None:
        stream = np.random.default_rng(thread)
        for _ in range(8):
            if thread == 1:
                with pytest.raises(ZeroDivisionError, match="so it goes"):
                    polarmap.coded_map(fail, A, blocks=6, tasks=8, executor=pool)
            else:
                check(pool, None, stream.standard_normal(A.shape), thread + 1.0)

    with Pool() as pool, ThreadPoolExecutor(8) as threads:
        list(threads.map(maps, range(8)))
        check(pool)


@pytest.mark.parametrize("ended", ["Pool.close", "shutdown"])
def test_map_whose_workers_another_thread_stops_raises_a_clear_error(ended: str, tmp_path: Path) -> None:
    def begin(block: Any) -> Any:
        (tmp_path / "begun").touch()
        threading.Event().wait(600)

    leave_out_others()
    with Pool() as own:
        pool, end = (own, own.close) if ended == "Pool.close" else (None, polarmap.shutdown)
        check(pool)
        before, threads = set(folders()), threading.active_count()
        with ThreadPoolExecutor(1) as other:
            running = other.submit(polarmap.coded_map, begin, A, blocks=6, tasks=8, executor=pool)
            assert until((tmp_path / "begun").exists)
            workers = descendants()
            end()
            with pytest.raises(ExecutorError, match=r"ended the workers while a map was running on them"):
                running.result(PATIENCE)
        assert not [process for process in workers if runs(process)]
        assert not before & set(folders())
        assert until(lambda: threading.active_count() < threads)
        if pool is None:
            check(pool)
            polarmap.shutdown()


def test_map_whose_tasks_hang_does_not_block_other_maps(tmp_path: Path) -> None:
    def hang(number: int) -> None:
        (tmp_path / str(number)).touch()
        threading.Event().wait(600)

    with Pool() as pool:
        hung = polarmap.submit(polarmap.hedged_map, hang, range(40), executor=pool)
        assert until(lambda: len(list(tmp_path.iterdir())) >= 2, PATIENCE)
        check(pool)
        assert hung.cancel()
