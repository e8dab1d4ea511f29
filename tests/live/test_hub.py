"""The hub: running and finished maps, fits and workers, and the time that snapshots may take."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
from pool_processes import until

import polarmap
from benchmarks import count_python_calls
from polarmap import Pool, glm
from polarmap.live import activation, hub
from polarmap.live.hub import MAX_FINISHED, LiveHub
from polarmap.live.pace import MAX_TIME_SHARE
from polarmap.live.snapshots import RATE_WINDOW_SECONDS, MapSnapshot
from polarmap.testing import ReplayExecutor

A = np.random.default_rng(0).standard_normal((60, 5))


@pytest.fixture
def visible() -> Any:
    """Make this program visible, and return its hub."""
    live_hub = activation.activate()
    yield live_hub
    activation.deactivate()
    assert activation.active_hub is None


def get_maps(live_hub: LiveHub) -> tuple[MapSnapshot, ...]:
    return live_hub.take_snapshot(is_final=True).maps


def test_maps_of_a_visible_program_are_listed(visible: LiveHub) -> None:
    def double(block: Any) -> Any:
        return 2 * block

    polarmap.coded_map(double, A, blocks=4, tasks=6, executor=ReplayExecutor())
    polarmap.hedged_map(abs, [1, 2], executor=ReplayExecutor())
    snapshot = visible.take_snapshot(is_final=True)
    assert [live_map.name for live_map in snapshot.maps] == [double.__qualname__, "abs"]
    first, second = snapshot.maps
    assert second.map_id == first.map_id + 1 and snapshot.n_finished_maps == 2
    assert snapshot.pid == os.getpid() and all(not live_map.is_running for live_map in snapshot.maps)
    assert snapshot.results_per_second > 0


def test_running_map_is_shown_with_its_workers(visible: LiveHub, tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "gate")

    def wait_at_gate(block: Any) -> Any:
        if block[0, 0] == A[0, 0]:
            open(tmp_path / "gate").close()  # blocks until the test opens the other end
        return block

    with Pool(workers=2) as pool:
        future = polarmap.submit(polarmap.hedged_map, wait_at_gate, [A, A + 1], executor=pool, backups=0)
        future.blocks[1].result(60.0)
        # The map polls its workers four times a second to learn which tasks have started.
        assert until(lambda: get_maps(visible)[0].states.lower() == "ra")
        [live_map] = get_maps(visible)
        assert live_map.is_running and live_map.n_arrived == 1
        assert live_map.cost_dollars is None and live_map.sufficed_at is None
        workers = [
            worker for worker in visible.take_snapshot(is_final=True).workers if worker.state == "working"
        ]
        assert [worker.task for worker in workers] == [0] and workers[0].pid not in (None, os.getpid())
        assert workers[0].job == f"map {live_map.map_id}"
        if os.path.exists("/proc/self/stat"):
            assert (workers[0].memory_bytes or 0) > 1 << 20 and workers[0].cpu_seconds is not None
        open(tmp_path / "gate", "w").close()
        future.result(60.0)
    [live_map] = get_maps(visible)
    assert live_map.states.lower() == "aa" and not live_map.is_running


def test_failed_map_is_listed_with_its_error(visible: LiveHub) -> None:
    def fail(block: Any) -> Any:
        raise ValueError("no such column")

    with pytest.raises(ValueError, match="no such column"):
        polarmap.coded_map(fail, A, blocks=4, tasks=6, executor=ReplayExecutor())
    [live_map] = get_maps(visible)
    assert "no such column" in live_map.error and "no such column" in live_map.failures[-1].message


def test_results_of_a_failed_map_count_in_the_throughput(visible: LiveHub) -> None:
    def fail_on_last(item: int) -> int:
        return 1 // (9 - item)

    with pytest.raises(ZeroDivisionError):
        polarmap.hedged_map(fail_on_last, range(10), executor=ReplayExecutor({9: 2.0}), retries=0)
    [live_map] = get_maps(visible)
    assert live_map.n_arrived == 9 and live_map.states.lower() == "a" * 9 + "f"
    rate = visible.take_snapshot(is_final=True).results_per_second
    assert rate == pytest.approx(9 / RATE_WINDOW_SECONDS, abs=0.05)


def test_workers_of_concurrent_maps_are_told_apart(visible: LiveHub, tmp_path: Any) -> None:
    def wait_for_file(name: str) -> str:
        while not (tmp_path / name).exists():
            time.sleep(0.01)
        return name

    with Pool(workers=2) as pool:
        futures = [
            polarmap.submit(polarmap.hedged_map, wait_for_file, [name], executor=pool, backups=0)
            for name in ("one", "two")
        ]

        def list_jobs() -> set[str]:
            return {worker.job for worker in visible.take_snapshot(is_final=True).workers}

        assert until(lambda: len(get_maps(visible)) == 2)
        names = {f"map {live_map.map_id}" for live_map in get_maps(visible)}
        assert until(lambda: names <= list_jobs())
        for name in ("one", "two"):
            (tmp_path / name).touch()
        for future in futures:
            future.result(60.0)
        assert until(lambda: not names & list_jobs())


def test_calls_of_an_executor_are_counted(tmp_path: Any) -> None:
    def wait_for_file(number: int) -> int:
        while not (tmp_path / "gate").exists():
            time.sleep(0.01)
        return number

    def get_counts(live_hub: LiveHub) -> tuple[int, ...]:
        [calls] = [one for one in live_hub.take_snapshot(is_final=True).executors if one.name == name]
        return calls.n_calls, calls.n_done, calls.n_running, calls.n_failed

    with polarmap.Executor(workers=2, backups=0) as executor:
        name = f"Executor {executor._call_queue.queue_id}"
        assert list(executor.map(abs, range(20))) == list(range(20))  # The program is not visible yet.
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
        live_hub = activation.activate()
        try:
            assert get_counts(live_hub) == (21, 21, 0, 1)
            futures = [executor.submit(wait_for_file, number) for number in range(5)]
            assert until(lambda: get_counts(live_hub) == (26, 21, 2, 1))
            workers = live_hub.take_snapshot(is_final=True).workers
            assert sum(worker.job == name for worker in workers) == 2
            assert futures[4].cancel()
            (tmp_path / "gate").touch()
            assert [future.result() for future in futures[:4]] == [0, 1, 2, 3]
            assert until(lambda: get_counts(live_hub) == (25, 25, 0, 1))
        finally:
            activation.deactivate()


def test_only_the_latest_maps_are_kept(visible: LiveHub) -> None:
    for _ in range(MAX_FINISHED + 3):
        polarmap.hedged_map(abs, [1], executor=ReplayExecutor())
    map_ids = [live_map.map_id for live_map in get_maps(visible)]
    assert map_ids == list(range(map_ids[0], map_ids[0] + MAX_FINISHED))
    [later] = polarmap.hedged_map(abs, [1], executor=ReplayExecutor()) and get_maps(visible)[-1:]
    assert later.map_id == map_ids[-1] + 1
    assert visible.take_snapshot(is_final=True).n_finished_maps == MAX_FINISHED + 4


def test_fit_is_shown_with_its_steps(visible: LiveHub) -> None:
    model = glm.LogisticRegression(executor=ReplayExecutor()).fit(A, A[:, 0] > 0)
    [iteration] = visible.take_snapshot(is_final=True).iterations
    assert iteration.name == "LogisticRegression" and iteration.n_steps == model.n_iter_
    assert iteration.objective == pytest.approx(model.objective_) and not iteration.is_running
    assert iteration.n_products > 0 and iteration.seconds_per_step is not None


def test_hub_does_not_keep_the_operator_of_a_fit_alive() -> None:
    class Operator:
        n_products = 3

    live_hub, operator = LiveHub(), Operator()
    iteration = live_hub.start_iteration("Ridge", lambda operator=operator: operator.n_products)  # type: ignore[misc]
    reference = weakref.ref(operator)
    live_hub.finish_iteration(iteration)
    del operator
    gc.collect()
    assert reference() is None and live_hub.take_snapshot().iterations[0].n_products == 3


def test_invisible_program_records_nothing() -> None:
    assert activation.active_hub is None
    polarmap.hedged_map(abs, [1], executor=ReplayExecutor())
    live_hub = activation.activate()
    try:
        assert live_hub.take_snapshot().maps == ()
    finally:
        activation.deactivate()


def test_viewers_share_snapshots_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(hub.time, "monotonic", lambda: now)
    live_hub, n_reports = LiveHub(), 0

    def get_report() -> None:
        nonlocal now, n_reports
        now, n_reports = now + 1.0, n_reports + 1  # Each snapshot takes one second.

    live_hub.start_map(1, "f", get_report)
    for _ in range(round(1 / MAX_TIME_SHARE) - 1):
        live_hub.take_snapshot()
        now += 1.0
    assert n_reports == 1
    now += 2.0
    live_hub.take_snapshot()
    assert n_reports == 2


def test_slow_snapshot_does_not_block_other_viewers_or_maps() -> None:
    live_hub = LiveHub()
    is_building, may_finish = threading.Event(), threading.Event()
    first = live_hub.take_snapshot(is_final=True)

    def get_report() -> None:
        is_building.set()
        may_finish.wait(60.0)

    live_map = live_hub.start_map(1, "f", get_report)
    thread = threading.Thread(target=live_hub.take_snapshot, kwargs={"is_final": True})
    thread.start()
    assert is_building.wait(60.0)
    assert live_hub.take_snapshot() == first  # The previous snapshot is returned at once.
    live_hub.finish_map(live_map, None, 0)
    may_finish.set()
    thread.join(60.0)
    assert not thread.is_alive()


def test_forked_child_is_invisible(visible: LiveHub) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0 if activation.active_hub is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert activation.active_hub is visible


def test_visible_map_makes_few_more_calls_than_an_invisible_one() -> None:
    def run_map() -> None:
        polarmap.coded_map(np.sum, A, blocks=6, tasks=8, executor=executor, progress=False)

    # The tasks end before the first of the polls, of which there are four a second.
    executor = ReplayExecutor(dict.fromkeys(range(8), 0.1))
    run_map()
    n_invisible = count_python_calls(run_map)
    activation.activate()
    try:
        run_map()
        n_visible = count_python_calls(run_map)
    finally:
        activation.deactivate()
    assert n_visible < n_invisible + 60
