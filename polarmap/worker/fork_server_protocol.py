"""The requests of a driver to the fork server of its local workers, and the events that it reports.

Runs in the fork server too: imports the standard library only.
"""

from __future__ import annotations

import struct

FORK_SERVER_REQUEST = struct.Struct(">cQ")  # a command and the id of a worker
FORK_COMMAND, KILL_COMMAND = b"f", b"k"
SERVER_READY = b"r"  # the first byte that the fork server sends
WORKER_EXIT_EVENT = struct.Struct(">Qi")  # the id of a worker that has ended, and its wait status
