"""Requests that are made again: the storage may only be away for a moment, restarting, or too busy.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

AWAY_SECONDS = 30.0  # that a storage which has answered before may be away
FIRST_PAUSE = 0.1  # seconds before it is asked again, then twice as long each time

Result = TypeVar("Result")

_BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504")
# By name: whichever library raises them need not be installed here.
_BROKEN = (
    *("Connection", "Connect", "Timeout", "Timed", "Incomplete", "Protocol", "Streaming", "BusyLoading"),
    *("FileNotFound", "FileExists"),  # a storage of files removes empty folders while others write there
)


def retry_call(request: Callable[[], Result], seconds: float = AWAY_SECONDS) -> Result:
    """The answer to a request, which is made again for so long while it may yet succeed.

    >>> retry_call(iter([1, 2]).__next__, seconds=0.0)
    1
    """
    deadline, pause = monotonic() + seconds, FIRST_PAUSE
    while True:
        try:
            return request()
        except Exception as error:
            if not is_transient(error) or monotonic() + pause > deadline:
                raise
        sleep(pause)
        pause = min(2 * pause, 1.0)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    code = s3_error_code(error)
    if code:
        return code in _BUSY
    names = [one.__name__ for one in type(error).__mro__]
    if any("Auth" in name for name in names):
        return False
    return any(part in name for name in names for part in _BROKEN)


def s3_error_code(error: Exception) -> str:
    """The code in an answer of S3; empty if it is none."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
