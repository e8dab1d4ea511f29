"""When parity of the next of many products starts: learned from those before."""

from __future__ import annotations

import numpy as np

from polarmap.linalg.parity_start import FEWEST, LEEWAY, MOST, ParityStart
from polarmap.report import Report, TaskReport
from polarmap.run.options import MapOptions


def report(took: float, recovered: tuple[int, ...] = ()) -> Report:
    """Of a product whose last result came then."""
    used = TaskReport(0, "used", took, took, 1, (), None)
    late = TaskReport(1, "abandoned", None, None, 1, (), None)
    return Report(2, 1, "", "", (used, late), 1, recovered)


def seconds(start: ParityStart) -> float:
    """After which a task of the next product is late; 0.0: parity starts with the data."""
    options = start.applied_to(MapOptions())
    if options.runtimes is None:
        assert options.schedule == "upfront"
        return 0.0
    assert options.schedule == "on_demand"
    late, median = options.runtimes.inverse(np.array([0.9, 0.5]), np.array([0.1, 0.5]))
    assert late == median
    return float(late)


def test_a_task_is_late_that_takes_a_little_longer_than_the_product_before() -> None:
    start = ParityStart()
    assert seconds(start) == 0.0
    for took in (2.0, 0.5):
        start.learn(report(took))
        assert seconds(start) == LEEWAY * took


def test_where_it_is_needed_it_starts_with_the_data_and_is_tried_less_and_less_often() -> None:
    start = ParityStart()
    start.learn(report(1.0, recovered=(0,)))  # all started at once: that says nothing
    for pause in (FEWEST, 2 * FEWEST, 4 * FEWEST):
        assert seconds(start) == LEEWAY
        start.learn(report(1.0, recovered=(0,)))
        for _ in range(pause):
            assert seconds(start) == 0.0
            start.learn(report(1.0, recovered=(0,)))
    for _ in range(10_000):
        start.learn(report(1.0, recovered=(0,)))
    pauses = 0
    while seconds(start):
        start.learn(report(1.0, recovered=(0,)))
    while not seconds(start):
        pauses += 1
        start.learn(report(1.0))
    assert pauses <= MOST
    start.learn(report(1.0))
    start.learn(report(1.0, recovered=(0,)))
    for _ in range(FEWEST):
        assert seconds(start) == 0.0
        start.learn(report(1.0))
    assert seconds(start) == LEEWAY
