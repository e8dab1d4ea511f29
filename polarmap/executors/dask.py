"""Calls on a Dask client whose futures may be cancelled at any time.

Those of its own executor print the errors that come of it, hash all that travels, and never end on a client
that was closed before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any


class DaskCalls:
    """What takes calls for the client of `client.get_executor()`, with the options that it was made with."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call; cancelled, it cancels Dask's."""
        self._check_open()
        executor, client = self._executor, self._executor._client
        theirs = client.submit(call, *arguments, **{"pure": False, **executor._kwargs})
        executor._futures.add(theirs)  # which its shutdown cancels
        ours: Future[Any] = Future()

        def cancel(done: Future[Any]) -> None:
            with suppress(Exception):  # of a client that was closed
                if done.cancelled():
                    theirs.cancel()

        ours.add_done_callback(cancel)
        client.loop.add_callback(_pass_on, theirs, ours)
        self._check_open()  # what closes meanwhile may never answer
        return ours

    def _check_open(self) -> None:
        """RuntimeError once somebody has shut down the executor or closed its client."""
        if self._executor._shutdown or self._executor._client.status not in ("running", "connecting"):
            raise RuntimeError("its client was closed, or it was shut down")


async def _pass_on(theirs: Any, ours: Future[Any]) -> None:
    """Let the future of ours end as Dask's does, unless it was cancelled."""
    with suppress(InvalidStateError):
        try:
            result = await theirs
        except BaseException as error:
            # Of what is cancelled Dask's text differs from call to call.
            ours.set_exception(CancelledError("Dask's client cancelled it") if theirs.cancelled() else error)
        else:
            ours.set_result(result)
