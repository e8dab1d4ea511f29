"""Calls that the engine of a cluster runs, as futures that all end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from polarmap.worker.processes import exit_when


class EngineCalls:
    """Calls on an engine, until they are closed: each ends, also when it is cancelled, or the engine goes.

    name : of the engine, as reports tell it.
    """

    name = ""

    def __init__(self) -> None:
        self._pending = set[Future[Any]]()
        self._stop = exit_when(lambda: bool(self.gone()), self._end_all)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call; RuntimeError if the engine takes none."""
        self._check()
        ours: Future[Any] = Future()
        cancel = self._start(ours, call, *arguments)
        self._pending.add(ours)

        def end(done: Future[Any]) -> None:
            self._pending.discard(done)
            with suppress(Exception):  # of an engine that is gone
                if done.cancelled():
                    cancel()

        ours.add_done_callback(end)
        self._check()  # what goes meanwhile may never answer
        return ours

    def gone(self) -> str:
        """Why the engine answers no more; empty if it does."""
        raise NotImplementedError

    def close(self) -> None:
        """Look no more whether it is there."""
        self._stop()

    def _start(self, ours: Future[Any], call: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        """Hand a call to the engine, which ends the future of ours; what cancels it."""
        raise NotImplementedError

    def _check(self) -> None:
        if reason := self.gone():
            raise RuntimeError(reason)

    def _end_all(self) -> None:
        for ours in list(self._pending):
            end_as(ours, error=RuntimeError(self.gone()))


def end_as(ours: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Let a future end so, unless it has ended."""
    with suppress(InvalidStateError):
        if error is None:
            ours.set_result(result)
        else:
            ours.set_exception(error)
