"""Tests of the main loop of the fork server, in a process that the test starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from pool_processes import runs, until
from stored_calls import orders_of

from polarmap.worker.fork_server_protocol import (
    EVENT_BYTES,
    SERVER_READY,
    ForkServerCommand,
    ForkServerRequest,
    WorkerExitEvent,
)
from polarmap.worker.messages import FrameDecoder, encode_frame
from polarmap.worker.processes import ProcessIdentity, _get_start_time

SERVE = "import sys; from polarmap.worker.fork_server import main; main(int(sys.argv[1]), sys.argv[2:])"


# The program of a fork server that cannot start a process.
FULL = f"""
import os
def fork(): raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = fork
{SERVE}
"""


# The program of a fork server whose child exits between the last check for signals and the wait for a
# request.
LATE = f"""
import ctypes, operator, socket
from itertools import starmap
def recv_fds(control, size, count):
    calls = (ctypes.CDLL(None).usleep, 500_000), (control.recvmsg, size, socket.CMSG_LEN(4 * count))
    _, (data, ancillary, *_) = starmap(operator.call, calls)
    return data, [int.from_bytes(one[2], "little") for one in ancillary], 0, None
socket.recv_fds = recv_fds
{SERVE}
"""


def served(*folders: Path, program: str = SERVE) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a fork server and return it with the driver's end of its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", program, str(theirs.fileno()), *map(str, folders)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    ours.settimeout(30.0)
    assert ours.recv(1) == SERVER_READY
    return process, ours


def workers_of(control: socket.socket, count: int) -> list[tuple[int, socket.socket]]:
    """Start workers and return the process id of each and the driver's end of its socket."""
    found = []
    for number in range(count):
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(
                control, [ForkServerRequest(ForkServerCommand.FORK, number).encode()], [theirs.fileno()]
            )
        ours.settimeout(30.0)
        [message] = FrameDecoder().feed(ours.recv(4096))
        found.append((int(message.header), ours))
    return found


def test_the_exit_of_a_worker_is_reported_at_any_time(tmp_path: Path) -> None:
    process, control = served(tmp_path, program=LATE)
    with process, control:
        [(worker, ours)] = workers_of(control, 1)
        with ours:
            os.kill(worker, signal.SIGKILL)
            assert list(WorkerExitEvent.decode_all(control.recv(EVENT_BYTES))) == [(0, signal.SIGKILL)]
        control.close()


def test_a_worker_that_cannot_be_forked_is_reported_as_exited(tmp_path: Path) -> None:
    process, control = served(tmp_path, program=FULL)
    with process, control:
        for _ in range(2):
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(
                    control, [ForkServerRequest(ForkServerCommand.FORK, 0).encode()], [theirs.fileno()]
                )
            with ours:
                ours.settimeout(30.0)
                assert ours.recv(1) == b""
        control.close()
        assert process.wait(30.0) == 0


def child() -> int:
    """Start a child process and return its process id."""
    return subprocess.Popen(["sleep", "600"]).pid


def leader() -> int:
    """Start a process that leads a new session and return its process id."""
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


def daemon() -> int:
    """Start a process in a new session whose parent has exited, and return its process id."""
    heard, said = os.pipe()
    first = os.fork()
    if not first:
        os.setsid()
        if not os.fork():
            os.write(said, str(os.getpid()).encode())
            os.closerange(3, 100)
            os.execlp("sleep", "sleep", "600")
        os._exit(0)
    os.waitpid(first, 0)
    return int(os.read(heard, 20))


@pytest.mark.parametrize("killed", ["by the driver", "by others", "at the end"])
def test_processes_started_by_a_worker_end_with_it(killed: str, tmp_path: Path) -> None:
    def start(block: Any) -> Any:
        return np.array([child(), leader(), daemon()])

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # The server cannot import this module.
    orders = orders_of(start, tmp_path)
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    process, control = served(tmp_path)
    with process, control:
        [(worker, ours)] = workers_of(control, 1)
        with ours:
            ours.sendall(b"".join(map(encode_frame, orders)))
            [message] = FrameDecoder().feed(ours.recv(1 << 16))
            started = np.frombuffer(message.data, int).tolist()
            assert len(started) == 3
            assert all(map(runs, started))
            if killed == "by others":
                os.kill(worker, signal.SIGKILL)
            elif killed == "by the driver":
                control.sendall(ForkServerRequest(ForkServerCommand.KILL, 0).encode())
            else:
                control.close()
            assert until(lambda: not any(map(runs, started)))
            control.close()


@pytest.mark.parametrize("ending", ["end", "gone", "half a request"])
def test_the_fork_server_and_its_workers_end_with_the_driver(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    process, control = served(folder)
    ends = [ours for _, ours in workers_of(control, 3)]
    control.sendall(ForkServerRequest(ForkServerCommand.KILL, 1).encode())
    control.sendall(ForkServerRequest(ForkServerCommand.KILL, 99).encode())  # There is no worker 99.
    assert ends[1].recv(1) == b""
    also_open = control.dup()  # A process that the driver forked would hold such a descriptor.
    if ending == "half a request":
        control.sendall(ForkServerRequest(ForkServerCommand.FORK, 7).encode()[:3])
    if ending == "gone":
        also_open.close()
    else:
        control.shutdown(socket.SHUT_RDWR)
    control.close()
    assert process.wait(30.0) == 0
    also_open.close()
    for ours in ends:
        assert ours.recv(1) == b""
        ours.close()
    assert not os.path.exists(folder)


def folder_of(process: int, place: Path, **changes: str) -> Path:
    """Create a folder whose name marks it as owned by `process`."""
    owner = ProcessIdentity.current()._replace(
        pid=process, start_time=_get_start_time(process) or "", **changes
    )
    folder = place / f"{owner.folder_prefix}x_y"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("ending", ["worker", "server"])
def test_folders_of_a_worker_with_its_own_workers_are_removed_when_it_ends(
    ending: str, tmp_path: Path
) -> None:
    # The fork server of such a worker would remove the folders, but it is killed together with the worker.
    process, control = served(tmp_path / "polarmap-0-own")
    (number, first), (other, second) = workers_of(control, 2)
    folders = [folder_of(one, tmp_path) for one in (number, other, os.getpid())]
    if ending == "worker":
        control.sendall(ForkServerRequest(ForkServerCommand.KILL, 0).encode())
        assert until(lambda: not folders[0].exists())
        assert folders[1].exists()
    control.close()
    process.wait(30.0)
    for connection in (first, second):
        connection.close()
    assert [folder.exists() for folder in folders] == [False, False, True]


def test_folders_of_other_machines_are_kept_and_a_missing_folder_is_allowed(tmp_path: Path) -> None:
    # A process on another machine may have the same id as a worker of this machine that has exited.
    own = tmp_path / "polarmap-0-own"
    own.mkdir()
    process, control = served(tmp_path / "missing" / "polarmap-0-own", own)
    with process, control:
        [(number, connection)] = workers_of(control, 1)
        with connection:
            left, foreign = folder_of(number, tmp_path), folder_of(number, tmp_path, host="elsewhere")
            os.kill(number, signal.SIGKILL)
            assert list(WorkerExitEvent.decode_all(control.recv(EVENT_BYTES))) == [(0, signal.SIGKILL)]
            assert until(lambda: not left.exists())
        [(_, connection)] = workers_of(control, 1)
        connection.close()
        control.close()
        assert process.wait(30.0) == 0
    assert (foreign.exists(), own.exists()) == (True, False)
