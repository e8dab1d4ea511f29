"""Short tasks go to workers together, and each has its own end, whatever becomes of the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

from polarmap import Pool
from polarmap.blocks.uneven import PartBlocks
from polarmap.executors.base import Attempt, Began, Event, Outcome, Payload
from polarmap.executors.replay import ReplayRun
from polarmap.run.batches import BATCH_SECONDS, LATE_SECONDS, MOST_BATCHES, BatchedRun, InBatches
from polarmap.testing import Fault, ReplayExecutor
from polarmap.worker.block_functions import any_call
from polarmap.worker.pytree import Array, from_block, to_block


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarmap.run.batches.available_cores", lambda: 1)


class Items(PartBlocks):
    """Numbers, of which nobody wants some any more."""

    def __init__(self, count: int) -> None:
        super().__init__([[to_block(number)] for number in range(count)], ("array",))
        self.unwanted: set[int] = set()

    def leaves(self, index: int) -> list[Array]:
        if index in self.unwanted:
            raise CancelledError
        return super().leaves(index)


def opened(
    f: Callable[[Any], Any],
    items: Items,
    faults: dict[int, Fault] | None = None,
    seconds: float = 1e-3,
    script: dict[int, float] | None = None,
) -> tuple[BatchedRun, list[list[int]]]:
    """A run of which it is known that tasks take so long, and the tasks of each batch that is handed on.

    script : seconds of batches, by number, where they are not those of one.
    """
    handed: list[list[int]] = []

    class Noting(ReplayExecutor):
        def open(self, payload: Payload) -> ReplayRun:
            run, submit = super().open(payload), ReplayRun.submit

            def note(attempts: list[Attempt]) -> None:
                blocks: Any = payload.blocks
                handed.extend([task for task, _ in blocks.attempts[number]] for number, _ in attempts)
                submit(run, attempts)

            run.submit = note  # type: ignore[method-assign, assignment]
            return run

    payload = Payload(any_call(f, is_pickled=True), items, faults or {})
    run = BatchedRun(Noting(dict.fromkeys(range(1000), 0.05) | (script or {})), payload, lambda task: "kind")
    run._seconds["kind"] = seconds
    return run, handed


def all_of(run: BatchedRun) -> list[Event]:
    """What happens until nothing more does."""
    events: list[Event] = []
    while run._open or run._news:
        events += run.wait(10.0)
    return events


def ends(events: list[Event]) -> dict[int, Any]:
    """By task: what was returned, or the words of a failure."""
    outcomes = [one for one in events if isinstance(one, Outcome)]
    assert len({one.task for one in outcomes}) == len(outcomes)
    return {one.task: str(one.failure) if one.failure else from_block(one.leaves[0]) for one in outcomes}


def negative(number: int) -> Any:
    if number == 3:
        raise ValueError("unlucky")
    return threading.Lock() if number == 5 else -number


def test_each_task_of_a_batch_has_its_own_end() -> None:
    run, handed = opened(negative, Items(100))
    run.submit([(task, 0) for task in range(100)])
    assert [len(batch) for batch in handed[:3]] == [20, 19, 15]  # a quarter of what waits behind them
    events = all_of(run)
    assert [task for batch in handed for task in batch] == list(range(100))
    found = ends(events)
    assert found[3] == "ValueError: unlucky"
    assert "cannot be pickled" in found[5]
    assert [found[task] for task in range(6, 100)] == [-task for task in range(6, 100)]
    assert {one.task for one in events if isinstance(one, Began)} == set(range(100))


def test_tasks_go_alone_until_it_is_known_that_they_are_short_and_later_attempts_always_do() -> None:
    for seconds in (0.0, BATCH_SECONDS):
        run, handed = opened(abs, Items(40), seconds=seconds)
        run.submit([(task, 0) for task in range(40)])
        assert handed == [[task] for task in range(40)]
    run, handed = opened(abs, Items(40))
    run.submit([(task, int(task < 20)) for task in range(40)])
    assert handed[:21] == [*([task] for task in range(20)), [20, 21, 22, 23]]
    run, handed = opened(abs, Items(40))
    run._kind_of = lambda task: None if task < 20 else task // 22
    run.submit([(task, 0) for task in range(40)])
    assert handed[:20] == [[task] for task in range(20)]
    assert handed[20] == [20]
    assert all(len({task // 22 for task in batch}) == 1 for batch in handed)


def test_how_long_tasks_take_is_learned() -> None:
    run, handed = opened(abs, Items(2 * MOST_BATCHES), seconds=0.0)
    run.submit([(task, 0) for task in range(2 * MOST_BATCHES)])
    assert handed == [[task] for task in range(MOST_BATCHES)]  # the others may turn out to be short
    all_of(run)
    assert run._seconds["kind"] == pytest.approx(0.05)  # as the script says
    assert len(handed) == 2 * MOST_BATCHES


@pytest.mark.parametrize("ends_late", [False, True])
def test_a_batch_that_takes_long_is_given_up_and_its_tasks_begin_anew_by_themselves(ends_late: bool) -> None:
    run, handed = opened(negative, Items(40), script={1: LATE_SECONDS * (1.5 if ends_late else 1e6)})
    withdrawn: list[Attempt] = []
    run._run.withdraw = withdrawn.extend  # type: ignore[method-assign, assignment]
    run.submit([(task, 0) for task in range(40)])
    first, late, last = len(handed[0]), handed[1], len(handed)
    events = all_of(run)
    assert withdrawn == [(1, 0)]
    assert handed[last : last + len(late)] == [[task] for task in late]  # before those that came later
    assert sorted(ends(events)) == list(range(40))
    began = {one.task: one.when for one in events if isinstance(one, Began)}
    assert len(began) == sum(isinstance(one, Began) for one in events) == 40
    assert began[0] == began[first - 1] == 0.0
    assert all(began[task] == LATE_SECONDS for task in late)
    assert not run._began
    assert not run._alone


def test_what_a_worker_leaves_of_a_batch_that_takes_long_waits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "polarmap.worker.block_functions.BATCH_MOST_SECONDS", -1.0
    )  # each does the first only
    run, handed = opened(abs, Items(40))
    run.submit([(task, 0) for task in range(40)])
    assert [task for task in handed[0] if task] == list(range(1, len(handed[0])))
    events = all_of(run)
    assert ends(events) == {task: task for task in range(40)}
    assert sorted(one.task for one in events if isinstance(one, Began)) == list(range(40))


def test_tasks_that_are_lost_together_are_lost_each() -> None:
    run, handed = opened(abs, Items(40), {0: Fault("kill")})
    run.submit([(task, 0) for task in range(40)])
    found = ends(all_of(run))
    assert len(handed[0]) == 9
    assert [task for task, end in found.items() if "struck by 'kill'" in str(end)] == handed[0]


def test_what_nobody_waits_for_is_lost_and_others_in_its_batch_go_on() -> None:
    items = Items(40)
    items.unwanted = {2, *range(36, 40)}
    run, handed = opened(abs, items)
    withdrawn: list[Attempt] = []
    run._run.withdraw = withdrawn.extend  # type: ignore[method-assign, assignment]
    run.submit([(task, 0) for task in range(40)])
    run.withdraw([(0, 0), *((task, 0) for task in handed[1]), (99, 0)])
    assert withdrawn == [(1, 0)]
    found = ends(all_of(run))
    gone = {0, *handed[1], *items.unwanted}
    assert {task for task, end in found.items() if "nobody waits" in str(end)} == gone
    assert all(found[task] == task for task in set(range(40)) - gone)


@pytest.mark.parametrize("is_here", [True, False])
def test_workers_here_are_given_batches_and_no_others(is_here: bool) -> None:
    with Pool(workers=1) as pool:
        executor = InBatches(pool if is_here else ReplayExecutor(), lambda task: None)
        run = executor.open(Payload(any_call(abs, is_pickled=True), Items(3)))
        assert isinstance(run, BatchedRun) == is_here
        run.submit([(task, 0) for task in range(3)])
        found: list[Event] = []
        while sum(isinstance(one, Outcome) for one in found) < 3:
            found += run.wait(60.0)
        run.close()
        assert ends(found) == {0: 0, 1: 1, 2: 2}
        assert executor.name == executor._executor.name
