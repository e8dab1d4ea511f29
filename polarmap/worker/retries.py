"""Retry requests to a storage that is unreachable, restarting or overloaded for a short time.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

OUTAGE_SECONDS = 30.0  # seconds for which requests to an unreachable storage are retried
MIN_RETRY_PAUSE = 0.1  # seconds before the first retry; the pause doubles each time, up to 1 s

Result = TypeVar("Result")

_BUSY_CODES = (
    *("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"),
    *("500", "502", "503", "504"),
)
# Parts of class names: the libraries that raise these errors need not be installed here.
_TRANSIENT_ERROR_NAMES = (
    *("Connection", "Connect", "Timeout", "Timed", "Incomplete", "Protocol", "Streaming", "BusyLoading"),
    *("FileNotFound", "FileExists"),  # A file-based storage may remove an empty folder during a write.
)


def retry_request(request: Callable[[], Result], timeout: float = OUTAGE_SECONDS) -> Result:
    """Call `request` and return its result; retry after transient errors.

    Pauses start at MIN_RETRY_PAUSE and double up to one second. The last error is raised when the next pause
    would exceed `timeout` seconds, and any other error immediately.

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
    """Return whether the same request may succeed if it is retried."""
    code = get_s3_error_code(error)
    if code:
        return code in _BUSY_CODES
    names = [error_class.__name__ for error_class in type(error).__mro__]
    if any("Auth" in name for name in names):
        return False
    return any(name_part in name for name in names for name_part in _TRANSIENT_ERROR_NAMES)


def get_s3_error_code(error: Exception) -> str:
    """Return the error code in the response of S3, or "" if the error has no such response."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
