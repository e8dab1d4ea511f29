"""Who is free, who is busy, who is gone: whatever workers say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from polarmap.errors import ExecutorError
from polarmap.executors.links import MailboxLink
from polarmap.executors.worker_table import (
    REMEMBERED,
    Lease,
    Worker,
    WorkerTable,
    ended,
    has_ended_lately,
)
from polarmap.worker.frames import frame


class Table(WorkerTable):
    """Workers with links of which a test says what they hear."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__(most)
        self.links: list[MailboxLink] = []
        self.gone: list[int] = []
        self.told: list[tuple[int, Any]] = []
        self.abandoned: list[list[int]] = []

    def _another(self, may_wait: bool) -> Worker | None:
        if may_wait or (self._most is not None and len(self._workers) >= self._most):
            return None
        number = next(self._numbers)
        link = MailboxLink(lambda message: self.told.append((number, message)))
        self.links.append(link)
        self._workers[number] = Worker(number, link)
        return self._workers[number]

    def _end(self, worker: Worker) -> None:
        self.gone.append(worker.number)

    def _give_up(self, abandoned: Any) -> None:
        self.abandoned.append([worker.number for worker in abandoned])


@pytest.fixture
def table() -> Iterator[Table]:
    one = Table()
    yield one
    one.close()
    for link in one.links:
        link.close()


def taken(table: Table, lease: Lease, task: Any = None) -> Worker:
    worker = table.take(lease, False, task)
    assert worker is not None
    return worker


def over(lease: Lease) -> None:
    lease.ended = time.monotonic()


def test_a_free_worker_is_taken_before_another_one_is_made(table: Table) -> None:
    lease = Lease()
    first, second = taken(table, lease), taken(table, lease)
    assert first is not second
    assert table.take(lease, may_wait=True) is None
    table.give_back(second)
    assert taken(table, lease) is second
    assert len(table) == 2


def test_there_are_never_more_than_there_may_be() -> None:
    table = Table(2)
    lease = Lease()
    workers = [taken(table, lease) for _ in range(2)]
    assert table.take(lease, False) is None
    table.remove(workers[0])
    assert taken(table, lease).number == 2
    for link in table.links:
        link.close()


def test_a_task_goes_to_the_worker_that_has_done_it(table: Table) -> None:
    lease = Lease()
    workers = [taken(table, lease) for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.process = number
        worker.note(("blocks", number))
        table.give_back(worker)
    for number in (1, 0, 2):
        assert taken(table, lease, ("blocks", number)) is workers[number]


def test_tasks_that_were_done_long_ago_are_forgotten() -> None:
    worker = Worker(0, MailboxLink(lambda message: None))
    for task in range(REMEMBERED + 10):
        worker.note(task)
        worker.note(0)
    assert len(worker.done) == REMEMBERED
    assert 0 in worker.done
    assert 1 not in worker.done
    worker.link.close()


@pytest.mark.parametrize("said", [{"task": 1, "kind": "end"}, {"task": 1, "attempt": 0}, {"cancelled": 3}])
def test_a_worker_that_is_done_with_an_abandoned_task_is_free(table: Table, said: Any) -> None:
    lease = Lease()
    worker = taken(table, lease)
    worker.note("task")
    assert table.abandoned_tasks() == set()
    over(lease)
    assert table.abandoned_tasks() == {"task"}
    table.links[0].deliver(frame(said))
    assert table.abandoned_tasks() == set()
    assert taken(table, Lease()) is worker


def test_one_that_has_not_read_its_call_has_nothing_of_what_came_with_it(table: Table) -> None:
    worker = taken(table, Lease())
    worker.function, worker.modules = b"digest", {"mine": ("", False)}
    table.links[0].deliver(frame({"task": 1}))
    worker.receive()
    assert (worker.function, list(worker.modules)) == (b"digest", ["mine"])
    table.links[0].deliver(frame({"cancelled": 3}))
    worker.receive()
    assert (worker.function, worker.modules, worker.around) == (None, {}, None)


@pytest.mark.parametrize("said", [{"task": 1, "kind": "part"}, {"need": "x/1"}, {"alive": 1}])
def test_one_that_only_tells_how_far_it_is_is_not(table: Table, said: Any) -> None:
    lease = Lease()
    worker = taken(table, lease)
    worker.note("task")
    over(lease)
    table.links[0].deliver(frame(said))
    assert table.abandoned_tasks() == {"task"}
    assert worker.lease is lease
    assert table.abandoned[-1] == [0]


def test_a_worker_that_dies_of_an_abandoned_task_is_removed(table: Table) -> None:
    lease = Lease()
    taken(table, lease)
    over(lease)
    table.links[0].hang_up()
    table.abandoned_tasks()
    assert len(table) == 0
    assert table.gone == [0]


def test_those_that_are_abandoned_for_longest_come_first(table: Table) -> None:
    leases = [Lease() for _ in range(3)]
    for lease in leases:
        taken(table, lease)
    for turn in (2, 0, 1):
        leases[turn].ended = float(turn)
        table.abandoned_tasks()
    assert table.abandoned[-1] == [0, 1, 2]


def test_what_is_said_of_the_process_is_not_a_reply(table: Table) -> None:
    worker = taken(table, Lease())
    table.links[0].deliver(frame({"process": 123}) + frame({"alive": 1}) + frame({"task": 1}))
    assert worker.receive() == ([({"task": 1}, bytearray())], True)
    assert worker.process == 123


@pytest.mark.parametrize("said", [5, None, {"process": "x"}, {"process": None}])
def test_nonsense_ends_the_worker(table: Table, said: Any) -> None:
    worker = taken(table, Lease())
    table.links[0].deliver(frame(said))
    assert worker.receive() == ([], False)


def test_close_ends_all_and_maps_see_it(table: Table) -> None:
    lease, another = Lease(), Lease()
    busy, abandoned, free = taken(table, lease), taken(table, another), taken(table, lease)
    table.give_back(free)
    over(another)
    table.close()
    assert sorted(table.gone) == [0, 1, 2]
    assert busy.link.fileno() >= 0  # its map waits there
    assert not busy.receive()[1]
    assert abandoned.link.fileno() == free.link.fileno() == -1
    with pytest.raises(ExecutorError, match="ended while a map ran"):
        table.remove(busy)
    with pytest.raises(ExecutorError, match="ended while a map ran"):
        table.ending(busy)


def test_whoever_leaves_after_the_end_closes_what_is_left(table: Table) -> None:
    worker = taken(table, Lease())
    table.close()
    table.leave([worker])
    assert worker.link.fileno() == -1


def test_how_long_ago_a_map_ended() -> None:
    worker = Worker(0, MailboxLink(lambda message: None), lease=Lease())
    assert worker.lease is not None
    worker.lease.ended = time.monotonic() - 10.0
    assert has_ended_lately([worker], 20.0)
    assert not has_ended_lately([worker], 5.0)
    assert not has_ended_lately([], 5.0)
    assert ended(worker) == worker.lease.ended
    worker.link.close()
