"""A deadline for a series of products."""

from __future__ import annotations

import time
from dataclasses import replace
from math import inf

from polarmap.driver.options import MapOptions
from polarmap.errors import CodeError, DeadlineExceededError
from polarmap.validation import is_real_number


class Deadline:
    """A common deadline for a series of matrix products. There is no time limit until `set` is called.

    Examples
    --------
    >>> deadline = Deadline()
    >>> deadline.set(60.0)
    >>> deadline.limit_timeout(MapOptions(timeout=5.0)).timeout
    5.0
    """

    def __init__(self) -> None:
        self._seconds, self._ends_at = inf, inf

    def set(self, seconds: float | None) -> None:
        """Set the deadline to `seconds` from now, or remove it if `seconds` is None."""
        if seconds is not None and not (is_real_number(seconds) and seconds >= 0):
            raise CodeError(f"seconds must be a number, 0 or more, or None, got {seconds!r}")
        self._seconds = inf if seconds is None else float(seconds)
        self._ends_at = inf if seconds is None else time.monotonic() + seconds

    def limit_timeout(self, options: MapOptions) -> MapOptions:
        """Return `options`, with the timeout shortened if a map that starts now could exceed the deadline.

        Raises
        ------
        DeadlineExceededError
            If the deadline has passed.
        """
        if self._ends_at == inf:
            return options
        remaining_seconds = self._ends_at - time.monotonic()
        if remaining_seconds <= 0:
            raise self.make_error()
        return replace(options, timeout=remaining_seconds) if remaining_seconds < options.timeout else options

    def make_error(self) -> DeadlineExceededError:
        """Return the error to raise when the deadline has passed."""
        return DeadlineExceededError(f"the deadline of {self._seconds:g} s for all products has passed")
