"""Tests of when the parity tasks of a product start, which is learned from earlier products."""

from __future__ import annotations

import numpy as np

from polarmap.driver.options import MapOptions
from polarmap.linalg.adaptive_parity import LATE_FACTOR, MAX_BACKOFF, MIN_BACKOFF, AdaptiveParitySchedule


def get_late_seconds(start: AdaptiveParitySchedule) -> float:
    """Return the age at which a task of the next product is late, or 0.0 if parity starts with the data."""
    options = start.map_options
    if options.run_times is None:
        assert options.schedule == "upfront"
        return 0.0
    assert options.schedule == "on_demand"
    late, median = options.run_times.quantile_given_completion(np.array([0.9, 0.5]))
    assert late == median
    return float(late)


def test_a_task_is_late_if_it_takes_slightly_longer_than_the_last_product() -> None:
    start = AdaptiveParitySchedule(MapOptions())
    assert get_late_seconds(start) == 0.0
    for took in (2.0, 0.5):
        start.record_product(took, needed_parity=False)
        assert get_late_seconds(start) == LATE_FACTOR * took


def test_needed_parity_starts_with_the_data_and_is_delayed_less_and_less_often() -> None:
    start = AdaptiveParitySchedule(MapOptions())
    start.record_product(1.0, needed_parity=True)  # Parity started with the data, so this shows nothing.
    for pause in (MIN_BACKOFF, 2 * MIN_BACKOFF, 4 * MIN_BACKOFF):
        assert get_late_seconds(start) == LATE_FACTOR
        start.record_product(1.0, needed_parity=True)
        for _ in range(pause):
            assert get_late_seconds(start) == 0.0
            start.record_product(1.0, needed_parity=True)
    for _ in range(10_000):
        start.record_product(1.0, needed_parity=True)
    pauses = 0
    while get_late_seconds(start):
        start.record_product(1.0, needed_parity=True)
    while not get_late_seconds(start):
        pauses += 1
        start.record_product(1.0, needed_parity=False)
    assert pauses <= MAX_BACKOFF
    start.record_product(1.0, needed_parity=False)
    start.record_product(1.0, needed_parity=True)
    for _ in range(MIN_BACKOFF):
        assert get_late_seconds(start) == 0.0
        start.record_product(1.0, needed_parity=False)
    assert get_late_seconds(start) == LATE_FACTOR
