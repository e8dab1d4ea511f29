"""Wait until sockets are readable or writable: by `poll`, or by `select` on Windows, which has no `poll`.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import select
import time
from typing import Any

POLLIN, POLLOUT = getattr(select, "POLLIN", 1), getattr(select, "POLLOUT", 4)
# The peer has closed its end, even if bytes remain to be read. Where this flag does not exist, a closed end
# is noticed only after all bytes have been read.
POLL_HANGUP = getattr(select, "POLLRDHUP", getattr(select, "POLLHUP", POLLIN))


class SelectPoll:
    """A replacement for `select.poll` based on `select.select`, which supports only sockets on Windows.

    >>> SelectPoll().poll(0)
    []
    """

    def __init__(self) -> None:
        self._event_masks = dict[int, int]()

    def register(self, fd: Any, event_mask: int = POLLIN) -> None:
        """Let `poll` watch a socket or descriptor, too.

        Parameters
        ----------
        fd : int or socket
        event_mask : int
            POLLIN to wait until it is readable, POLLOUT until it is writable, or both.
        """
        self._event_masks[fd if isinstance(fd, int) else fd.fileno()] = event_mask

    def unregister(self, fd: int) -> None:
        """Stop watching a descriptor."""
        del self._event_masks[fd]

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        """Wait until a descriptor is ready or broken, and return (descriptor, events) pairs.

        Return an empty list after `timeout_ms` milliseconds. None or a negative value: no time limit.
        """
        timeout_seconds = None if timeout_ms is None or timeout_ms < 0 else timeout_ms / 1000
        if not self._event_masks and timeout_seconds is not None:  # Windows rejects a call without sockets.
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
    """Wait until an event of `event_mask` occurs on a connection, and return the ready or broken connections.

    Return an empty list after `timeout` seconds. None: no time limit.
    """
    poll, connection_by_fd = Poll(), dict[int, Any]()
    for connection in connections:
        poll.register(connection, event_mask)
        connection_by_fd[connection.fileno()] = connection
    return [connection_by_fd[fd] for fd, _ in poll.poll(timeout and 1000 * max(0.0, timeout))]
