"""A descriptor that any thread may make readable."""

from __future__ import annotations

import os
import select
import threading

import pytest

from polarmap.errors import ExecutorError
from polarmap.executors.wake_signal import WakeSignal

PATIENCE = 30.0


def is_readable(signal: WakeSignal, seconds: float = 0.0) -> bool:
    return bool(select.select([signal], [], [], seconds)[0])


@pytest.fixture(params=["eventfd", "pipe"])
def signal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> WakeSignal:
    if request.param == "pipe":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("this system has none")
    return WakeSignal()


def test_it_is_readable_from_set_to_clear_however_often_it_is_set(signal: WakeSignal) -> None:
    assert not is_readable(signal)
    for _ in range(100_000):  # more than a pipe holds
        signal.set()
    assert is_readable(signal)
    assert signal.clear()
    assert not is_readable(signal)
    assert not signal.clear()
    signal.close()


def test_another_thread_may_set_it_while_one_polls(signal: WakeSignal) -> None:
    setter = threading.Thread(target=signal.set)
    setter.start()
    assert is_readable(signal, PATIENCE)
    setter.join(PATIENCE)
    signal.close()


def test_nothing_happens_once_it_is_closed_even_if_others_have_the_number_of_its_descriptor(
    signal: WakeSignal,
) -> None:
    number = signal.fileno()
    signal.close()
    signal.close()
    other, end = os.pipe()
    try:
        assert number in (other, end)
        signal.set()
        signal.clear()
        assert not select.select([other], [], [], 0.0)[0]
        assert signal.fileno() == -1
    finally:
        os.close(other)
        os.close(end)


def test_it_closes_its_descriptors_when_it_goes(signal: WakeSignal) -> None:
    number = signal.fileno()
    # The fixture keeps the one; another has the next descriptors.
    other = WakeSignal()
    another = other.fileno()
    del other
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(another)
    os.fstat(number)
    signal.close()


def test_a_process_without_descriptors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", none_left, raising=False)
    with pytest.raises(ExecutorError, match="Too many open files"):
        WakeSignal()
