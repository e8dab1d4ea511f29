"""Placement of workers and tasks, which are spread evenly over machines."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_processes import A, X, check, opened, taken, until
from worker_sites import MachineSite, pool_of

import polarmap
from polarmap.executors import remote_workers
from polarmap.executors.remote_workers import RemoteWorkerPool
from polarmap.executors.worker_placement import (
    can_spare_worker,
    choose_machines,
    choose_worker_for_task,
    compute_max_per_machine,
    find_underfull_machines,
)
from polarmap.executors.worker_pool import WorkerHandle

MACHINES = st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True)
COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 20))


def is_even(counts: Counter[str], machines: list[str]) -> bool:
    """Return whether no machine has more than its share, computed independently of the package."""
    total = sum(counts[machine] for machine in machines)
    return all(counts[machine] * len(machines) < total + len(machines) for machine in machines)


@given(MACHINES, st.integers(0, 50))
def test_workers_of_a_fresh_pool_are_spread_evenly(machines: list[str], count: int) -> None:
    counts = Counter(choose_machines(count, machines, {}))
    assert counts.total() == count
    assert is_even(counts, machines)


@given(MACHINES, COUNTS, st.integers(0, 30))
def test_new_workers_do_not_start_on_the_fullest_machines(
    machines: list[str], given_counts: dict[str, int], count: int
) -> None:
    counts = Counter(given_counts)
    for machine in choose_machines(count, machines, counts):
        assert counts[machine] == min(counts[other] for other in machines)
        counts[machine] += 1


@given(MACHINES, COUNTS)
def test_moving_workers_makes_the_spread_even(machines: list[str], given_counts: dict[str, int]) -> None:
    # Each stopped worker is replaced. The workers to stop are chosen from the fullest machines.
    counts = Counter({machine: given_counts.get(machine, 0) for machine in machines})
    total, was_even = counts.total(), is_even(counts, machines)
    extra = find_underfull_machines(machines, counts)
    assert bool(extra) != was_even
    counts.update(extra)
    for _ in extra:
        may_go = [machine for machine in machines if can_spare_worker(machine, machines, counts)]
        counts[max(may_go, key=lambda machine: counts[machine])] -= 1
    assert counts.total() == total
    assert is_even(counts, machines)


def test_worker_of_an_unlisted_machine_can_be_spared() -> None:
    assert can_spare_worker("gone", ["a", "b"], {"a": 9, "gone": 1})


def test_no_machine_is_chosen_without_machines() -> None:
    assert choose_machines(3, [], {}) == []
    assert compute_max_per_machine(3, 0) == 3


@given(st.data())
def test_no_machine_exceeds_its_share_while_another_is_idle(data: Any) -> None:
    # Workers become free in any order, and have cached the blocks of any tasks.
    hosts = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
    n = data.draw(st.integers(1, 24))
    workers = [WorkerHandle(number, Mock(), machine=host) for number, host in enumerate(hosts)]
    for worker in workers:
        worker.pid = data.draw(st.sampled_from([None, 1]))
        worker.cached_tasks = dict.fromkeys(data.draw(st.sets(st.integers(0, n - 1))))
    free, waiting, n_tasks = list(workers), set(range(n)), Counter[str]()
    share = -(-n // len(set(hosts)))
    while waiting:
        busy = [worker for worker in workers if worker not in free]
        if busy and (not free or data.draw(st.booleans())):
            free.append(data.draw(st.sampled_from(busy)))
            continue
        chosen = choose_worker_for_task(free, waiting, n_tasks, share)
        assert chosen is not None
        below = [worker for worker in free if n_tasks[worker.machine] < share]
        if below:
            assert chosen in below
            with_blocks = [worker for worker in below if worker.cached_tasks.keys() & waiting]
            assert not with_blocks or chosen in with_blocks
        free.remove(chosen)
        waiting.discard(next(iter(chosen.cached_tasks.keys() & waiting), min(waiting)))
        n_tasks[chosen.machine] += 1


def test_free_workers_without_blocks_are_taken_from_the_machine_with_the_fewest_tasks() -> None:
    workers = [WorkerHandle(number, Mock(), machine="aaab"[number]) for number in range(4)]
    n_tasks = Counter[str]()
    taken = []
    while (chosen := choose_worker_for_task(workers, (), n_tasks, 3)) is not None:
        workers.remove(chosen)
        n_tasks[chosen.machine] += 1
        taken.append(chosen.machine)
    assert taken == ["a", "b", "a", "a"]


# --- pools -----------------------------------------------------------------------------------------


@pytest.fixture
def site() -> MachineSite:
    return MachineSite("a", "b", "c", "d")


@pytest.fixture
def workers(site: MachineSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteWorkerPool]:
    monkeypatch.setattr(remote_workers, "MIN_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(remote_workers, "MACHINE_PROBE_INTERVAL", 0.05)
    with closing(RemoteWorkerPool(site, None, True, 10**6, 1)) as pool:
        yield pool


def spread(workers: RemoteWorkerPool) -> Counter[str]:
    """Return the number of workers on each machine, as reported by the workers."""
    return Counter(worker.machine for worker in list(workers._workers.values()) if worker.pid is not None)


def settles(workers: RemoteWorkerPool, expected: dict[str, int]) -> bool:
    """Return whether `maintain_workers` soon spreads the workers as expected."""

    def is_so() -> bool:
        workers.maintain_workers()
        return spread(workers) == expected

    return until(is_so, 10.0)


def test_a_fresh_pool_is_spread_evenly(workers: RemoteWorkerPool) -> None:
    workers.request_workers(10)
    assert settles(workers, {"a": 3, "b": 3, "c": 2, "d": 2})
    assert sum(workers.count_workers_by_host().values()) == 10
    assert len(workers.count_workers_by_host()) == 4


def test_workers_move_to_a_machine_that_returns(workers: RemoteWorkerPool, site: MachineSite) -> None:
    workers.request_workers(32)
    assert settles(workers, dict.fromkeys("abcd", 8))
    site.lose("d")
    assert settles(workers, {"a": 11, "b": 11, "c": 10})
    # At most one worker at a time is placed on "d", to check whether the machine is reachable again.
    assert all(machines.count("d") < 2 for machines in site.placements[1:])
    site.reachable.add("d")
    assert settles(workers, dict.fromkeys("abcd", 8))


def test_unlisted_machine_gets_no_workers_until_it_is_listed_again(
    workers: RemoteWorkerPool, site: MachineSite
) -> None:
    workers.request_workers(8)
    assert settles(workers, dict.fromkeys("abcd", 2))
    site.known.remove("d")
    site.lose("d")
    assert settles(workers, {"a": 3, "b": 3, "c": 2})
    site.known.append("d")
    site.reachable.add("d")
    assert settles(workers, dict.fromkeys("abcd", 2))


@pytest.mark.parametrize("site", [MachineSite("a", "b", "c")])
def test_busy_workers_are_not_moved(workers: RemoteWorkerPool, site: MachineSite) -> None:
    workers.request_workers(12)
    assert settles(workers, dict.fromkeys("abc", 4))
    lease = opened(workers)
    busy = [taken(workers, lease) for _ in range(12)]
    for number, worker in enumerate(busy):
        worker.assign_task((0, number, 0), number)
    site.known.append("d")
    site.reachable.add("d")
    assert settles(workers, {"a": 4, "b": 4, "c": 4, "d": 3})  # the new workers on d are free and stay
    assert all(worker in workers._workers.values() for worker in busy)
    for worker in busy:
        workers.release_worker(worker)
    assert settles(workers, dict.fromkeys("abcd", 3))
    workers.close_allocation(lease)


def test_workers_without_a_machine_are_not_moved(site: MachineSite) -> None:
    site.known.clear()
    with closing(RemoteWorkerPool(site, None, True, 10**6, 1)) as workers:
        workers.request_workers(5)
        assert until(lambda: len(workers) == 5)
        for _ in range(3):
            workers.maintain_workers()
        assert site.launches == [[0, 1, 2, 3, 4]]
        assert site.placed == {}


def test_engine_chooses_if_no_machine_is_reachable(workers: RemoteWorkerPool, site: MachineSite) -> None:
    site.reachable.clear()
    workers.request_workers(3)
    assert until(lambda: (workers.maintain_workers(), len(workers) == 3)[1])
    assert set(site.withdrawn) >= {0, 1, 2}


def test_report_names_machines_and_warns_of_too_many_tasks_on_one(
    site: MachineSite, caplog: pytest.LogCaptureFixture
) -> None:
    del site.known[2:]
    with pool_of(site, workers=8) as pool:
        with polarmap.CodedOperator(A, blocks=6, tasks=8, executor=pool) as operator:
            for _ in range(3):
                np.testing.assert_allclose(operator @ X, A @ X)
        reports = [check(pool).report for _ in range(2)]
    host = socket.gethostname()
    for report in reports:
        hosts = Counter(task.host for task in report.tasks)
        assert hosts == {f"{host} (a)": 4, f"{host} (b)": 4}
        assert report.workers_by_host == {f"{host} (a)": 4, f"{host} (b)": 4}
        assert "8 workers run on 2 machines" in str(report)
        assert "one machine runs 4 of 8 tasks; only 2 may be missing" in str(report)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == len(set(warnings)) <= 2  # at most one warning per machine
