"""Which sockets have news: by poll(), or by select() where there is none (Windows).

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import select
import time
from typing import Any

POLLIN = getattr(select, "POLLIN", 1)
# The other end is closed, whatever can still be read; elsewhere only select() tells, as soon as all is read.
HUNG_UP = getattr(select, "POLLRDHUP", getattr(select, "POLLHUP", POLLIN))


class SelectPoll:
    """What `select.poll` does, by select(), which knows sockets only on Windows.

    >>> SelectPoll().poll(0)
    []
    """

    def __init__(self) -> None:
        self._descriptors = dict[int, None]()

    def register(self, one: Any, event: int = POLLIN) -> None:
        """Look at this, too; whatever the event, for something to read."""
        self._descriptors[one if isinstance(one, int) else one.fileno()] = None

    def unregister(self, one: int) -> None:
        """Look at this descriptor no more."""
        del self._descriptors[one]

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        """Those that can be read, or are broken, as soon as there is one, or after so long."""
        seconds = None if milliseconds is None or milliseconds < 0 else milliseconds / 1000
        if not self._descriptors and seconds is not None:  # which Windows does not wait for
            time.sleep(seconds)
            return []
        found, _, _ = select.select(list(self._descriptors), (), (), seconds)
        return [(one, POLLIN) for one in found]


Poll: Any = getattr(select, "poll", SelectPoll)


def ready(connections: Any, event: int, seconds: float | None) -> list[Any]:
    """Those for which this is so within so many seconds, or that are broken."""
    poll, found = Poll(), dict[int, Any]()
    for connection in connections:
        poll.register(connection, event)
        found[connection.fileno()] = connection
    return [found[descriptor] for descriptor, _ in poll.poll(seconds and 1000 * max(0.0, seconds))]
