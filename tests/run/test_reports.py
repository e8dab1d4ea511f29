"""Reports of maps are made when they are read, and hold words and numbers alone."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from plain import states

import polarmap
from polarmap.run import running_map
from polarmap.testing import ReplayExecutor


class Held:
    """What f has in its hands when it raises."""


def test_a_report_is_made_when_it_is_read_for_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    final_report = running_map.final_report
    monkeypatch.setattr(running_map, "final_report", lambda *args: made.append(args) or final_report(*args))
    options: dict[str, Any] = {"executor": ReplayExecutor(), "progress": ()}  # nobody looks on
    result = polarmap.coded_map(np.negative, np.eye(6), blocks=3, tasks=4, **options)
    assert list(map(len, result)) == [2, 2, 2]
    assert not made
    assert result.report is result.report
    assert len(made) == 1
    assert states(result.report)["surplus"] == [3]


def test_a_report_that_nobody_has_read_keeps_nothing_of_what_f_raised() -> None:
    held = []

    def f(block: np.ndarray) -> np.ndarray:
        mine = Held()
        if block[0, 0] == 1:
            held.append(weakref.ref(mine))
            raise KeyError("lost")
        return block

    options: dict[str, Any] = {"executor": ReplayExecutor({0: 0.5}), "progress": (), "verify": False}
    result = polarmap.coded_map(f, np.eye(6), blocks=3, tasks=4, **options)
    gc.collect()
    assert [one() for one in held] == [None]
    assert result.report.tasks[0].failures == ("KeyError: 'lost'",)
    assert result.report.recovered == (0,)


def test_results_travel_with_their_report_whether_or_not_it_was_read() -> None:
    late = ReplayExecutor({1: 7.0})
    result = polarmap.coded_map(np.negative, np.eye(6), blocks=3, tasks=4, executor=late)
    copy = pickle.loads(pickle.dumps(result))
    assert copy.report == result.report
    assert (pickle.loads(pickle.dumps(result)).report, list(map(len, copy))) == (copy.report, [2, 2, 2])
