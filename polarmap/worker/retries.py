"""Requests that are made again: the storage may only be away for a moment, restarting, or too busy.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

OUTAGE_SECONDS = 30.0  # that a storage which has answered before may be away
MIN_RETRY_PAUSE = 0.1  # seconds before it is asked again, then twice as long each time

Result = TypeVar("Result")

_BUSY_CODES = (
    *("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"),
    *("500", "502", "503", "504"),
)
# By name: whichever library raises them need not be installed here.
_TRANSIENT_ERROR_NAMES = (
    *("Connection", "Connect", "Timeout", "Timed", "Incomplete", "Protocol", "Streaming", "BusyLoading"),
    *("FileNotFound", "FileExists"),  # a storage of files removes empty folders while others write there
)


def retry_request(request: Callable[[], Result], timeout: float = OUTAGE_SECONDS) -> Result:
    """The answer to a request, which is made again for so long while it may yet succeed.

    >>> retry_request(iter([1, 2]).__next__, timeout=0.0)
    1
    """
    deadline, pause = monotonic() + timeout, MIN_RETRY_PAUSE
    while True:
        try:
            return request()
        except Exception as error:
            if not is_transient_error(error) or monotonic() + pause > deadline:
                raise
        sleep(pause)
        pause = min(2 * pause, 1.0)


def is_transient_error(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    code = get_s3_error_code(error)
    if code:
        return code in _BUSY_CODES
    names = [error_class.__name__ for error_class in type(error).__mro__]
    if any("Auth" in name for name in names):
        return False
    return any(name_part in name for name in names for name_part in _TRANSIENT_ERROR_NAMES)


def get_s3_error_code(error: Exception) -> str:
    """The code in an answer of S3; empty if it is none."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
