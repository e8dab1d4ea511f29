"""Calls on a run, by a script of when they end; what tells calls of one function from others."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pytest

from polarmap import Fault, ReplayExecutor
from polarmap.errors import WorkerLostError
from polarmap.executors.base import Coded, Failure, Outcome, Payload, block_of, check_reachable
from polarmap.executors.block_store import BlockStore
from polarmap.run import calls as module
from polarmap.run.calls import REMEMBERED, Call, Calls, Durations, Limits, function_of
from polarmap.run.loop import schedule
from polarmap.run.need import Stopwatch
from polarmap.worker.block_functions import run_call
from polarmap.worker.pytree import layout_bytes, to_block

BOUNDED = Limits(4, grows=False, backups=2, retries=1)


class Served:
    """Calls, the run that they are on, and those that wait for it."""

    def __init__(
        self,
        seconds: Mapping[int, float] | None = None,
        faults: Mapping[int, Fault] | None = None,
        limits: Limits = BOUNDED,
        durations: Durations | None = None,
    ) -> None:
        self.waiting: list[Call] = []
        self.most = 0  # calls that were under way at a time
        known = defaultdict(partial(deque, maxlen=REMEMBERED)) if durations is None else durations
        self.calls = Calls(limits, known, self._take)
        self.run = ReplayExecutor(seconds).open(Payload(run_call, self.calls.blocks, faults or {}))
        self.calls.watch = Stopwatch(self.run.now)
        self._steps = schedule(self.run, self.calls, limits.retries, self.calls)

    def _take(self, room: int) -> tuple[list[Call], bool]:
        taken, self.waiting = self.waiting[:room], self.waiting[room:]
        self.most = max(self.most, len(self.calls._calls) + len(taken))
        return taken, bool(self.waiting)

    def add(self, count: int) -> list[Call]:
        """So many calls, which wait from now on."""
        some = [Call(Future(), "f", to_block((abs, (-number,), {}))) for number in range(count)]
        self.waiting += some
        return some

    def step(self) -> None:
        self.calls.note(next(self._steps))

    def serve(self) -> Iterator[int]:
        """Until no call waits or is under way."""
        for number in range(2000):
            if self.calls.is_idle and not self.waiting:
                return
            self.step()
            yield number
        pytest.fail("it has no end")


def attempts(served: Served) -> list[int]:
    return [served.calls.tasks[task].attempts for task in range(len(served.calls.tasks))]


def test_calls_end_as_the_run_says_in_their_order_and_their_blocks_go() -> None:
    served = Served()
    some = served.add(10)
    list(served.serve())
    assert served.most == 4
    assert [one.future.result(0) for one in some] == list(range(10))
    assert attempts(served) == [1] * 10
    assert not served.calls.sent


@pytest.mark.parametrize(
    ("most", "grows", "given", "running", "room"),
    [
        (None, False, 10**6, 0, 1 << 30),
        (4, False, 4, 4, 0),
        (4, False, 1, 1, 3),
        (6, True, 6, 3, 0),
        (6, True, 20, 20, 10),
        (6, True, 30, 20, 0),
    ],
)
def test_room_grows_with_what_runs(
    most: int | None, grows: bool, given: int, running: int, room: int
) -> None:
    assert Limits(most, grows, 0, 0).room(given, running) == room


def test_a_late_call_is_started_once_more_and_the_first_to_return_counts() -> None:
    served = Served({3: 50.0})
    some = served.add(4)
    list(served.serve())
    assert some[3].future.result(0) == 3
    assert attempts(served) == [1, 1, 1, 3]
    assert served.run.now() >= 50.0  # by this script a backup takes as long


def test_there_are_no_backups_while_other_calls_wait_for_a_worker() -> None:
    served = Served({task: 50.0 if task in (3, 4, 5) else 1.0 for task in range(20)})
    served.add(20)
    for _ in served.serve():
        if served.waiting:
            assert max(attempts(served), default=1) == 1
    assert max(attempts(served)) > 1


def test_what_calls_of_a_function_took_is_remembered_from_run_to_run() -> None:
    durations: Durations = defaultdict(partial(deque, maxlen=16))
    first = Served(durations=durations)
    first.add(20)
    list(first.serve())
    assert list(durations["f"]) == [1.0] * 16
    again = Served({0: 50.0}, durations=durations)
    again.add(1)
    again.step()
    again.step()  # it waits for the moment in which the call is late, and no longer
    assert 1.0 < again.run.now() < 1.2
    assert attempts(again) == [1]
    again.step()
    assert attempts(again) == [2]


def test_no_call_is_late_at_once() -> None:
    durations: Durations = defaultdict(deque, {"f": deque([1e-6] * 20)})
    served = Served({0: 50.0}, durations=durations)
    served.add(1)
    served.step()
    served.step()
    assert served.run.now() == pytest.approx(0.1)


def test_a_worker_that_is_at_what_others_have_done_wears_a_run() -> None:
    served = Served(faults={3: Fault("sleep", 1000.0)})
    served.add(4)
    list(served.serve())
    calls, done = served.calls, served.calls.watch.elapsed
    assert attempts(served) == [1, 1, 1, 2]
    assert done < 100.0
    assert 3 in calls.sent  # that attempt may ask for it
    assert not calls.is_worn(done)
    served.add(9)
    served.step()
    served.step()
    assert served.waiting
    assert 0.0 < calls.wait_seconds(calls.tasks, done) <= module.GRACE_SECONDS
    late = done + module.GRACE_SECONDS
    assert calls.is_worn(late)
    assert calls.wait_seconds(calls.tasks, late) == 0.0  # for others to take what waits
    served.waiting.clear()
    list(served.serve())
    served.run.wait(2000.0)


def test_a_call_that_raises_is_over_whatever_its_other_attempt_does() -> None:
    """The first attempt raises late, while its backup sleeps; nothing is started in the place of either."""
    limits, faults = Limits(5, grows=False, backups=1, retries=3), {3: Fault("raise", attempts=1)}
    served = Served({3: 50.0, 4: 200.0}, faults, limits)
    some = served.add(5)
    list(served.serve())
    assert some[3].future.exception(0) is not None
    assert [one.future.result(0) for one in (*some[:3], some[4])] == [0, 1, 2, 4]
    assert attempts(served) == [1, 1, 1, 2, 2]
    assert set(served.calls.sent) == {4}  # its backup runs


def test_a_run_that_had_many_calls_is_worn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CALLS", 6)
    served = Served()
    for is_worn in (False, True):
        served.add(3)
        list(served.serve())
        assert served.calls.is_worn(0.0) == is_worn


def test_lost_calls_are_started_again_so_often_and_no_more() -> None:
    faults = {0: Fault("kill"), 1: Fault("kill", attempts=2), 2: Fault("raise"), 3: Fault("garbage")}
    served = Served(faults=faults)
    some = served.add(4)
    list(served.serve())
    errors = [one.future.exception(0) for one in some]
    assert errors[0] is None
    assert isinstance(errors[1], WorkerLostError)
    assert "lost 2 times" in str(errors[1])
    assert errors[2] is not None
    assert attempts(served) == [2, 2, 1, 1]
    assert not served.calls.sent


LOST, RAISED = Failure("lost", "WorkerLost", "gone"), Failure("raised", "KeyError", "x", KeyError("x"))


@pytest.mark.parametrize("first", [LOST, RAISED, None])
@pytest.mark.parametrize("second", [LOST, RAISED, None])
def test_two_attempts_of_a_call_may_end_at_once(first: Failure | None, second: Failure | None) -> None:
    served = Served(limits=Limits(4, grows=False, backups=1, retries=1))
    [call] = served.add(1)
    served.calls.take()
    tasks, ends = served.calls.tasks, []
    for attempt, failure in enumerate((first, second)):
        tasks.start([0], 0.0)
        result = ([to_block(7)], ("array",)) if failure is None else (None, None)
        ends.append(Outcome(0, attempt, *result, failure, 1.0))
    for outcome in ends:
        tasks.note(outcome, 1.0)
    served.calls.note(ends)
    told = [failure for failure in (first, second) if failure is not LOST]
    error = call.future.exception(0)
    if not told:
        assert isinstance(error, WorkerLostError)
    elif told[0] is None:
        assert call.future.result(0) == 7
    else:
        assert isinstance(error, KeyError)
    assert served.calls.is_idle
    assert not served.calls.sent
    assert not tasks.failed


def test_all_fail_with_their_run() -> None:
    served = Served()
    some = served.add(3)
    served.calls.take()
    served.calls.fail(OSError("gone"))
    assert served.calls.is_idle
    assert [str(one.future.exception(0)) for one in some] == ["gone"] * 3


def test_what_has_no_end_is_lost() -> None:
    served = Served({1: float("inf")})
    some = served.add(2)
    list(served.serve())
    found: list[Any] = [one.future.exception(0) for one in some]
    assert found[0] is None
    assert isinstance(found[1], WorkerLostError)


def test_the_bytes_of_a_call_travel_with_its_ticket_while_anybody_may_ask_for_them() -> None:
    served = Served()
    served.waiting += [Call(Future(), "f", np.full(size, size - 1, np.uint8)) for size in (1, 2, 3)]
    served.calls.take()
    blocks: Coded = served.calls.blocks
    assert blocks.n == 3
    assert blocks.source is not None
    check_reachable(blocks.source)
    stored = BlockStore("").of(blocks)
    for task in range(3):
        assert block_of(blocks, task).tolist() == [task] * (task + 1)
        assert layout_bytes(blocks.layout(task)) == task + 1
        block = stored.block(blocks, task)
        assert np.frombuffer(block.data, np.uint8).tolist() == [task] * (task + 1)
        assert block.source == blocks.source
    del served.calls.sent[1]
    with pytest.raises(KeyError):  # nobody else holds it
        stored.block(blocks, 1)


def test_a_call_is_told_once() -> None:
    call = Call(Future(), "f", np.zeros(3, np.uint8))
    call.fail(ValueError("first"))
    call.fail(ValueError("second"))
    assert str(call.future.exception()) == "first"


class Thing:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


def test_a_function_is_the_same_whoever_calls_it() -> None:
    functions: list[Any] = [
        lambda: 1,
        lambda: 2,
        Thing().method,
        Thing(),
        min,
        np.sum,
        "".join,
        test_a_call_is_told_once,
    ]
    assert len({function_of(one) for one in functions}) == len(functions)
    assert function_of(Thing().method) == function_of(Thing.method)
    assert function_of(Thing()) == function_of(Thing())
    assert function_of(partial(min, 1)) == function_of(min)
