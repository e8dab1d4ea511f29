from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap import coded_map
from polarmap.clouds.prices import Cost
from polarmap.codes import PolarCode
from polarmap.report import to_json_value
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import Report, TaskReport

DATA = np.random.default_rng(0).standard_normal((40, 3))


def report(**changes: Any) -> Report:
    """Return a report of four data and two parity tasks: one was lost and decoded, one still runs."""
    used = [TaskReport(index, "arrived", 1.0 + index, 0.5, 1) for index in (0, 2, 3, 4)]
    failed = TaskReport(1, "failed", None, None, 2, ("OSError: disk", "WorkerLost: it was killed"))
    values: dict[str, Any] = {
        "n": 6,
        "k": 4,
        "code": "rotation code",
        "executor": "replay",
        "tasks": (used[0], failed, *used[1:], TaskReport(5, "abandoned", None, None, 1)),
        "needed": 4,
        "recovered": (1,),
        "seconds": 5.25,
        "encode_seconds": 0.1,
        "decode_seconds": 0.0021,
        "redundancy_wait_seconds": 0.5,
        "amplification": 4.0,
        "error_bound": 8.9e-16,
        "residual": None,
        "verified": "local",
    }
    return Report(**values | changes)


def test_text_says_what_happened_line_by_line() -> None:
    assert str(report()).splitlines() == [
        "done in 5.25 s: 4 of 6 results were enough, 4 arrived (replay, rotation code)",
        "decoded blocks: 1 in 2.1 ms, error 9e-16 at most; checked: f of a decoded block agrees",
        "abandoned tasks, no longer needed: 5",
        "failed tasks: 1",
        "  task 1: WorkerLost: it was killed",
    ]


def test_text_of_an_uneventful_map_is_short() -> None:
    used = tuple(TaskReport(index, "arrived", 1.0, 0.5, 1) for index in range(4))
    text = str(report(tasks=used, recovered=(), error_bound=0.0, verified="not needed"))
    assert len(text.splitlines()) == 2
    assert text.splitlines()[1] == "decoded blocks: none; checked: not needed"


def test_text_says_how_many_machines_there_are_and_if_one_has_too_many_tasks() -> None:
    hosts = ["a", "b", "a", "a", "c", None]
    tasks = [TaskReport(index, "arrived", 1.0, 0.5, 1, host=host) for index, host in enumerate(hosts)]
    crowded = report(tasks=tuple(tasks), workers_by_host={"a": 2, "b": 2, "c": 1})
    assert str(crowded).splitlines()[2:] == [
        "5 workers run on 3 machines",
        "one machine runs 3 of 6 tasks; only 2 may be missing (a)",
    ]
    assert hash(crowded) == hash(dataclasses.replace(crowded))
    assert "only" not in str(dataclasses.replace(crowded, k=3))
    assert "only" not in str(
        dataclasses.replace(crowded, k=6)
    )  # Without a code, no task may be missing anyway.
    assert "1 worker runs on 1 machine" in str(report(workers_by_host={"a": 1}))
    failed = TaskReport(1, "failed", None, None, 1, ("WorkerLost: it was killed",), host="a")
    assert "  task 1 on a: WorkerLost: it was killed" in str(report(tasks=(failed,)))


def test_text_does_not_say_that_results_were_enough_for_estimates() -> None:
    first, *lines = str(report(errors=(0.0, 0.1, 0.0, 0.0))).splitlines()
    assert first == "done in 5.25 s: 4 of 6 results arrived in time (replay, rotation code)"
    assert lines[1].startswith("estimated blocks: 1, errors up to 0.1")


def test_text_says_that_integers_are_exact() -> None:
    assert "decoded blocks: 1 in 2.1 ms, exact; checked: " in str(report(error_bound=0.0))


def test_text_shortens_long_lists() -> None:
    lost = tuple(TaskReport(index, "failed", None, None, 1, ("OSError: disk",)) for index in range(40))
    lines = str(report(tasks=lost, recovered=tuple(range(20)))).splitlines()
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (20) in" in lines[1]
    assert lines[2].endswith("11, ... (40)")
    assert len(lines) < 10


def test_text_has_ten_lines_at_most() -> None:
    lost = (TaskReport(index, "failed", None, None, 1, ("OSError: disk",)) for index in range(9))
    tasks = (*lost, TaskReport(9, "abandoned", None, None, 1))
    options = {"unchecked": (2,), "errors": (0.1, 0.0), "schedule": "on_demand", "cost": Cost(1.0, 0.0, 0.0)}
    full = report(tasks=tasks, **options)
    assert len(str(full).splitlines()) == 10
    assert repr(full) == str(full)


