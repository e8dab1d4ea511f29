"""The fork server's own loop, in a process that is forked for the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from polarmap.worker.fork_server import END, FORK, KILL, READY, REQUEST

SERVE = "import sys; from polarmap.worker.fork_server import main; main(int(sys.argv[1]), sys.argv[2:])"


def served(folder: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A server that has begun, and the driver's end of its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", SERVE, str(theirs.fileno()), str(folder)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    ours.settimeout(30.0)
    assert ours.recv(1) == READY
    return process, ours


@pytest.mark.parametrize("ending", ["end", "gone", "half a request"])
def test_it_ends_with_its_driver_and_takes_its_workers_along(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    process, control = served(folder)
    ends = [socket.socketpair() for _ in range(3)]
    for number, (_, theirs) in enumerate(ends):
        socket.send_fds(control, [REQUEST.pack(FORK, number)], [theirs.fileno()])
        theirs.close()
    for ours, _ in ends:
        ours.settimeout(30.0)
        assert ours.recv(4096)
    control.sendall(REQUEST.pack(KILL, 1))
    control.sendall(REQUEST.pack(KILL, 99))  # nobody
    assert ends[1][0].recv(1) == b""
    last = {"end": REQUEST.pack(END, 0), "gone": b"", "half a request": REQUEST.pack(FORK, 7)[:3]}
    control.sendall(last[ending])
    control.close()
    assert process.wait(30.0) == 0
    for ours, _ in ends:
        assert ours.recv(1) == b""
        ours.close()
    assert os.path.isdir(folder) == (ending == "end")
