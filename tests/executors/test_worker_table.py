"""Who is free, who is busy, who is gone: whatever workers say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from polarmap.errors import ExecutorError
from polarmap.executors.objects import ObjectLink
from polarmap.executors.pool_slots import Lease
from polarmap.executors.worker_table import REMEMBERED, KeptWorker, WorkerTable
from polarmap.worker.stream import END, LEFT, NEED, PROCESS, UNFIT, Message, frame

TOLD = (3, 1, 0)  # map, task and attempt


class Table(WorkerTable):
    """Workers with links of which a test says what they hear."""

    def __init__(self) -> None:
        super().__init__(None)
        self.links: list[ObjectLink] = []
        self.gone: list[int] = []
        self.abandoned: list[list[int]] = []

    def _another(self) -> KeptWorker:
        number = next(self._numbers)
        link = ObjectLink(number, 0, lambda *_: None)
        self.links.append(link)
        self._workers[number] = KeptWorker(number, link)
        return self._workers[number]

    def _end(self, worker: KeptWorker) -> None:
        self.gone.append(worker.number)

    def _give_up(self) -> None:
        self.abandoned.append([worker.number for worker in self._abandoned])


@pytest.fixture
def table() -> Iterator[Table]:
    one = Table()
    yield one
    one.close()
    for link in one.links:
        link.close()


def taken(table: Table, lease: Lease, task: Any = None) -> KeptWorker:
    worker = table.take(lease, 1, task)
    assert worker is not None
    return worker


def opened(table: Table) -> Lease:
    return table.slots.open(lambda: None)


def test_a_task_goes_to_the_worker_that_has_done_it(table: Table) -> None:
    lease = opened(table)
    workers = [taken(table, lease) for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.process = number
        worker.note((0, number, 0), ("blocks", number))
        table.give_back(worker)
    for number in (1, 0, 2):
        assert taken(table, lease, ("blocks", number)) is workers[number]


def test_tasks_that_were_done_long_ago_are_forgotten() -> None:
    worker = KeptWorker(0, ObjectLink(0, 0, lambda *_: None))
    for task in range(REMEMBERED + 10):
        worker.note((0, task, 0), task)
        worker.note((0, task, 1), 0)
    assert len(worker.done) == REMEMBERED
    assert 0 in worker.done
    assert 1 not in worker.done
    worker.link.close()


@pytest.mark.parametrize("said", [Message(END, TOLD), Message(LEFT, TOLD), Message(UNFIT, TOLD)])
def test_a_worker_that_is_done_with_an_abandoned_task_is_free(table: Table, said: Message) -> None:
    lease = opened(table)
    worker = taken(table, lease)
    worker.note(TOLD, "task")
    assert table.abandoned_tasks() == set()
    table.leave(lease)
    assert table.abandoned_tasks() == {"task"}
    table.links[0].deliver(frame(said))
    assert table.abandoned_tasks() == set()
    assert taken(table, opened(table)) is worker


@pytest.mark.parametrize("said", [Message(NEED, TOLD, b"x/1"), Message(PROCESS, header=b"5")])
def test_one_that_only_tells_how_far_it_is_is_not(table: Table, said: Message) -> None:
    lease = opened(table)
    worker = taken(table, lease)
    worker.note(TOLD, "task")
    table.leave(lease)
    table.links[0].deliver(frame(said))
    assert table.abandoned_tasks() == {"task"}
    assert worker.lease is lease
    assert table.abandoned[-1] == [0]


def test_a_worker_that_dies_of_an_abandoned_task_is_removed(table: Table) -> None:
    lease = opened(table)
    taken(table, lease)
    table.leave(lease)
    table.links[0].hang_up()
    table.abandoned_tasks()
    assert len(table) == 0
    assert table.gone == [0]


def test_those_that_are_abandoned_for_longest_come_first(table: Table) -> None:
    leases = [opened(table) for _ in range(3)]
    for lease in leases:
        taken(table, lease)
    for turn in (2, 0, 1):
        table.leave(leases[turn])
        table.abandoned_tasks()
    assert table.abandoned[-1] == [2, 0, 1]


@pytest.mark.parametrize(
    "said",
    [
        Message(PROCESS, header=b"x"),
        Message(END, (2, *TOLD[1:])),  # of another map
        Message(END, (TOLD[0], 5, 0)),
        Message(LEFT, (*TOLD[:2], 7)),
        Message(NEED, (2, *TOLD[1:]), b"x/1"),
    ],
)
def test_who_speaks_of_another_map_task_or_attempt_is_gone(table: Table, said: Message) -> None:
    worker = taken(table, opened(table))
    worker.note(TOLD, "task")
    table.links[0].deliver(frame(said) + frame(Message(END, TOLD)))
    assert worker.receive() == ([], False)
    assert worker.receive() == ([], False)  # whoever has it then sees it, too


def test_who_replies_twice_is_gone(table: Table) -> None:
    worker = taken(table, opened(table))
    worker.note(TOLD, "task")
    table.links[0].deliver(2 * frame(Message(END, TOLD)))
    assert worker.receive() == ([Message(END, TOLD)], False)


def test_close_ends_all_and_maps_see_it(table: Table) -> None:
    lease, another = opened(table), opened(table)
    busy, abandoned, free = taken(table, lease), taken(table, another), taken(table, lease)
    table.give_back(free)
    table.leave(another)
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
    lease = opened(table)
    worker = taken(table, lease)
    table.close()
    table.leave(lease)
    assert worker.link.fileno() == -1
