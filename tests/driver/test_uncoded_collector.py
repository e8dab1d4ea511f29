"""Tests that the first result of a task counts, and that a failure ends the map unless failures are kept."""

from __future__ import annotations

from typing import Any

import pytest
from driver.test_collector import lost, returned

from polarmap import hedged_map
from polarmap.driver.collector import JobTimer
from polarmap.driver.events import EventStream, JobContext, JobEvent, JobPolled, Observer
from polarmap.driver.task_table import TaskTable
from polarmap.driver.uncoded_collector import UncodedCollector
from polarmap.errors import NotDecodableError
from polarmap.executors.interface import Failure, Outcome
from polarmap.testing import ReplayExecutor


def make_collector(n: int) -> tuple[UncodedCollector, list[Outcome]]:
    tasks, recorded = TaskTable(n), list[Outcome]()
    tasks.start_attempts(range(n), 0.0)
    return UncodedCollector(recorded.append, "item {}".format, False, tasks, JobTimer(lambda: 0.0)), recorded


def take(collector: UncodedCollector, outcome: Outcome) -> None:
    collector.task_table.record_outcome(outcome, 1.0)
    collector.add_outcome(outcome)


def raising(task: int, error: Exception) -> Outcome:
    return lost(task)._replace(failure=Failure("raised", type(error).__name__, str(error), error))


def test_the_first_result_of_a_task_counts_regardless_of_other_attempts() -> None:
    collector, recorded = make_collector(2)
    collector.task_table.start_attempts([0], 0.5)
    take(collector, returned(0, 1))
    take(collector, returned(0, 0))
    assert [(outcome.task, outcome.attempt) for outcome in recorded] == [(0, 1)]
    assert not collector.has_sufficient_results
    take(collector, returned(1))
    assert collector.has_sufficient_results
    assert collector.poll_interval() == 0.0


@pytest.mark.parametrize(("error", "expected"), [(KeyError("x"), KeyError), (None, NotDecodableError)])
def test_the_first_permanent_failure_ends_the_map(error: Any, expected: type[Exception]) -> None:
    collector, _ = make_collector(2)
    take(collector, returned(0))
    take(collector, lost(1) if error is None else raising(1, error))
    assert not collector.can_pending_tasks_suffice()
    with pytest.raises(expected) as caught:
        collector.on_tasks_exhausted()
    message = str(caught.value) if error is None else caught.value.__notes__[-1]
    assert ("1 of 2 needed results arrived, and no more" if error is None else "item 1 raised") in message


def test_kept_failures_are_reported_to_observers() -> None:
    class Counts(Observer):
        def on_event(self, event: JobEvent) -> None:
            if isinstance(event, JobPolled):
                seen.append(event.n_results)

    seen = list[int]()
    prepared = hedged_map.prepare(  # type: ignore[attr-defined]
        lambda x: 1 / x, [0, 1, 2], return_exceptions=True, executor=ReplayExecutor()
    )
    results = prepared.execute(JobContext(EventStream([Counts()])))
    assert isinstance(results[0], ZeroDivisionError)
    assert seen[-1] == 3
