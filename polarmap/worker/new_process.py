"""A worker in an interpreter of its own, which its driver has started: it ends with that.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from polarmap.worker.kept_worker import ChannelIO
from polarmap.worker.processes import END_SECONDS
from polarmap.worker.stream import worker_stream
from polarmap.worker.threads import run_on_daemon


def main(connection: int | str, folders: Sequence[str]) -> None:
    """Serve the driver.

    connection : the socket to it, as it is inherited, or as Windows shares it.
    folders : of the driver, removed by us if it dies before it can.
    """
    lifeline, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    run_on_daemon(partial(_end_with_driver, lifeline, folders))
    sockets: Any = socket
    if isinstance(connection, int):
        theirs = socket.socket(fileno=connection)
    else:
        theirs = sockets.fromshare(base64.b64decode(connection))
    with theirs:
        stream = worker_stream(theirs)
        ChannelIO(stream).serve()
        if stream.is_closed():  # the driver is gone: that thread removes its folders, and ends us
            time.sleep(END_SECONDS)


def _end_with_driver(lifeline: int, folders: Sequence[str]) -> None:
    """End this process when nobody has the other end of a pipe any more."""
    try:
        while os.read(lifeline, 4096):
            pass
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
