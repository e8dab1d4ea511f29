"""Tests of the error messages of maps whose tasks fail."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from coded_maps import DATA, failing_on, faulty
from driver.test_collector import CountingCollector, lost, returned
from plain import AlteringReplay

from polarmap import coded_map, hedged_map
from polarmap.driver.failure_messages import (
    format_nonfinite_message,
    format_timeout_message,
    format_too_few_results_message,
)
from polarmap.driver.task_table import TaskTable
from polarmap.errors import NotDecodableError
from polarmap.executors.interface import Failure, Outcome
from polarmap.testing import Fault

KILLED_ONCE, KILLED_ALWAYS = Fault("kill"), Fault("kill", attempts=99)


def make_collector(count: int, n: int) -> CountingCollector:
    tasks = TaskTable(n)
    tasks.start_attempts(range(n), 0.0)
    return CountingCollector(tasks, count)


def test_an_error_counts_arrived_and_running_tasks_and_lists_failures() -> None:
    tasks = make_collector(4, 4).task_table
    tasks.record_outcome(returned(0), 1.0)
    tasks.record_outcome(lost(1), 1.0)
    failed = "; failed 1 task: WorkerLost"
    assert (
        format_timeout_message(tasks, 4, 2.5)
        == f"1 of 4 needed results arrived within 2.5 s, 2 tasks still run{failed}"
    )
    slow = " (2 workers were still receiving a block)"
    assert format_timeout_message(tasks, 4, 2.5, n_receiving_workers=2).endswith(
        f"2 tasks still run{slow}{failed}"
    )
    assert "(1 worker was still receiving a block)" in format_timeout_message(
        tasks, 4, 2.5, n_receiving_workers=1
    )
    assert format_too_few_results_message(tasks, 4) == (
        f"only 3 of 4 needed results can arrive: 1 did, 2 tasks still run{failed}"
    )
    tasks.record_start(2, 0, 1.0)
    assert "2.5 s, 1 task still runs, 1 is queued; failed" in format_timeout_message(tasks, 4, 2.5)
    tasks.record_start(3, 0, 1.0)
    assert "2.5 s, 2 tasks still run; failed" in format_timeout_message(tasks, 4, 2.5)
    tasks.record_outcome(lost(2), 1.0)
    assert format_too_few_results_message(tasks, 4).startswith(
        "only 2 of 4 needed results can arrive: 1 did, 1 task still"
    )
    tasks.record_outcome(lost(3), 1.0)
    failed = "; failed 3 tasks: WorkerLost"
    assert (
        format_too_few_results_message(tasks, 4)
        == f"1 of 4 needed results arrived, and no more can come{failed}"
    )
    assert format_nonfinite_message(tasks, 4, 1).endswith(f"not all data tasks reported: 1 of 4{failed}")


def test_at_most_five_machines_of_failed_tasks_are_named() -> None:
    tasks = make_collector(12, 12).task_table
    for index in range(8):
        tasks.record_outcome(lost(index)._replace(host=f"node{index // 2}"), 1.0)
    assert format_too_few_results_message(tasks, 12).endswith(
        "failed 8 tasks: WorkerLost (on node0, node1, node2, node3)"
    )
    for index in range(8, 12):
        tasks.record_outcome(lost(index)._replace(host=f"node{index}"), 1.0)
    ending = "(on node0, node1, node2, node3, node8 and 3 more)"
    assert format_too_few_results_message(tasks, 12).endswith(f"failed 12 tasks: WorkerLost {ending}")


@pytest.mark.parametrize(
    ("spare", "returns", "raises"), [(2, False, True), (3, False, False), (2, True, False)]
)
def test_an_exception_of_every_task_is_raised_before_all_tasks_have_failed(
    spare: int, returns: bool, raises: bool
) -> None:
    collector, error = make_collector(8 - spare, 8), KeyError("x")
    if returns:
        collector.task_table.record_outcome(returned(7), 1.0)
    for index in range(3):
        collector.raise_if_f_always_fails()
        collector.task_table.record_outcome(
            lost(index)._replace(failure=Failure("raised", "KeyError", "x", error)), 1.0
        )
    with pytest.raises(KeyError) if raises else nullcontext() as raised:
        collector.raise_if_f_always_fails()
    assert raises == (raised is not None and raised.value is error)


def test_lost_workers_do_not_hide_an_exception_of_every_task() -> None:
    collector, error = make_collector(6, 8), KeyError("x")
    for index in (0, 1):
        collector.task_table.record_outcome(lost(index), 1.0)
    for index in (2, 3, 4):
        collector.raise_if_f_always_fails()
        collector.task_table.record_outcome(
            lost(index)._replace(failure=Failure("raised", "KeyError", "x", error)), 1.0
        )
    with pytest.raises(KeyError) as raised:
        collector.raise_if_f_always_fails()
    assert raised.value.__notes__ == [
        "f fails everywhere: each of the first 3 of 8 tasks to end raised this",
        "other failures: 2 tasks: WorkerLost",
    ]


def raise_key_error(block: Any) -> Any:
    raise KeyError("column")


def raise_key_error_of_block(block: Any) -> Any:
    raise KeyError(float(np.sum(block)))


@pytest.mark.parametrize("f", [raise_key_error, raise_key_error_of_block])
@pytest.mark.parametrize(("k", "n"), [(2, 3), (4, 6), (24, 32)])
def test_the_exception_of_f_does_not_depend_on_which_worker_is_lost_or_sleeps(f: Any, k: int, n: int) -> None:
    pairs = list(itertools.permutations(range(n), 2))
    for turn, (killed, sleeper) in enumerate(pairs[:: max(1, len(pairs) // 40)]):
        fault = KILLED_ALWAYS if turn % 2 else KILLED_ONCE
        seconds = {task: 1 + 0.1 * ((7 * task + turn) % n) for task in range(n)}
        for slow in ({}, {sleeper: math.inf}):
            executor = faulty({killed: fault}, seconds | slow)
            with pytest.raises(KeyError) as raised:
                coded_map(f, DATA, blocks=k, tasks=n, executor=executor, timeout=60)
            assert any(note.endswith(" raised this") for note in raised.value.__notes__)


def test_the_note_on_an_exception_of_f_counts_the_other_failures() -> None:
    faults = {0: Fault("raise", attempts=99)} | dict.fromkeys(range(8, 12), KILLED_ALWAYS)
    with pytest.raises(ValueError, match="no such block") as raised:
        coded_map(failing_on(*range(1, 8)), DATA, blocks=8, tasks=12, executor=faulty(faults))
    first, second = raised.value.__notes__
    message = "f raised in 8 of 12 tasks, and the others do not determine the results"
    assert first == f"{message}: task 1 raised this"
    assert second.startswith("other failures: ")
    assert "4 tasks: WorkerLost" in second
    assert "1 task: RuntimeError: injected fault" in second


def test_an_exception_of_f_is_the_cause_of_the_error_if_some_tasks_have_returned() -> None:
    with pytest.raises(NotDecodableError, match="5 tasks: ValueError: no such block") as raised:
        coded_map(failing_on(1, 2, 3, 4, 5), DATA, blocks=8, tasks=12, executor=faulty({}), retries=0)
    assert isinstance(raised.value.__cause__, ValueError)


def test_f_is_not_blamed_for_failures_of_lost_workers_alone() -> None:
    lost_for_good = dict.fromkeys(range(6, 11), KILLED_ALWAYS)
    with pytest.raises(NotDecodableError, match="5 tasks: WorkerLost") as raised:
        coded_map(failing_on(1, 2), DATA, blocks=8, tasks=12, executor=faulty(lost_for_good))
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_lost_worker_does_not_hide_an_exception_of_f_on_the_same_item() -> None:
    class SecondAttemptsLost(AlteringReplay):
        def altered(self, outcome: Outcome) -> Outcome:
            return lost(outcome.task, 1) if outcome.attempt == 1 else outcome

    options: dict[str, Any] = {"executor": SecondAttemptsLost(), "backups": 0}
    items = [1, 2, 0, 3]
    with pytest.raises(ZeroDivisionError, match="item 2 of 4 raised this"):
        hedged_map((6).__floordiv__, items, **options)
    results = hedged_map((6).__floordiv__, items, return_exceptions=True, **options)
    assert isinstance(results[2], ZeroDivisionError)
    assert [results[0], results[1], results[3]] == [6, 3, 2]


def test_tasks_that_no_worker_has_started_are_queued() -> None:
    tasks = make_collector(3, 3).task_table
    tasks.record_start(0, 0, 1.0)
    tasks.record_outcome(returned(0), 1.0)
    assert "2.5 s, 2 tasks are queued" in format_timeout_message(tasks, 3, 2.5)
    tasks.no_worker_reason = "nobody is there"
    assert "2.5 s, 2 tasks are queued: nobody is there" in format_timeout_message(tasks, 3, 2.5)
    assert "2 tasks are queued: nobody is there" in format_timeout_message(
        tasks.build_item_table({n: [n] for n in range(3)}, 3), 3, 2.5
    )
