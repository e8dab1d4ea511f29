"""Check how long live views rest after their work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polarmap.live.pace import compute_pause_seconds


@given(st.one_of(st.just(0.0), st.floats(1e-9, 1e3)), st.floats(0, 10))
def test_work_takes_at_most_4_percent_of_the_time(seconds: float, min_pause: float) -> None:
    pause = compute_pause_seconds(seconds, min_pause)
    assert pause >= min_pause
    assert seconds <= 0.04 * (seconds + pause) + 1e-9
    assert pause == min_pause or seconds > 0.039 * pause
