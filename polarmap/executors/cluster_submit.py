"""Calls that the engine of a cluster runs, as futures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any


class ClusterSubmitter:
    """Calls on an engine: their futures may never end when it goes.

    name : of the engine, as reports tell it.
    """

    name = ""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call, with which that is cancelled; RuntimeError if the engine takes none."""
        if unavailable := self.get_unavailable_reason():
            raise RuntimeError(unavailable)
        future: Future[Any] = Future()
        cancel = self._start_remote_call(future, call, *arguments)

        def cancel_if_cancelled(done_future: Future[Any]) -> None:
            with suppress(Exception):  # of an engine that is gone
                if done_future.cancelled():
                    cancel()

        future.add_done_callback(cancel_if_cancelled)
        return future

    def get_unavailable_reason(self) -> str:
        """Why the engine answers no more; empty if it does."""
        raise NotImplementedError

    def _start_remote_call(
        self, future: Future[Any], call: Callable[..., Any], *arguments: Any
    ) -> Callable[[], object]:
        """Hand a call to the engine, which ends the future of ours; what cancels it."""
        raise NotImplementedError


def complete_future(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Let a future end so, unless it has ended."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
