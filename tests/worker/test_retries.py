"""Tests that requests are retried after transient errors, with growing pauses, up to a time limit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polarmap.worker.retries import is_transient_error, retry_request


class ConnectTimeoutError(Exception):
    """A copy of the error of botocore, which may not be installed."""


class AuthenticationConnectionError(Exception):
    """An error like that of redis for a wrong password, for which retrying is useless."""


class ClientError(Exception):
    """An error response of S3 with an error code."""

    def __init__(self, code: str) -> None:
        self.response = {"Error": {"Code": code}}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of pauses, recorded with a fake clock."""
    recorded: list[float] = []
    monkeypatch.setattr("polarmap.worker.retries.sleep", recorded.append)
    monkeypatch.setattr("polarmap.worker.retries.monotonic", lambda: sum(recorded))
    return recorded


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [error] * times

    def request() -> str:
        if left:
            raise left.pop()
        return "answer"

    return request


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectTimeoutError(), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (FileNotFoundError(), True),
        (FileExistsError(), True),
        (ClientError("SlowDown"), True),
        (ClientError("503"), True),
        (ClientError("NoSuchBucket"), False),
        (ClientError("AccessDenied"), False),
        (AuthenticationConnectionError(), False),
        (ValueError(), False),
    ],
    ids=repr,
)
def test_which_errors_are_transient(error: Exception, passes: bool) -> None:
    assert is_transient_error(error) == passes


def test_pauses_double_up_to_a_second(pauses: list[float]) -> None:
    assert retry_request(failing(6, TimeoutError()), timeout=30.0) == "answer"
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_the_last_error_is_raised_after_the_time_limit(pauses: list[float]) -> None:
    with pytest.raises(TimeoutError):
        retry_request(failing(99, TimeoutError()), timeout=1.0)
    assert sum(pauses) <= 1.0


def test_permanent_errors_are_raised_immediately(pauses: list[float]) -> None:
    with pytest.raises(ClientError):
        retry_request(failing(1, ClientError("NoSuchBucket")), timeout=30.0)
    assert pauses == []
