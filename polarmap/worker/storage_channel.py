"""What channels by way of a storage have in common: signs of life, and patience while it is away.

Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from polarmap.worker.frames import MISSED, Message, frame

AWAY_SECONDS = 30.0  # that a storage may be away
RETRY_SECONDS = 0.05  # before it is asked again, at first


class StorageChannel:
    """The worker's side. A sign of life tells the latest message that was received, and whether it is done.

    number : of the worker.
    beat_seconds : between signs of life.
    """

    def __init__(self, number: int, beat_seconds: float) -> None:
        self.number, self._beat_seconds = number, beat_seconds
        self.latest, self.is_idle = -1, True
        self._is_over = threading.Event()
        self._sending = threading.Lock()
        threading.Thread(target=self._give_signs, daemon=True).start()

    def receive(self, timeout: float | None) -> Any:
        """What the driver says next; None if nothing within so many seconds.

        ConnectionError when it has said goodbye, or given no sign of life for long.
        """
        self.is_idle = True
        found = self.take(timeout)
        if found is None:
            return None
        count, message = found
        has_missed_call = message[0] == "cancel" and count > self.latest + 1
        self.latest, self.is_idle = count, False
        if has_missed_call:  # which the driver would wait for
            self.send(Message(MISSED))
        return message

    def send(self, message: Message) -> None:
        """A message to the driver, put again while the storage is away."""
        sent = frame(message)
        asked_again(lambda: self._put(sent, is_sign=False))

    def close(self) -> None:
        """Give no more signs of life."""
        self._is_over.set()

    def take(self, timeout: float | None) -> tuple[int, Any] | None:
        """The driver's next message and its number; None if there is none within so many seconds."""
        raise NotImplementedError

    def put(self, data: bytes, is_sign: bool) -> None:
        """Store a message, or a sign of life, for the driver."""
        raise NotImplementedError

    def _give_signs(self) -> None:
        while not self._is_over.wait(self._beat_seconds):
            try:
                self._put(b"", is_sign=True)
            except Exception:  # the storage is away: the next one may reach it
                continue

    def _put(self, data: bytes, is_sign: bool) -> None:
        with self._sending:  # in the order of their numbers
            self.put(data, is_sign)


def asked_again(request: Callable[[], Any]) -> Any:
    """The answer of a storage that may be away for a while."""
    deadline, pause = time.monotonic() + AWAY_SECONDS, RETRY_SECONDS
    while True:
        try:
            return request()
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(1.0, 2 * pause)
