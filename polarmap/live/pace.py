"""Limit the run time of live views to a small share of the program's time, by pausing after each update."""

from __future__ import annotations

# Taking snapshots uses at most this fraction of the time. Updating a view uses at most the same fraction.
MAX_TIME_SHARE = 0.04


def compute_pause_seconds(work_seconds: float, min_seconds: float) -> float:
    """Return how many seconds to pause after work that took `work_seconds`, to limit its share of the time.

    The pause is at least `min_seconds`.

    >>> compute_pause_seconds(0.01, 0.25), compute_pause_seconds(0.001, 0.25)
    (0.25, 0.25)
    >>> compute_pause_seconds(0.1, 0.25)
    2.5
    """
    return max(min_seconds, work_seconds / MAX_TIME_SHARE)
