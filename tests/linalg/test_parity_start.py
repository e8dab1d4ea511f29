"""When parity of the next of many products starts: learned from those before."""

from __future__ import annotations

from polarmap.linalg.parity_start import FEWEST, LEEWAY, MOST, ParityStart
from polarmap.report import Report, TaskReport


def report(took: float, recovered: tuple[int, ...] = ()) -> Report:
    """Of a product whose last result came then."""
    used = TaskReport(0, "used", took, took, 1, (), None)
    late = TaskReport(1, "abandoned", None, None, 1, (), None)
    return Report(2, 1, "", "", (used, late), 1, recovered)


def test_parity_waits_a_little_longer_than_the_product_before_took() -> None:
    start = ParityStart()
    assert start.seconds == 0.0
    for took in (2.0, 0.5):
        start.learn(report(took))
        assert start.seconds == LEEWAY * took


def test_where_it_is_needed_it_starts_with_the_data_and_is_tried_less_and_less_often() -> None:
    start = ParityStart()
    start.learn(report(1.0, recovered=(0,)))  # all started at once: that says nothing
    for pause in (FEWEST, 2 * FEWEST, 4 * FEWEST):
        assert start.seconds == LEEWAY
        start.learn(report(1.0, recovered=(0,)))
        for _ in range(pause):
            assert start.seconds == 0.0
            start.learn(report(1.0, recovered=(0,)))
    for _ in range(10_000):
        start.learn(report(1.0, recovered=(0,)))
    pauses = 0
    while start.seconds:
        start.learn(report(1.0, recovered=(0,)))
    while not start.seconds:
        pauses += 1
        start.learn(report(1.0))
    assert pauses <= MOST
    start.learn(report(1.0))
    start.learn(report(1.0, recovered=(0,)))
    for _ in range(FEWEST):
        assert start.seconds == 0.0
        start.learn(report(1.0))
    assert start.seconds == LEEWAY
