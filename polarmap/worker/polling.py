"""Which sockets have news: by poll(), or by select() where there is none (Windows).

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import select
import time
from typing import Any

POLLIN, POLLOUT = getattr(select, "POLLIN", 1), getattr(select, "POLLOUT", 4)
# The other end is closed, whatever can still be read; elsewhere only select() tells, as soon as all is read.
POLL_HANGUP = getattr(select, "POLLRDHUP", getattr(select, "POLLHUP", POLLIN))


class SelectPoll:
    """What `select.poll` does, by select(), which knows sockets only on Windows.

    >>> SelectPoll().poll(0)
    []
    """

    def __init__(self) -> None:
        self._event_masks = dict[int, int]()

    def register(self, fd: Any, event_mask: int = POLLIN) -> None:
        """Look at this, too: whether it can be read, written if `event_mask` is POLLOUT, or either of
        both.
        """
        self._event_masks[fd if isinstance(fd, int) else fd.fileno()] = event_mask

    def unregister(self, fd: int) -> None:
        """Look at this descriptor no more."""
        del self._event_masks[fd]

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        """Those that can be read or written, or are broken, as soon as there is one, or after so long."""
        timeout_seconds = None if timeout_ms is None or timeout_ms < 0 else timeout_ms / 1000
        if not self._event_masks and timeout_seconds is not None:  # which Windows does not wait for
            time.sleep(timeout_seconds)
            return []
        read_fds = [fd for fd, event in self._event_masks.items() if event != POLLOUT]
        write_fds = [fd for fd, event in self._event_masks.items() if event & POLLOUT]
        readable, writable, _ = select.select(read_fds, write_fds, (), timeout_seconds)
        events = dict.fromkeys(readable, POLLIN)
        for fd in writable:
            events[fd] = events.get(fd, 0) | POLLOUT
        return list(events.items())


Poll: Any = getattr(select, "poll", SelectPoll)


def wait_until_ready(connections: Any, event_mask: int, timeout: float | None) -> list[Any]:
    """Those for which this is so within so many seconds, or that are broken."""
    poll, connection_by_fd = Poll(), dict[int, Any]()
    for connection in connections:
        poll.register(connection, event_mask)
        connection_by_fd[connection.fileno()] = connection
    return [connection_by_fd[fd] for fd, _ in poll.poll(timeout and 1000 * max(0.0, timeout))]
