"""Maps of many small items: the cost grows linearly, and data shared by all items is sent only once."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from pool_processes import leave_out_others

import polarmap
from polarmap import Executor, Pool
from polarmap.driver.batch_policy import BatchPolicy
from polarmap.errors import WorkerLostError
from polarmap.testing import Fault, FaultyExecutor

PATIENCE = 60.0


def identity(item: Any) -> Any:
    return item


def by_executor(pool: Pool, count: int) -> list[int]:
    with Executor(pool) as executor:
        return list(executor.map(identity, range(count)))


def by_hedged_map(pool: Pool, count: int) -> list[int]:
    return list(polarmap.hedged_map(identity, range(count), executor=pool, progress=False))


def by_coded_map(pool: Pool, count: int, **options: Any) -> list[float]:
    data = np.arange(float(count))
    return list(polarmap.coded_map(identity, data, blocks=count, executor=pool, progress=False, **options))


MAPS: dict[str, Callable[[Pool, int], Any]] = {
    "hedged_map": by_hedged_map,
    "Executor.map": by_executor,
    "coded_map": by_coded_map,
    "coded_map, on demand": partial(by_coded_map, schedule="on_demand"),
}


def calls_of(run: Callable[[], Any]) -> int:
    """Return the number of function calls on all threads of this process while `run()` runs."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count


@pytest.mark.parametrize("name", MAPS)
def test_twice_as_many_items_take_twice_as_many_calls(name: str) -> None:
    leave_out_others()
    run = MAPS[name]
    with Pool() as pool:
        # The first map also warms up caches. In a coded map, some tasks may be late and their blocks decoded.
        np.testing.assert_allclose(np.ravel(run(pool, 500)), np.arange(500), atol=1e-9)
        few = min(calls_of(lambda: run(pool, 500)) for _ in range(2))
        # Four times as many items leave a margin. On a busy machine, results arrive one by one, so that an
        # item takes more calls. This does not happen in each of several runs.
        assert any(calls_of(lambda: run(pool, 2000)) < 5 * few for _ in range(5))


def test_arrays_of_a_function_are_read_once_by_each_worker() -> None:
    # Each worker unpickles f once per map. The arrays of f are in one file, which all workers memory-map.
    large = np.random.default_rng(0).standard_normal((100, 8000))

    class Counted:
        """A part of f that counts in `builtins` how often it is unpickled in each process."""

        def __init__(self) -> None:
            self.array = large

        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)
            sys.modules["builtins"].__dict__.setdefault("times_unpickled", []).append(1)

    counted = Counted()

    def count(item: int) -> tuple[int, bool, float]:
        times = len(sys.modules["builtins"].__dict__["times_unpickled"])
        with open("/proc/self/maps") as maps:
            is_mapped = any("/function" in line for line in maps)
        counted.array[0, 0] += 1  # each worker has a private copy-on-write mapping
        return times, is_mapped, float(counted.array[1:].sum())

    leave_out_others()
    with Pool(workers=2) as pool:
        results = list(polarmap.hedged_map(count, range(20), executor=pool, timeout=PATIENCE))
    assert {times for times, _, _ in results} == {1}
    assert all(is_mapped for _, is_mapped, _ in results)
    assert {total for _, _, total in results} == {float(large[1:].sum())}
    assert large[0, 0] == np.random.default_rng(0).standard_normal()


def test_all_workers_start_a_task_immediately(tmp_path: Any) -> None:
    # Each of the 24 tasks waits until all of them have started.

    def begin(task: int) -> int:
        (tmp_path / str(task)).touch()
        until = time.monotonic() + PATIENCE
        while len(list(tmp_path.iterdir())) < 24 and time.monotonic() < until:
            sum(range(20_000))  # keep a core busy
        return len(list(tmp_path.iterdir()))

    leave_out_others()
    with Executor(workers=24, backups=0) as executor:
        results = list(executor.map(begin, range(24)))
    assert results == [24] * 24


def test_item_that_kills_its_worker_fails_no_other_item() -> None:
    # Short items are sent to a worker in batches. The items of a lost batch are restarted one by one.

    def f(item: int) -> int:
        if item == 700:
            os._exit(1)
        return -item

    leave_out_others()
    with Pool(workers=2) as pool:
        options: dict[str, Any] = {"executor": pool, "timeout": PATIENCE}
        results = polarmap.hedged_map(f, range(1000), return_exceptions=True, **options)
    assert isinstance(results[700], WorkerLostError)
    assert [r for r in results if r is not results[700]] == [-item for item in range(1000) if item != 700]
    assert results.report.tasks[700].attempts >= 2


