"""Tests of the encoding of requests to the fork server and of its events."""

from __future__ import annotations

import pytest

from polarmap.worker.fork_server_protocol import (
    EVENT_BYTES,
    REQUEST_BYTES,
    ForkServerCommand,
    ForkServerRequest,
    WorkerExitEvent,
)


@pytest.mark.parametrize("command", ForkServerCommand)
@pytest.mark.parametrize("worker_id", [0, 2**63])
def test_a_request_arrives_as_it_was_sent(command: ForkServerCommand, worker_id: int) -> None:
    request = ForkServerRequest(command, worker_id)
    assert len(request.encode()) == REQUEST_BYTES
    assert ForkServerRequest.decode(request.encode()) == request


def test_events_that_arrive_together_are_all_decoded() -> None:
    events = [WorkerExitEvent(0, 9), WorkerExitEvent(2**40, -1)]
    data = b"".join(event.encode() for event in events)
    assert len(data) == 2 * EVENT_BYTES
    assert list(WorkerExitEvent.decode_all(data)) == events
