"""Tests of a worker in a separate interpreter, with a socket in place of a driver."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from polarmap.worker.messages import MessageKind
from polarmap.worker.socket_channel import SocketChannel

PROGRAM = """
import json, socket, sys
from polarmap.worker import spawned_worker
# On Windows, socket.fromshare restores a socket from bytes.
socket.fromshare = lambda data: socket.socket(fileno=int(data))
spawned_worker.main(json.loads(sys.argv[1]), [sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("is_shared", "disconnects"),
    [(False, False), (True, False), (False, True)],
    ids=["", "shared", "hung up"],
)
def test_a_worker_reports_its_process_and_removes_the_folder_when_stdin_closes(
    is_shared: bool, disconnects: bool, tmp_path: Path
) -> None:
    # A driver that dies closes the connection and the standard input one after the other, in any order.
    driver_end, worker_end = socket.socketpair()
    (tmp_path / "folder").mkdir()
    number = worker_end.fileno()
    socket_argument = base64.b64encode(str(number).encode()).decode() if is_shared else number
    command = [sys.executable, "-c", PROGRAM, json.dumps(socket_argument), str(tmp_path / "folder")]
    with driver_end, subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number]) as process:
        worker_end.close()
        channel = SocketChannel(driver_end)
        [message], _ = channel.receive(60.0)
        assert message == (MessageKind.HELLO, (-1, -1, -1), str(process.pid).encode(), b"", False)
        assert process.stdin is not None
        if disconnects:
            driver_end.shutdown(socket.SHUT_RDWR)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        process.stdin.close()
        assert process.wait(60.0) == 0
    assert os.listdir(tmp_path) == []