@pytest.mark.parametrize("name", ["hedged_map", "Executor.map"])
@pytest.mark.parametrize("kind", ["kill", "exit", "raise"])
def test_faults_strike_items_while_short_ones_are_batched(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = dict[int, int]()  # the size of the first batch of each item
    next_batch = BatchPolicy._pop_next_batch

    def noted(batches: BatchPolicy, tasks: Any) -> Any:
        batch = next_batch(batches, tasks)
        for number in batch[1] if batch else ():
            sizes.setdefault(number, len(batch[1]))
        return batch

    monkeypatch.setattr(BatchPolicy, "_pop_next_batch", noted)
    leave_out_others()
    with Pool(workers=2) as pool:
        faulty = FaultyExecutor(pool, {700: Fault(kind)})
        if name == "hedged_map":
            result = polarmap.hedged_map(identity, range(1000), executor=faulty, timeout=PATIENCE)
            assert list(result) == list(range(1000))
            assert result.report.tasks[700].attempts >= 2
        else:
            with Executor(faulty) as executor:
                results = executor.map(identity, range(1000), timeout=PATIENCE)
                if kind == "raise":  # counts as an exception of f, and only lost calls are restarted
                    assert [next(results) for _ in range(700)] == list(range(700))
                    with pytest.raises(RuntimeError, match="injected fault"):
                        next(results)
                else:
                    assert list(results) == list(range(1000))
    assert (sizes[700] == 1) == (kind == "raise")
    assert max(sizes.values()) > 1


@pytest.mark.parametrize("name", ["hedged_map", "Executor.map"])
def test_item_uses_retries_only_for_its_own_losses(name: str, tmp_path: Any) -> None:
    # Several items of one batch kill their worker, but only item 705 does so every time. Only this item may
    # fail, and it may kill few workers.
    doomed, n_deaths = 705, {700: 1, 701: 1, 703: 1, 705: 99}

    def f(item: int) -> int:
        if item in n_deaths:
            with open(tmp_path / str(item), "a") as log:
                log.write(".")
            if len((tmp_path / str(item)).read_text()) <= n_deaths[item]:
                os._exit(1)
        return -item

    leave_out_others()
    results = list[Any]()
    with Pool(workers=2) as pool:
        if name == "hedged_map":
            options: dict[str, Any] = {"executor": pool, "timeout": PATIENCE, "return_exceptions": True}
            results = list(polarmap.hedged_map(f, range(1000), **options))
            assert isinstance(results.pop(doomed), WorkerLostError)
        else:
            with Executor(pool) as executor, pytest.raises(WorkerLostError):
                results.extend(executor.map(f, range(1000), timeout=PATIENCE))
    assert results == [-item for item in range(1000) if item != doomed][: len(results)]
    assert len(results) == (999 if name == "hedged_map" else doomed)
    retries, workers_lost = 1, {item: len((tmp_path / str(item)).read_text()) for item in n_deaths}
    assert retries + 1 <= workers_lost[doomed] <= retries + 2


def test_exception_of_f_on_one_of_many_items_names_the_item() -> None:
    def f(item: int) -> int:
        if item == 700:
            raise LookupError("no such item")
        return -item

    leave_out_others()
    with Pool(workers=2) as pool:
        options: dict[str, Any] = {"executor": pool, "timeout": PATIENCE}
        with pytest.raises(LookupError, match="no such item") as caught:
            polarmap.hedged_map(f, range(1000), **options)
        results = polarmap.hedged_map(f, range(1000), return_exceptions=True, **options)
        with Executor(pool) as executor, pytest.raises(LookupError, match="no such item"):
            list(executor.map(f, range(1000)))
    assert caught.value.__notes__ == results[700].__notes__ == ["item 700 of 1000 raised this"]
    assert results.report.tasks_in_state("failed") == [700]
    assert [task.attempts for task in results.report.tasks] == [1 + (item == 700) for item in range(1000)]


@pytest.mark.parametrize("name", ["hedged_map", "Executor.map"])
def test_item_that_hangs_does_not_delay_other_items(name: str, tmp_path: Any) -> None:
    def f(item: int) -> int:
        if item == 500 and not (tmp_path / "began").exists():
            (tmp_path / "began").touch()
            threading.Event().wait(10 * PATIENCE)
        return -item

    leave_out_others()
    with Pool(workers=2) as pool:
        if name == "hedged_map":
            results = list(polarmap.hedged_map(f, range(1000), executor=pool, timeout=PATIENCE))
        else:
            with Executor(pool) as executor:
                results = list(executor.map(f, range(1000), timeout=PATIENCE))
    assert results == [-item for item in range(1000)]
