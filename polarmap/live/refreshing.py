"""Refresh a view on a thread that sleeps most of the time, and select the maps that the view shows.

The views in a terminal and in a notebook share this module. A `Refresher` repeats an update, at the pace of
`polarmap.live.pace`. Each update takes a snapshot, from which a `ViewScope` removes the maps, fits and calls
that had finished before the view started: snapshot source -> `ViewScope` -> view.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from polarmap.live.pace import compute_pause_seconds
from polarmap.live.snapshots import ProgramSnapshot

LOG = logging.getLogger("polarmap")

MIN_INTERVAL = 0.25  # seconds between updates
# Maximum seconds that `close` waits for the thread to end. A terminal that accepts no output can block the
# thread for longer.
CLOSE_TIMEOUT = 1.0


class SnapshotSource(Protocol):
    """A function that returns the state of a program, such as `LiveHub.take_snapshot`."""

    def __call__(self, is_final: bool = False) -> ProgramSnapshot:
        """Return the state of the program.

        If `is_final` is False, the source may return an earlier snapshot that is still recent.
        """


class Refresher:
    """Calls a function repeatedly on a daemon thread, to update a live view.

    The pauses between the calls are long enough that the function runs for at most 4 % of the time. If it
    raises an exception, the exception is logged at level DEBUG, and the thread ends. The maps are not
    affected.

    Parameters
    ----------
    refresh : callable
        The function. It is called without arguments, and returns whether to call it again.
    min_interval : float
        The minimum number of seconds between two calls, and before the first one.
    """

    def __init__(self, refresh: Callable[[], bool], min_interval: float = MIN_INTERVAL) -> None:
        self._refresh, self._min_interval = refresh, min_interval
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._refresh_until_closed, name="polarmap-view", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Ask the thread to end, wait for up to a second, and return whether it has ended."""
        self._is_closed.set()
        if self._thread is None or self._thread is threading.current_thread():
            return True
        self._thread.join(CLOSE_TIMEOUT)
        return not self._thread.is_alive()

    def _refresh_until_closed(self) -> None:
        interval, is_wanted = self._min_interval, True
        try:
            while is_wanted and not self._is_closed.wait(interval):
                started_at = time.perf_counter()
                is_wanted = self._refresh()
                interval = compute_pause_seconds(time.perf_counter() - started_at, self._min_interval)
        except Exception:
            LOG.debug("a live view ended with an exception", exc_info=True)


class ViewScope:
    """Selects the maps, fits and calls of a program that a view shows.

    By default, a view leaves out everything that had finished before the view was opened.

    Parameters
    ----------
    initial : ProgramSnapshot or None
        The state of the program when the view starts. Maps, fits and calls that are finished in this snapshot
        are left out. None selects everything.
    """

    def __init__(self, initial: ProgramSnapshot | None) -> None:
        maps = () if initial is None else initial.maps
        iterations = () if initial is None else initial.iterations
        executors = () if initial is None else initial.executors
        self._finished_ids = {one_map.map_id for one_map in maps if not one_map.is_running}
        self._finished_iterations = [iteration for iteration in iterations if not iteration.is_running]
        self._idle_executors = [executor for executor in executors if not executor.is_running]
        self._n_finished_maps = 0 if initial is None else initial.n_finished_maps

    def select(self, snapshot: ProgramSnapshot) -> ProgramSnapshot:
        """Return the snapshot without the maps, fits and calls that had finished before the view started."""
        return replace(
            snapshot,
            n_finished_maps=max(0, snapshot.n_finished_maps - self._n_finished_maps),
            maps=tuple(one for one in snapshot.maps if one.map_id not in self._finished_ids),
            iterations=tuple(one for one in snapshot.iterations if one not in self._finished_iterations),
            executors=tuple(one for one in snapshot.executors if one not in self._idle_executors),
        )
