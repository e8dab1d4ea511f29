"""What the logger "polarmap" is told of maps."""

from __future__ import annotations

import logging
import math
import subprocess
import sys

import numpy as np
import pytest

from polarmap import Fault, FaultyExecutor, ReplayExecutor, coded_map, hedged_map
from polarmap.errors import CodedTimeoutError

DATA = np.random.default_rng(0).standard_normal((24, 3))


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """The text of the records of one level, without the number of the map."""
    records = [one for one in caplog.records if one.name == "polarmap" and one.levelno == level]
    return [record.getMessage().partition(": ")[2] for record in records]


def test_a_map_tells_from_its_start_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    faults = {1: Fault("kill", attempts=9)}
    executor = FaultyExecutor(ReplayExecutor({3: math.inf}), faults)
    report = coded_map(np.negative, DATA, blocks=6, workers=8, executor=executor, verify=True).report
    told = lines(caplog)
    assert told[0] == "start: 8 tasks for 6 blocks, 6 results needed (replay, rotation optimal)"
    assert told[1].startswith("lost: task 1 after ")
    assert report.tasks[1].failures[0] in told[1]
    assert told[2:5] == [
        "late: 3, not waited for or started twice",
        f"decoded: 1, 3 in {1e3 * report.decode_seconds:.1f} ms, error bound {report.error_bound:.1g}",
        "verified: local",
    ]
    assert told[5] == f"ended after {report.seconds:.2f} s"
    assert len(told) == 6
    assert lines(caplog, logging.DEBUG) == []


def test_a_result_that_is_rejected_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    executor = FaultyExecutor(ReplayExecutor(), {1: Fault("garbage", attempts=9)})
    report = coded_map(np.negative, DATA, blocks=6, workers=12, executor=executor, verify=True).report
    assert report.tasks[1].state == "failed"
    assert f"lost: task 1: {report.tasks[1].failures[-1]}" in lines(caplog)
    assert sum(line.startswith("lost") for line in lines(caplog)) == 1


def test_each_task_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "polarmap")
    executor = ReplayExecutor({index: 1.0 + index for index in range(6)})
    list(hedged_map(abs, [-1, 2, -3, 4, 5, 6], executor=executor, backups=0))
    assert lines(caplog, logging.DEBUG) == [
        f"task {index} returned after {1.0 + index:.3f} s, {1.0 + index:.3f} s of work" for index in range(6)
    ]


def test_parity_that_starts_for_late_tasks_is_told_when_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    executor = ReplayExecutor({5: 90.0})
    result = coded_map(
        np.negative, DATA, blocks=8, workers=12, executor=executor, schedule="on_demand", verify=False
    )
    launched = result.report.tasks[8].launched
    assert f"late: 5 still out after {launched:.2f} s; started 8" in lines(caplog)


def test_backups_are_told_as_starts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    slow = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", seconds=60)})
    result = hedged_map(np.sort, DATA, blocks=4, executor=slow)
    assert result.report.late == (2,)
    assert any(line.startswith("started again after") and line.endswith(": 2") for line in lines(caplog))


def test_what_a_map_raises_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    never = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    with pytest.raises(CodedTimeoutError) as raised:
        coded_map(np.negative, DATA, blocks=3, workers=4, executor=never, timeout=2.0)
    assert lines(caplog)[-1] == f"ended without results: CodedTimeoutError: {raised.value}"


def test_maps_are_told_apart_by_their_numbers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polarmap")
    for _ in range(2):
        hedged_map(abs, [1], executor=ReplayExecutor())
    names = [record.getMessage().partition(":")[0] for record in caplog.records]
    first, second = dict.fromkeys(names)
    assert int(second.removeprefix("map ")) == int(first.removeprefix("map ")) + 1


def test_nothing_is_printed_unless_logging_is_configured() -> None:
    code = (
        "import polarmap; faults = {0: polarmap.Fault('raise', attempts=9)}\n"
        "executor = polarmap.FaultyExecutor(polarmap.ReplayExecutor(), faults)\n"
        "polarmap.coded_map(abs, [1.0, 2.0, 3.0], executor=executor, verify=False)"
    )
    code = code.replace("abs", "lambda x: 2 * x")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""
