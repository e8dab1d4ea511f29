"""How long a map has run, and how long it may."""

from __future__ import annotations

from collections.abc import Callable
from math import inf


class Stopwatch:
    """Seconds since it was made, on a clock that is passed in.

    >>> hand = iter([10.0, 12.0, 12.5])
    >>> watch = Stopwatch(lambda: next(hand), timeout=3.0)
    >>> watch.elapsed, watch.remaining
    (2.0, 0.5)
    """

    def __init__(self, now: Callable[[], float], timeout: float | None = None) -> None:
        self._now, self._timeout = now, inf if timeout is None else timeout
        self._began = now()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self._now() - self._began

    @property
    def remaining(self) -> float:
        """Seconds until the timeout; inf without one, below 0 when it has passed."""
        return self._timeout - self.elapsed
