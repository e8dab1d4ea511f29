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


def start_fork_server(*folders: Path, program: str = SERVE) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a fork server and return it with the driver's end of its socket."""
    driver_end, worker_end = socket.socketpair()
    with worker_end:
        command = [sys.executable, "-c", program, str(worker_end.fileno()), *map(str, folders)]
        process = subprocess.Popen(command, pass_fds=[worker_end.fileno()])
    driver_end.settimeout(30.0)
    assert driver_end.recv(1) == SERVER_READY
    return process, driver_end


def fork_workers(control: socket.socket, count: int) -> list[tuple[int, socket.socket]]:
    """Start workers and return the process id of each and the driver's end of its socket."""
    workers = []
    for number in range(count):
        driver_end, worker_end = socket.socketpair()
        with worker_end:
            socket.send_fds(
                control, [ForkServerRequest(ForkServerCommand.FORK, number).encode()], [worker_end.fileno()]
            )
        driver_end.settimeout(30.0)
        [message] = FrameDecoder().feed(driver_end.recv(4096))
        workers.append((int(message.header), driver_end))
    return workers


def test_the_exit_of_a_worker_is_reported_at_any_time(tmp_path: Path) -> None:
    process, control = start_fork_server(tmp_path, program=LATE)
    with process, control:
        [(worker, driver_end)] = fork_workers(control, 1)
        with driver_end:
            os.kill(worker, signal.SIGKILL)
            assert list(WorkerExitEvent.decode_all(control.recv(EVENT_BYTES))) == [(0, signal.SIGKILL)]
        control.close()


def test_a_worker_that_cannot_be_forked_is_reported_as_exited(tmp_path: Path) -> None:
    process, control = start_fork_server(tmp_path, program=FULL)
    with process, control:
        for _ in range(2):
            driver_end, worker_end = socket.socketpair()
            with worker_end:
                socket.send_fds(
                    control, [ForkServerRequest(ForkServerCommand.FORK, 0).encode()], [worker_end.fileno()]
                )
            with driver_end:
                driver_end.settimeout(30.0)
                assert driver_end.recv(1) == b""
        control.close()
        assert process.wait(30.0) == 0


def start_child() -> int:
    """Start a child process and return its process id."""
    return subprocess.Popen(["sleep", "600"]).pid


def start_session_leader() -> int:
    """Start a process that leads a new session and return its process id."""
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


def start_daemon() -> int:
    """Start a process in a new session whose parent has exited, and return its process id."""
    read_end, write_end = os.pipe()
    first = os.fork()
    if not first:
        os.setsid()
        if not os.fork():
            os.write(write_end, str(os.getpid()).encode())
            os.closerange(3, 100)
            os.execlp("sleep", "sleep", "600")
        os._exit(0)
    os.waitpid(first, 0)
    return int(os.read(read_end, 20))


@pytest.mark.parametrize("killed", ["by the driver", "by others", "at the end"])
def test_processes_started_by_a_worker_end_with_it(killed: str, tmp_path: Path) -> None:
    def start(block: Any) -> Any:
        return np.array([start_child(), start_session_leader(), start_daemon()])

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # The server cannot import this module.
    orders = orders_of(start, tmp_path)
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    process, control = start_fork_server(tmp_path)
    with process, control:
        [(worker, driver_end)] = fork_workers(control, 1)
        with driver_end:
            driver_end.sendall(b"".join(map(encode_frame, orders)))
            [message] = FrameDecoder().feed(driver_end.recv(1 << 16))
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
    process, control = start_fork_server(folder)
    ends = [driver_end for _, driver_end in fork_workers(control, 3)]
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
    for driver_end in ends:
        assert driver_end.recv(1) == b""
        driver_end.close()
    assert not os.path.exists(folder)


def make_folder_owned_by(process: int, place: Path, **changes: str) -> Path:
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
    process, control = start_fork_server(tmp_path / "polarmap-0-own")
    (number, first), (other, second) = fork_workers(control, 2)
    folders = [make_folder_owned_by(pid, tmp_path) for pid in (number, other, os.getpid())]
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
    process, control = start_fork_server(tmp_path / "missing" / "polarmap-0-own", own)
    with process, control:
        [(number, connection)] = fork_workers(control, 1)
        with connection:
            left, foreign = (
                make_folder_owned_by(number, tmp_path),
                make_folder_owned_by(number, tmp_path, host="elsewhere"),
            )
            os.kill(number, signal.SIGKILL)
            assert list(WorkerExitEvent.decode_all(control.recv(EVENT_BYTES))) == [(0, signal.SIGKILL)]
            assert until(lambda: not left.exists())
        [(_, connection)] = fork_workers(control, 1)
        connection.close()
        control.close()
        assert process.wait(30.0) == 0
    assert (foreign.exists(), own.exists()) == (True, False)
