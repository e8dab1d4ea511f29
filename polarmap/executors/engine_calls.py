"""Calls that the engine of a cluster runs, as futures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any


class EngineCalls:
    """Calls on an engine: their futures may never end when it goes.

    name : of the engine, as reports tell it.
    """

    name = ""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call, with which that is cancelled; RuntimeError if the engine takes none."""
        if reason := self.gone():
            raise RuntimeError(reason)
        ours: Future[Any] = Future()
        cancel = self._start(ours, call, *arguments)

        def end(done: Future[Any]) -> None:
            with suppress(Exception):  # of an engine that is gone
                if done.cancelled():
                    cancel()

        ours.add_done_callback(end)
        return ours

    def gone(self) -> str:
        """Why the engine answers no more; empty if it does."""
        raise NotImplementedError

    def _start(self, ours: Future[Any], call: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        """Hand a call to the engine, which ends the future of ours; what cancels it."""
        raise NotImplementedError


def end_as(ours: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Let a future end so, unless it has ended."""
    with suppress(InvalidStateError):
        if error is None:
            ours.set_result(result)
        else:
            ours.set_exception(error)