@pytest.mark.parametrize("record", [report(), report().tasks[0]])
def test_reports_are_frozen_dataclasses(record: Any) -> None:
    assert dataclasses.replace(record) == record
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.index = 3


def test_a_report_is_json_with_the_fields_that_it_has() -> None:
    cost = Cost(compute=0.1, calls=0.02, requests=0.003)
    parsed = json.loads(report(errors=(0.0, math.inf), cost=cost).to_json())
    assert parsed.keys() == {field.name for field in dataclasses.fields(Report)}
    assert parsed["tasks"][1] == {
        "index": 1,
        "state": "failed",
        "arrived": None,
        "seconds": None,
        "attempts": 2,
        "failures": ["OSError: disk", "WorkerLost: it was killed"],
        "launched": 0.0,
        "started": None,
        "host": None,
        "failed": None,
    }
    assert (parsed["n"], parsed["recovered"], parsed["errors"]) == (6, [1], [0.0, None])
    assert parsed["cost"] == {"compute": 0.1, "calls": 0.02, "requests": 0.003}


def test_a_failed_task_does_not_count_as_running_until_the_end() -> None:
    tasks = (
        TaskReport(0, "failed", None, None, 1, ("OSError: disk",), started=0.0, failed=1.0),
        TaskReport(1, "arrived", 3.0, 1.0, 1, started=2.0),
        TaskReport(2, "abandoned", None, None, 1, started=2.5),
    )
    assert report(tasks=tasks, seconds=3.0).max_concurrent_tasks == 2
    assert [task.ended for task in tasks] == [1.0, 3.0, None]


def test_indented_json_has_the_same_content() -> None:
    example = report()
    assert "\n" not in example.to_json()
    assert len(example.to_json(indent=2).splitlines()) > 50
    assert json.loads(example.to_json(indent=2)) == json.loads(example.to_json())


def test_numpy_numbers_and_paths_become_json() -> None:
    converted = to_json_value({1: (np.float32(0.5), Path("a", "b")), "rows": np.arange(2)})
    assert converted == {"1": [0.5, str(Path("a", "b"))], "rows": [0, 1]}


def test_late_tasks_had_not_returned_when_the_results_were_determined() -> None:
    assert report().late_tasks == (5,)
    late = TaskReport(5, "surplus", 5.5, 0.5, 1)
    backed = TaskReport(0, "arrived", 1.0, 0.5, 2)
    assert report(tasks=(*report().tasks[:5], late)).late_tasks == (5,)
    assert report(tasks=(backed, *report().tasks[1:])).late_tasks == (0, 5)
    assert report(needed=0).late_tasks == (5,)


def test_every_task_is_in_one_state() -> None:
    faults = {1: Fault("kill"), 2: Fault("raise"), 3: Fault("sleep", seconds=50)}
    late = {index: 1 + 0.1 * index for index in range(32)} | {7: math.inf}
    result = coded_map(
        np.sum, DATA, blocks=20, tasks=32, executor=FaultyExecutor(ReplayExecutor(late), faults)
    )
    states = ["arrived", "surplus", "abandoned", "failed"]
    assert sorted(index for state in states for index in result.report.tasks_in_state(state)) == list(
        range(32)
    )
    assert {1, 2} == set(result.report.tasks_in_state("failed"))
    assert {3, 7} <= set(result.report.tasks_in_state("abandoned"))
    assert set(result.report.recovered) == {1, 2, 3, 7}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("rotation", "rotation code"),
        ("arikan", "arikan code"),
        (PolarCode(8, 4, "arikan", "sequential"), "arikan code, sequential decoder"),
    ],
)
def test_the_code_and_the_executor_are_named(code: Any, name: str) -> None:
    result = coded_map(np.sum, DATA, blocks=4, code=code, executor=ReplayExecutor())
    assert (result.report.code, result.report.executor) == (name, "replay")
    assert str(result.report).splitlines()[0].endswith(f"(replay, {name})")


def test_the_error_bound_holds_for_64_float32_blocks() -> None:
    data = np.random.default_rng(1).standard_normal((48, 1000)).astype("f4")
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(64) + 1.0
        executor = ReplayExecutor(dict(enumerate(order)))
        result = coded_map(np.copy, data, blocks=48, tasks=64, executor=executor, verify=False)
        error = np.abs(result.concatenate() - data).max() / np.abs(data).max()
        assert 0 < error <= result.report.error_bound
