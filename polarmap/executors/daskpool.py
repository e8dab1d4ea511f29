"""Dask's executor with futures of ours, that may be cancelled at any time.

Dask fulfils a future although it was cancelled, and prints the error that this is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any


def is_of_dask(pool: Any) -> bool:
    """Whether it is what `client.get_executor()` gives."""
    return type(pool).__module__.startswith("distributed.") and hasattr(pool, "_client")


class DaskPool:
    """What takes calls for the client of such an executor, with the options it was made with."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """The future of a call; cancelled, it cancels Dask's."""
        if self._pool._shutdown:
            raise RuntimeError("it was shut down")
        client = self._pool._client
        theirs, ours = client.submit(call, *arguments, **self._pool._kwargs), Future[Any]()

        def cancel(done: Future[Any]) -> None:
            if done.cancelled():
                done.set_running_or_notify_cancel()  # whoever waits for it may go on
                theirs.cancel()

        async def pass_on() -> None:
            try:
                result = await theirs
            except BaseException as error:
                with contextlib.suppress(InvalidStateError):
                    ours.set_exception(error)
            else:
                with contextlib.suppress(InvalidStateError):
                    ours.set_result(result)

        ours.add_done_callback(cancel)
        client.loop.add_callback(pass_on)
        return ours
