"""Run a persistent worker in an interpreter that its driver has started, and that exits with the driver.

This module runs on workers, so it imports at most numpy.
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
    """Run a persistent worker until its driver disconnects or exits.

    This is the main function of the worker process.

    Parameters
    ----------
    connection : int or str
        The inherited file descriptor of the socket that is connected to the driver; on Windows, the
        base64-encoded result of `socket.share`.
    driver_folders : sequence of str
        The driver's temporary folders. They are deleted if the driver exits without doing so.
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
        # Give the daemon thread time to remove the driver's folders. It then exits this process.
        if channel.is_peer_closed():
            time.sleep(SHUTDOWN_SECONDS)


def _exit_with_driver(driver_pipe: int, driver_folders: Sequence[str]) -> None:
    """Wait until the driver exits, then delete its temporary folders and exit this process.

    `driver_pipe` is the file descriptor of a pipe whose other end the driver keeps open.
    """
    try:
        while os.read(driver_pipe, 4096):
            pass
    finally:
        for folder in driver_folders:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
