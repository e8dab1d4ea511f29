"""Wait until sockets are readable or writable: by `poll`, or by `select` on Windows, which has no `poll`.

This module also runs on workers, so it imports only the standard library.
"""

from __future__ import annotations

import select
import time
from typing import Any

POLLIN, POLLOUT = getattr(select, "POLLIN", 1), getattr(select, "POLLOUT", 4)
# The event that reports that the peer has closed its end of a connection. POLLRDHUP is reported even if
# received bytes are unread. Systems without it report the event only after all bytes have been read.
POLL_HANGUP = getattr(select, "POLLRDHUP", getattr(select, "POLLHUP", POLLIN))


class SelectPoll:
    """A replacement for `select.poll` on Windows, based on `select.select`.

    On Windows, only sockets can be polled.

    >>> SelectPoll().poll(0)
    []
    """

    def __init__(self) -> None:
        self._event_masks = dict[int, int]()

    def register(self, fd: Any, event_mask: int = POLLIN) -> None:
        """Register a socket or file descriptor, so that `poll` waits for it.

        Parameters
        ----------
        fd : int or socket
            The file descriptor, or an object with the method `fileno`.
        event_mask : int
            POLLIN to wait until it is readable, POLLOUT to wait until it is writable, or both.
        """
        self._event_masks[fd if isinstance(fd, int) else fd.fileno()] = event_mask

    def unregister(self, fd: int) -> None:
        """Remove a file descriptor, so that `poll` no longer waits for it."""
        del self._event_masks[fd]

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        """Wait until a file descriptor is ready, and return (descriptor, events) pairs.

        Return an empty list if none is ready after `timeout_ms` milliseconds. If the timeout is None or
        negative, wait indefinitely.
        """
        timeout_seconds = None if timeout_ms is None or timeout_ms < 0 else timeout_ms / 1000
        # On Windows, `select` raises an error if there are no sockets.
        if not self._event_masks and timeout_seconds is not None:
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
    """Wait until at least one of several sockets is ready, and return the list of ready sockets.

    Parameters
    ----------
    connections : iterable
        The sockets, or other objects with the method `fileno`. A broken connection counts as ready.
    event_mask : int
        The events to wait for, such as POLLIN | POLLOUT.
    timeout : float or None
        The maximum number of seconds to wait, after which an empty list is returned; None to wait
        indefinitely.
    """
    poll, connection_by_fd = Poll(), dict[int, Any]()
    for connection in connections:
        poll.register(connection, event_mask)
        connection_by_fd[connection.fileno()] = connection
    return [connection_by_fd[fd] for fd, _ in poll.poll(timeout and 1000 * max(0.0, timeout))]
