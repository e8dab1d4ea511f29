"""The fork server as its driver sees it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from polarmap.errors import ExecutorError
from polarmap.executors.fork_server_process import (
    ForkServerProcess,
    limits_of_threads,
    modules_named,
    open_standard_streams,
)
from polarmap.worker.frames import Frames


def hello(connection: socket.socket) -> int:
    """The process that serves at the other end."""
    connection.settimeout(30.0)
    [(fields, _)] = Frames().of(connection.recv(4096))
    return int(fields["process"])


def test_it_forks_and_kills_workers() -> None:
    server = ForkServerProcess(1, [], [])
    try:
        assert server.is_alive()
        ends = [socket.socketpair() for _ in range(2)]
        for number, (_, theirs) in enumerate(ends):
            server.fork(number, theirs)
        first, second = (ours for ours, _ in ends)
        assert hello(first) != hello(second)
        server.kill(0)
        assert first.recv(1) == b""
    finally:
        server.close()
    assert second.recv(1) == b""
    for end, _ in ends:
        end.close()


def test_folders_are_removed_for_a_driver_that_died_only(tmp_path: Path) -> None:
    for name in ("ended", "died"):
        folder = tmp_path / name
        folder.mkdir()
        server = ForkServerProcess(1, [str(folder)], [])
        if name == "died":
            server.forget()
        server.close()
    assert os.listdir(tmp_path) == ["ended"]


def test_an_interpreter_that_does_not_serve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    server = ForkServerProcess(1, [], [])
    server._process.wait(30.0)
    with pytest.raises(ExecutorError, match="/bin/false ended with code 1"):
        server.is_alive()
    server.forget()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ExecutorError, match="/nowhere/python cannot be started"):
        ForkServerProcess(1, [], [])


def test_no_socket_takes_the_place_of_a_standard_stream() -> None:
    """Else what a library writes there would be read as a message."""
    streams = [os.dup(number) for number in range(3)]
    try:
        for number in range(3):
            os.close(number)
        open_standard_streams()
        leads = {os.readlink(f"/proc/self/fd/{number}") for number in range(3)}
        inherited = [os.get_inheritable(number) for number in range(3)]
        others = len(os.listdir("/proc/self/fd"))
        open_standard_streams()
        assert len(os.listdir("/proc/self/fd")) == others
    finally:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
    assert leads == {os.devnull}
    assert inherited == [True, True, True]


def test_limits_are_told_to_every_library() -> None:
    assert limits_of_threads(2)["OPENBLAS_NUM_THREADS"] == "2"
    assert len(set(limits_of_threads(2).values())) == 1


def test_only_modules_that_are_there_are_named() -> None:
    assert modules_named(b"polarmap.errors polarmap.worker.parts polarmap.nowhere os.path") == [
        "polarmap.errors"
    ]
