"""Simulated jobs with late tasks before half of the tasks have returned.

The oracle applies the lateness rule after every return.
"""

from __future__ import annotations

from math import inf

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polarmap.planning import LatenessRule
from polarmap.planning.simulation.jobs import find_jobs_with_early_backups


@given(
    times=st.lists(st.one_of(st.floats(0.01, 10), st.floats(50, 200), st.just(inf)), min_size=1, max_size=12),
    least=st.sampled_from([0.0, 0.1]),
)
def test_early_backups_agree_with_the_rule(times: list[float], least: float) -> None:
    rule, ascending = LatenessRule(len(times), min_seconds=least), sorted(times)
    half = -(-len(times) // 2)
    expected = any(rule.late_after_seconds(ascending[:done]) < ascending[done] for done in range(half))
    assert find_jobs_with_early_backups(np.array([ascending]), rule).tolist() == [expected]
