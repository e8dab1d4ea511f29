"""The median and the longest of what tasks took, against statistics of all of them."""

from __future__ import annotations

from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from polarmap.run.task_seconds import TaskSeconds


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1e6)), min_size=1))
def test_median_and_largest_of_the_latest_of_each_task(told: list[tuple[int, float]]) -> None:
    seconds = TaskSeconds()
    for task, spent in told:
        seconds[task] = spent
    latest = dict(told)
    assert seconds.median == median(latest.values())
    assert seconds.largest == max(latest.values())
    assert [seconds[task] for task in latest] == list(latest.values())
    assert 10 not in seconds
