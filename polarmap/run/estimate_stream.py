"""Estimates of a running map, for whoever waits for one: the latest, made only if it is wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class NumberedEstimate(NamedTuple):
    """An estimate, and from how many results it was made."""

    arrived: int
    value: Any


class EstimateStream:
    """Hands estimates from the thread of a map to others, each of which gets the latest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = 0
        self._latest: NumberedEstimate | None = None
        self._is_over = False

    def offer(self, arrived: int, make: Callable[[], Any]) -> None:
        """Make an estimate from so many results if somebody waits for it."""
        with self._changed:
            is_new = self._latest is None or self._latest.arrived != arrived
            is_wanted = self._waiting > 0 and is_new
        if is_wanted and (value := make()) is not None:
            with self._changed:
                self._latest = NumberedEstimate(arrived, value)
                self._changed.notify_all()

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def after(self, seen: int, ask: Callable[[], None]) -> NumberedEstimate | None:
        """Wait for an estimate from other than `seen` results; None when the map is over.

        ask : lets the map look up.
        """

        def is_there() -> bool:
            return self._is_over or (self._latest is not None and self._latest.arrived != seen)

        with self._changed:
            self._waiting += 1
        ask()
        with self._changed:
            try:
                self._changed.wait_for(is_there)
            finally:
                self._waiting -= 1
            return None if self._is_over else self._latest
