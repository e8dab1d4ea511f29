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

from polarmap.worker.daemon_threads import run_in_daemon_thread
from polarmap.worker.persistent_worker import PersistentWorker
from polarmap.worker.processes import SHUTDOWN_SECONDS
from polarmap.worker.socket_channel import make_worker_channel


def main(connection: int | str, driver_folders: Sequence[str]) -> None:
    """Serve the driver.

    connection : the socket to it, as it is inherited, or as Windows shares it.
    driver_folders : of the driver, removed by us if it dies before it can.
    """
    driver_pipe, null_fd = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.close(null_fd)
    run_in_daemon_thread(partial(_exit_with_driver, driver_pipe, driver_folders))
    socket_module: Any = socket
    if isinstance(connection, int):
        driver_socket = socket.socket(fileno=connection)
    else:
        driver_socket = socket_module.fromshare(base64.b64decode(connection))
    with driver_socket:
        channel = make_worker_channel(driver_socket)
        PersistentWorker(channel).serve()
        if channel.is_peer_closed():  # the driver is gone: that thread removes its folders, and ends us
            time.sleep(SHUTDOWN_SECONDS)


def _exit_with_driver(driver_pipe: int, driver_folders: Sequence[str]) -> None:
    """End this process when nobody has the other end of a pipe any more."""
    try:
        while os.read(driver_pipe, 4096):
            pass
    finally:
        for folder in driver_folders:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
