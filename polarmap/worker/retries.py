"""Retry requests to a storage that is unreachable, restarting or overloaded for a short time.

This module also runs on workers, so it imports only the standard library.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

OUTAGE_SECONDS = 30.0  # how long requests to an unavailable storage are retried, in seconds
MIN_RETRY_PAUSE = 0.1  # seconds before the first retry; the pause doubles each time, up to 1 s

Result = TypeVar("Result")

_BUSY_CODES = (
    *("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"),
    *("500", "502", "503", "504"),
)
# Errors are recognized by parts of their class names, because the libraries that define them may not be
# installed.
_TRANSIENT_ERROR_NAMES = (
    *("Connection", "Connect", "Timeout", "Timed", "Incomplete", "Protocol", "Streaming", "BusyLoading"),
    # A storage in a file system raises these if it removes an empty folder while a file is being written to
    # it.
    *("FileNotFound", "FileExists"),
)


def retry_request(request: Callable[[], Result], timeout: float = OUTAGE_SECONDS) -> Result:
    """Call `request` and return its result, with retries after transient errors.

    The pauses between calls start at MIN_RETRY_PAUSE seconds, and double up to one second (exponential
    backoff). After `timeout` seconds, the last error is raised. Other errors are raised immediately.

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
    """Return whether a storage error may be temporary, so that the request is worth retrying."""
    code = get_s3_error_code(error)
    if code:
        return code in _BUSY_CODES
    names = [error_class.__name__ for error_class in type(error).__mro__]
    if any("Auth" in name for name in names):
        return False
    return any(name_part in name for name in names for name_part in _TRANSIENT_ERROR_NAMES)


def get_s3_error_code(error: Exception) -> str:
    """Return the S3 error code, such as "NoSuchKey", or "" if the error is not an S3 response."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
