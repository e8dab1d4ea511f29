"""WakeSignal: it is readable from set to clear, and its descriptors are closed in time."""

from __future__ import annotations

import os
import select
import socket
from typing import Any

import pytest
from pool_processes import code_of_child

from polarmap.errors import ExecutorError
from polarmap.executors import wake_signal
from polarmap.executors.wake_signal import WakeSignal
from polarmap.worker.polling import wait_until_ready


def readable(signal: WakeSignal) -> bool:
    return bool(wait_until_ready([signal], select.POLLIN, 0.0))


def test_signal_is_readable_from_set_to_clear() -> None:
    signal = WakeSignal()
    assert not readable(signal)
    for _ in range(100_000):  # more bytes than a pipe can hold
        signal.set()
    assert readable(signal)
    assert signal.clear()
    assert not readable(signal)
    assert not signal.clear()
    signal.close()


def test_closed_signal_does_not_affect_reused_descriptors() -> None:
    # Threads of other tests may open a file that gets the same descriptor, so several attempts are made.
    for _ in range(100):
        signal = WakeSignal()
        number = signal.fileno()
        signal.close()
        signal.close()
        other, end = os.pipe()
        if number in (other, end):
            break
        os.close(other)
        os.close(end)
    try:
        assert number in (other, end)
        signal.set()
        signal.clear()
        assert not select.select([other], [], [], 0.0)[0]
        assert signal.fileno() == -1
    finally:
        os.close(other)
        os.close(end)


def test_closing_during_set_does_not_write_to_a_reused_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ClosedMeanwhile(wake_signal._SendSocket):
        """A socket that another thread closes after this thread has looked up its descriptor."""

        def send(self, *arguments: Any) -> int:
            number = self.fileno()
            signal.close()
            numbers.append((number, self.fileno()))
            return super().send(*arguments)

    numbers = list[tuple[int, int]]()
    monkeypatch.setattr(wake_signal, "_SendSocket", ClosedMeanwhile)
    signal = WakeSignal()
    signal.set()
    [(before, after)] = numbers
    assert before == after
    with pytest.raises(OSError, match="descriptor"):  # the descriptor is closed now
        os.fstat(before)


def test_signal_closes_its_descriptors_when_deleted() -> None:
    signal = WakeSignal()
    assert signal._write_socket is not None
    descriptors = signal._read_socket.fileno(), signal._write_socket.fileno()
    del signal
    for number in descriptors:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(number)


def test_forked_child_closes_only_its_copy() -> None:
    signal = WakeSignal()
    assert code_of_child(signal.close, []) == 0
    signal.set()
    assert readable(signal)
    signal.close()


def test_missing_descriptors_raise_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", none_left)
    with pytest.raises(ExecutorError, match="Too many open files"):
        WakeSignal()
