"""One map from its opening to its report: what those are told who look on, and that a plain one has none."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap import Fault, FaultyExecutor, ReplayExecutor, Report
from polarmap.errors import CodedTimeoutError
from polarmap.executors.base import Outcome
from polarmap.run.observers import observers_of
from polarmap.run.running_map import Observer, RunningMap

DATA = np.random.default_rng(0).standard_normal((24, 3))


class Diary(Observer):
    """Writes down what it is told; and the report so far at each moment."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.states: list[list[str]] = []
        self.running: RunningMap | None = None

    def began(self, running: RunningMap) -> None:
        self.running = running
        self.told.append(("began", running.report().needed))

    def started(self, indices: Collection[int], elapsed: float) -> None:
        self.told.append(("started", *indices))

    def ended(self, outcome: Outcome, elapsed: float) -> None:
        assert self.running is not None
        self.told.append(("ended", outcome.task, outcome.failure is None, elapsed))
        self.states.append([task.state for task in self.running.report().tasks])

    def arrived(self, index: int, result: Callable[[], Any]) -> None:
        self.told.append(("arrived", index, result()))

    def looked(self, arrived: int) -> None:
        self.told.append(("looked", arrived))

    def counted(self, done: int, total: int) -> None:
        self.told.append(("counted", done, total))

    def finished(self, end: Report | BaseException | None) -> None:
        self.told.append(("finished", type(end)))


def test_what_happens_is_told_where_it_happens() -> None:
    diary = Diary()
    executor = FaultyExecutor(ReplayExecutor({0: 1.0, 1: 2.0, 2: 3.0, 3: math.inf}), {1: Fault("kill")})
    options: dict[str, Any] = {"blocks": 3, "workers": 4, "executor": executor, "progress": (diary,)}
    result = polarmap.coded_map(np.negative, DATA, verify=False, **options)
    assert [told for told in diary.told if told[0] != "looked"] == [
        ("began", 3),
        ("ended", 0, True, 1.0),
        ("ended", 1, False, 2.0),
        ("ended", 2, True, 3.0),
        ("started", 1),  # after a while without news
        ("ended", 1, True, 6.0),
        ("finished", Report),
    ]
    counts = [told[1] for told in diary.told if told[0] == "looked"]
    assert (counts[0], counts[-1]) == (1, 3)
    assert counts == sorted(counts)
    assert diary.states[0] == ["arrived", "running", "running", "running"]
    assert diary.states[1] == ["arrived", "failed", "running", "running"]
    assert diary.states[-1] == ["arrived", "arrived", "arrived", "running"]
    assert [task.state for task in result.report.tasks] == ["used", "used", "used", "abandoned"]


def test_results_of_any_function_are_told_one_by_one() -> None:
    diary = Diary()
    result = polarmap.hedged_map(abs, [-1, 2], executor=ReplayExecutor({0: 9.0}), progress=(diary,))  # type: ignore[arg-type]
    assert list(result) == [1, 2]
    assert [told for told in diary.told if told[0] == "arrived"] == [("arrived", 1, 2), ("arrived", 0, 1)]


def test_a_map_that_raises_has_finished_for_all() -> None:
    diaries = Diary(), Diary()
    never = ReplayExecutor(dict.fromkeys(range(4), math.inf))
    options: dict[str, Any] = {"blocks": 3, "workers": 4, "executor": never, "progress": diaries}
    with pytest.raises(CodedTimeoutError):
        polarmap.coded_map(np.negative, DATA, timeout=2.0, **options)
    assert [diary.told[-1] for diary in diaries] == [("finished", CodedTimeoutError)] * 2


def test_nobody_looks_on_at_a_plain_map(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "polarmap")
    assert [type(one).__name__ for one in observers_of(False)][-1:] == ["MapLog"]
    caplog.set_level("WARNING", "polarmap")
    assert "MapLog" not in [type(one).__name__ for one in observers_of(False)]
