"""Which sockets have news: by poll(), or by select() where there is none (Windows).

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import select
import time
from typing import Any

POLLIN, POLLOUT = getattr(select, "POLLIN", 1), getattr(select, "POLLOUT", 4)
# The other end is closed, whatever can still be read; elsewhere only select() tells, as soon as all is read.
HUNG_UP = getattr(select, "POLLRDHUP", getattr(select, "POLLHUP", POLLIN))


class SelectPoll:
    """What `select.poll` does, by select(), which knows sockets only on Windows.

    >>> SelectPoll().poll(0)
    []
    """

    def __init__(self) -> None:
        self._descriptors = dict[int, int]()

    def register(self, one: Any, event: int = POLLIN) -> None:
        """Look at this, too: whether it can be read, written if `event` is POLLOUT, or either of both."""
        self._descriptors[one if isinstance(one, int) else one.fileno()] = event

    def unregister(self, one: int) -> None:
        """Look at this descriptor no more."""
        del self._descriptors[one]

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        """Those that can be read or written, or are broken, as soon as there is one, or after so long."""
        seconds = None if milliseconds is None or milliseconds < 0 else milliseconds / 1000
        if not self._descriptors and seconds is not None:  # which Windows does not wait for
            time.sleep(seconds)
            return []
        read = [one for one, event in self._descriptors.items() if event != POLLOUT]
        write = [one for one, event in self._descriptors.items() if event & POLLOUT]
        readable, writable, _ = select.select(read, write, (), seconds)
        events = dict.fromkeys(readable, POLLIN)
        for one in writable:
            events[one] = events.get(one, 0) | POLLOUT
        return list(events.items())


Poll: Any = getattr(select, "poll", SelectPoll)


def ready(connections: Any, event: int, seconds: float | None) -> list[Any]:
    """Those for which this is so within so many seconds, or that are broken."""
    poll, found = Poll(), dict[int, Any]()
    for connection in connections:
        poll.register(connection, event)
        found[connection.fileno()] = connection
    return [found[descriptor] for descriptor, _ in poll.poll(seconds and 1000 * max(0.0, seconds))]
