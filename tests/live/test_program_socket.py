"""The socket of a visible program: who may connect, and what viewers and programs do when the other ends."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polarmap.live import activation, program_socket
from polarmap.live.hub import LiveHub
from polarmap.live.program_socket import REQUEST, VIEWER_TIMEOUT, ProgramConnection, list_visible_programs

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")

PROGRAM = """
import sys
import polarmap
print("ready", flush=True)
polarmap.hedged_map(abs, [1])
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a temporary folder with a short path, so that programs of other tests are not listed."""
    with tempfile.TemporaryDirectory(prefix="pm", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def visible() -> Iterator[LiveHub]:
    yield activation.activate()
    activation.deactivate()


def get_own_program() -> program_socket.VisibleProgram:
    [program] = list_visible_programs()
    assert program.pid == os.getpid()
    return program


def test_visible_program_is_listed_until_it_becomes_invisible(temp_folder: Path) -> None:
    assert list_visible_programs() == []
    hub = activation.activate()
    assert activation.activate() is hub
    with get_own_program().connect() as connection:
        snapshot = connection.read_snapshot()
        assert snapshot is not None and snapshot.pid == os.getpid()
        activation.deactivate()
        assert connection.read_snapshot() is not None  # still active once
        activation.deactivate()
        assert connection.read_snapshot() is None
    assert list_visible_programs() == [] and list(temp_folder.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "polarmap-live"]


def test_socket_is_in_a_folder_of_this_user_only(visible: LiveHub) -> None:
    folder = get_own_program().socket_path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_viewer_of_another_user_is_refused(visible: LiveHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = get_own_program().socket_path
    monkeypatch.setattr(program_socket.os, "getuid", lambda: 12345)
    with ProgramConnection(path) as connection:
        assert connection.read_snapshot() is None


def test_folder_that_others_can_open_is_not_used(visible: LiveHub) -> None:
    get_own_program().socket_path.parent.chmod(0o755)
    assert list_visible_programs() == []


def test_viewers_beyond_the_maximum_are_refused(visible: LiveHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_socket, "MAX_VIEWERS", 1)
    path = get_own_program().socket_path
    first = ProgramConnection(path)
    while first.read_snapshot() is None:  # The program may not have noticed yet that the list was read.
        first.close()
        first = ProgramConnection(path)
    with first:
        with ProgramConnection(path) as second:
            assert second.read_snapshot() is None
        assert first.read_snapshot() is not None


def test_viewer_that_stops_reading_is_disconnected_at_the_end(visible: LiveHub) -> None:
    path = get_own_program().socket_path
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as viewer, ProgramConnection(path) as other:
        viewer.connect(str(path))
        viewer.setblocking(False)
        try:
            while viewer.send(REQUEST * 4096):  # many requests, none of which is read
                pass
        except BlockingIOError:
            pass
        assert other.read_snapshot() is not None  # Other viewers do not wait for it.
    assert VIEWER_TIMEOUT < 60


@pytest.mark.parametrize("is_killed", [False, True])
def test_program_of_another_process_is_seen_until_it_ends(is_killed: bool, temp_folder: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "POLARMAP_LIVE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None and program.stdin is not None
        assert program.stdout.readline() == "ready\n"
        deadline = threading.Event()
        while not (programs := list_visible_programs()):  # The first map makes it visible.
            assert program.poll() is None and not deadline.wait(0.05)
        [visible_program] = programs
        assert visible_program.pid == program.pid and visible_program.name == "python"
        with visible_program.connect() as connection:
            assert connection.read_snapshot() is not None
            if is_killed:
                program.kill()
            program.stdin.close()
            program.wait(60.0)
            while connection.read_snapshot() is not None:
                pass
    assert list_visible_programs() == []
    with_next_program = activation.activate()  # The next visible program removes what a killed one left.
    assert with_next_program is activation.active_hub
    activation.deactivate()
    assert not list(temp_folder.glob("*_live"))


def test_path_that_is_too_long_is_a_warning(temp_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_folder = temp_folder / ("x" * 120)
    long_folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))
    with pytest.warns(RuntimeWarning, match="polarmap top cannot see this program"):
        activation.activate()
    activation.deactivate()
    assert list(long_folder.iterdir()) == []
