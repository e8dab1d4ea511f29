"""Snapshots of maps: states, times and estimates agree with the report, and nothing else is in them."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import polarmap
from polarmap.live.snapshots import (
    MAX_FAILURES,
    STATE_BY_LETTER,
    ExecutorSnapshot,
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
    make_map_snapshot,
)
from polarmap.report import Report, TaskReport, TaskState
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

A = np.random.default_rng(0).standard_normal((60, 5))
X = np.ones(5)


def make_running_report(tasks: list[TaskReport], needed: int, seconds: float) -> Report:
    return Report(
        len(tasks), needed, "test code", "replay", tuple(tasks), needed, seconds=seconds, is_final=False
    )


def make_task(
    index: int, state: str, started: float | None, arrived: float | None, **fields: Any
) -> TaskReport:
    run_time = None if arrived is None else arrived - (started or 0.0)
    return TaskReport(index, state, arrived, run_time, fields.pop("attempts", 1), started=started, **fields)


def test_every_state_of_a_report_has_a_letter() -> None:
    assert set(STATE_BY_LETTER.values()) == {str(state) for state in TaskState}


@given(st.dictionaries(st.integers(0, 8), st.sampled_from(["raise", "kill", "sleep"]), max_size=3))
def test_snapshot_of_a_finished_map_has_the_states_of_its_report(faults: dict[int, str]) -> None:
    injected = {task: Fault(kind, seconds=1e4, attempts=9) for task, kind in faults.items()}
    executor = FaultyExecutor(ReplayExecutor(), injected)
    report = polarmap.coded_map(lambda block: block @ X, A, blocks=6, tasks=10, executor=executor).report
    snapshot = make_map_snapshot(7, "f", report)
    assert [STATE_BY_LETTER[letter.lower()] for letter in snapshot.states] == [t.state for t in report.tasks]
    late_tasks = {index for index, letter in enumerate(snapshot.states) if letter.isupper()}
    abandoned_tasks = set(report.tasks_in_state("abandoned"))
    assert late_tasks - abandoned_tasks == set(report.late_tasks) - abandoned_tasks
    assert snapshot.decoded_blocks == report.recovered and snapshot.n_arrived >= snapshot.needed
    arrivals = sorted(task.arrived for task in report.tasks if task.arrived is not None)
    assert snapshot.sufficed_at == pytest.approx(arrivals[report.needed - 1], abs=1e-4)
    assert snapshot.status_text.startswith(f"{report.needed} needed, {len(arrivals)} arrived, done in")
    assert not snapshot.is_running and snapshot.next_result_seconds is None


def test_running_task_is_late_after_twice_the_median_run_time() -> None:
    returned = [make_task(index, "arrived", 0.0, 1.0) for index in range(3)]
    running = [make_task(3, "running", 0.0, None), make_task(4, "running", 1.5, None)]
    tasks = [*returned, *running, make_task(5, "queued", None, None)]
    assert make_map_snapshot(1, "f", make_running_report(tasks, 4, 1.9), True).states == "aaarrq"
    assert make_map_snapshot(1, "f", make_running_report(tasks, 4, 2.1), True).states == "aaaRrq"


def test_running_task_with_a_backup_is_late() -> None:
    tasks = [make_task(0, "running", 0.0, None, attempts=2), make_task(1, "running", 0.0, None)]
    assert make_map_snapshot(1, "f", make_running_report(tasks, 2, 0.5), True).states == "Rr"


def test_next_result_is_expected_after_the_median_of_longer_run_times() -> None:
    returned = [make_task(index, "arrived", 0.0, seconds) for index, seconds in enumerate((1.0, 2.0, 4.0))]
    running = make_task(3, "running", 0.0, None)
    snapshot = make_map_snapshot(1, "f", make_running_report([*returned, running], 4, 1.5), True)
    assert snapshot.next_result_seconds == pytest.approx(4.0 - 1.5)
    assert snapshot.status_text == "4 needed, 3 arrived, next expected in about 2.5 s"
    hopeless = make_map_snapshot(1, "f", make_running_report([*returned, running], 4, 5.0), True)
    assert hopeless.next_result_seconds is None  # No task has taken that long, so there is no estimate.


def test_failed_task_ends_with_its_last_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "polarmap")
    executor = FaultyExecutor(ReplayExecutor({2: 0.3}), {2: Fault("kill", attempts=9)})
    report = polarmap.coded_map(np.sum, A, blocks=6, tasks=10, executor=executor, retries=1).report
    # The log reports each failure when the driver notices it.
    pattern = re.compile(r"lost: task 2 after (\S+) s")
    times = [float(match[1]) for record in caplog.records if (match := pattern.search(record.getMessage()))]
    task, snapshot = report.tasks[2], make_map_snapshot(1, "f", report)
    assert task.state == "failed" and task.failed == pytest.approx(max(times), abs=0.006)
    assert snapshot.ended[2] == pytest.approx(task.failed, abs=1e-4)
    others = [other for other in report.tasks if other.index != 2]
    assert all(other.failed is None for other in others)
    assert [snapshot.ended[other.index] for other in others] == pytest.approx(
        [other.arrived for other in others], abs=1e-4
    )


def test_throughput_counts_the_latest_seconds() -> None:
    tasks = [make_task(index, "arrived", 0.0, float(index)) for index in range(20)]
    assert make_map_snapshot(1, "f", make_running_report(tasks, 20, 20.0), True).results_per_second == 1.0
    assert make_map_snapshot(1, "f", make_running_report(tasks, 20, 40.0), True).results_per_second == 0.0
    assert make_map_snapshot(1, "f", make_running_report(tasks, 20, 40.0), False).results_per_second == 0.5


def test_only_the_latest_failures_are_included() -> None:
    tasks = [make_task(index, "failed", 0.0, None, failures=("first", "last" * 1000)) for index in range(9)]
    snapshot = make_map_snapshot(1, "f", make_running_report(tasks, 3, 1.0), True)
    assert [failure.task for failure in snapshot.failures] == list(range(9 - MAX_FAILURES, 9))
    assert snapshot.n_failed_tasks == 9 and len(snapshot.failures[0].message) == 500


def test_snapshot_contains_no_data_of_the_user() -> None:
    secret = 123456789.25
    data = np.full((12, 3), secret)

    def f(block: Any) -> Any:
        return block * 1.0

    report = polarmap.coded_map(f, data, blocks=3, tasks=6, executor=ReplayExecutor()).report
    program = ProgramSnapshot(1, "p", "h", 0.0, maps=(make_map_snapshot(1, f.__name__, report),))
    values = json.loads(program.to_json())
    assert "123456789" not in program.to_json()
    # A field that is added to the schema has to be considered here.
    assert set(values["maps"][0]) == {
        *(
            "map_id",
            "name",
            "code",
            "executor",
            "n",
            "k",
            "needed",
            "n_arrived",
            "elapsed_seconds",
            "is_running",
        ),
        *("states", "decoded_blocks", "submitted", "started", "ended", "hosts", "sufficed_at"),
        *("next_result_seconds", "results_per_second", "cost_dollars", "failures", "n_failed_tasks", "error"),
    }
    assert {item.name for item in fields(WorkerSnapshot)} == {
        *("pool", "worker_id", "pid", "host", "state", "task", "job"),
        *("state_seconds", "memory_bytes", "cpu_seconds"),
    }
    assert {item.name for item in fields(ExecutorSnapshot)} == {
        *("name", "executor", "n_calls", "n_done", "n_running", "n_failed")
    }


def test_snapshot_survives_json() -> None:
    live_map = MapSnapshot(
        *(1, "f", "code", "replay", 2, 1, 1, 1, 0.5, True, "aR", (), (0.0, 0.0), (None, 0.1), (0.2, None)),
        failures=(FailureSnapshot(1, "raised", "node1"),),
    )
    worker = WorkerSnapshot("pool", 0, 12, "", "working", 1, 0.25, 1 << 20, 0.5, "map 1")
    calls = ExecutorSnapshot("Executor 1", "processes", 200, 120, 4, 1)
    iteration = IterationSnapshot("Ridge", 3, 1.5, 1e-3, 0.01, 7, 0.03, True)
    program = ProgramSnapshot(
        1, "fit.py", "node0", 1.0, 2, 3.0, (live_map,), (worker,), (iteration,), (calls,)
    )
    assert ProgramSnapshot.from_json(program.to_json().encode()) == program


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"maps": 3}', "null", '{"maps":[{}],"workers":[],"iterations":[]}']
)
def test_other_text_is_not_a_snapshot(text: str) -> None:
    with pytest.raises(ValueError, match="not a snapshot of a program"):
        ProgramSnapshot.from_json(text)


def test_hosts_are_listed_only_if_known() -> None:
    tasks = [make_task(0, "arrived", 0.0, 1.0, host="node1"), make_task(1, "queued", None, None)]
    assert make_map_snapshot(1, "f", make_running_report(tasks, 1, 1.0), True).hosts == ("node1", "")
    assert make_map_snapshot(1, "f", make_running_report(tasks[1:], 1, 1.0), True).hosts == ()


def test_cost_so_far_is_shown() -> None:
    report = make_running_report([make_task(0, "running", 0.0, None)], 1, 1.0)
    priced = SimpleNamespace(**{**vars(report), "cost": SimpleNamespace(total=0.25)})
    assert make_map_snapshot(1, "f", priced, True).cost_dollars == 0.25
