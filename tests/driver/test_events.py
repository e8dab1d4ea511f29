"""Tests of event streams and their observers, of cancellation tokens, and of counts of stripes."""

from __future__ import annotations

import math

import pytest

from polarmap.driver.events import (
    BlockReady,
    CancellationToken,
    EventStream,
    JobCancelled,
    JobContext,
    JobEvent,
    JobFinished,
    JobPolled,
    Observer,
    ResultCallback,
    StripesEncoded,
)


class RecordingObserver(Observer):
    """An observer that appends events to a list, which several observers may share."""

    def __init__(self, notes: list[tuple[int, JobEvent]], number: int, poll_interval: float) -> None:
        self.notes, self.number, self.poll_interval = notes, number, poll_interval

    def on_event(self, event: JobEvent) -> None:
        self.notes.append((self.number, event))


def test_observers_get_each_event_in_their_order_and_the_last_one_in_reverse() -> None:
    notes: list[tuple[int, JobEvent]] = []
    events = EventStream(
        [
            RecordingObserver(notes, 0, math.inf),
            RecordingObserver(notes, 1, 0.5),
            RecordingObserver(notes, 2, 2.0),
        ]
    )
    polled, finished = JobPolled(3), JobFinished(None)
    events.emit(polled)
    events.emit_final_event(finished)
    assert notes == [(0, polled), (1, polled), (2, polled), (2, finished), (1, finished), (0, finished)]
    assert events.poll_interval == 0.5
    assert EventStream([]).poll_interval == math.inf


def test_a_callback_gets_results_that_are_final() -> None:
    calls: list[tuple[int, str]] = []
    callback = ResultCallback(lambda index, result: calls.append((index, result)))
    for event in (
        BlockReady(1, lambda: "unchecked", is_final=False),
        JobPolled(1),
        BlockReady(1, lambda: "one", is_final=True),
    ):
        callback.on_event(event)
    assert calls == [(1, "one")]


def test_a_token_wakes_the_job_while_it_is_open_and_cancels_it_at_any_time() -> None:
    token, calls = CancellationToken(), list[str]()
    token.wake()
    token.set_wake_function(lambda: calls.append("woken"))
    token.wake()
    token.raise_if_cancelled()
    token.cancel()
    assert calls == ["woken"] * 2
    token.set_wake_function(None)
    token.cancel()
    assert calls == ["woken"] * 2
    with pytest.raises(JobCancelled):
        token.raise_if_cancelled()


def test_stripes_are_counted_from_none_to_the_end() -> None:
    notes: list[tuple[int, JobEvent]] = []
    token = CancellationToken()
    context = JobContext(EventStream([RecordingObserver(notes, 0, math.inf)]), token)
    with context.track_encoding_progress(3) as show:
        show(2)
        token.cancel()
        with pytest.raises(JobCancelled):
            show(3)
    assert [event for _, event in notes] == [StripesEncoded(0, 3), StripesEncoded(2, 3), JobFinished(None)]
    with JobContext().track_encoding_progress(3) as show:
        show(1)
