"""The first result of each task counts; a failure does if failures are kept, else it ends the map."""

from __future__ import annotations

from typing import Any

import pytest
from run.test_policies import lost, returned

from polarmap import hedged_map
from polarmap.errors import NotDecodableError
from polarmap.executors.interface import Failure, Outcome
from polarmap.run.first_results import FirstResults
from polarmap.run.loop import Stopwatch
from polarmap.run.running_map import Observer
from polarmap.run.tasks import TaskTable
from polarmap.testing import ReplayExecutor


def wanting(n: int) -> tuple[FirstResults, list[Outcome]]:
    tasks, noted = TaskTable(n), list[Outcome]()
    tasks.start(range(n), 0.0)
    return FirstResults(noted.append, False, "item {}".format, tasks, Stopwatch(lambda: 0.0)), noted


def take(need: FirstResults, outcome: Outcome) -> None:
    need.tasks.note(outcome, 1.0)
    need.add(outcome)


def raising(task: int, error: Exception) -> Outcome:
    return lost(task)._replace(failure=Failure("raised", type(error).__name__, str(error), error))


def test_the_first_result_of_a_task_counts_whatever_its_copies_do() -> None:
    need, noted = wanting(2)
    need.tasks.start([0], 0.5)
    take(need, returned(0, 1))
    take(need, returned(0, 0))
    assert [(one.task, one.attempt) for one in noted] == [(0, 1)]
    assert not need.is_met
    take(need, returned(1))
    assert need.is_met
    assert need.look_seconds() == 0.0


@pytest.mark.parametrize(("error", "expected"), [(KeyError("x"), KeyError), (None, NotDecodableError)])
def test_the_first_failure_that_stays_ends_the_map(error: Any, expected: type[Exception]) -> None:
    need, _ = wanting(2)
    take(need, returned(0))
    take(need, lost(1) if error is None else raising(1, error))
    assert not need.is_within_reach()
    with pytest.raises(expected) as caught:
        need.settle_for_less()
    told = str(caught.value) if error is None else caught.value.__notes__[-1]
    assert ("1 of 2 needed results arrived, and no more" if error is None else "item 1 raised") in told


def test_failures_that_count_are_told_to_those_who_look_on() -> None:
    class Counts(Observer):
        def looked(self, arrived: int) -> None:
            seen.append(arrived)

    seen = list[int]()
    found = hedged_map(
        lambda x: 1 / x, [0, 1, 2], return_exceptions=True, executor=ReplayExecutor(), progress=(Counts(),)
    )
    assert isinstance(found[0], ZeroDivisionError)
    assert seen[-1] == 3
