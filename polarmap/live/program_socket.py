"""The socket through which `polarmap top` watches a visible program, and the list of such programs.

    program: start_program_server  <--one byte: "send a snapshot"--  ProgramConnection: `polarmap top`
                                   --length, ProgramSnapshot as JSON-->

The socket is in a folder that only this user can open, and the program checks that the viewer runs as the
same user. A viewer asks for each snapshot, so a slow viewer receives fewer of them. The program serves each
viewer on a separate thread, and no map ever waits for this thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import socketserver
import struct
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from polarmap.errors import warn
from polarmap.live.snapshots import ProgramSnapshot
from polarmap.worker.private_files import check_private_folder, ensure_private_folder
from polarmap.worker.processes import ProcessIdentity, remove_stale_folders

if TYPE_CHECKING:
    from polarmap.live.hub import LiveHub

# The name of a program's folder contains its process id. So if a process was killed, other processes can see
# that its folder is no longer needed, and remove it.
FOLDER_SUFFIX = "live"
SOCKET_NAME = "socket"
MAX_VIEWERS = 16  # the maximum number of viewers that can be connected at the same time
# A viewer is disconnected if it does not request or read a snapshot for this many seconds.
VIEWER_TIMEOUT = 30.0
CONNECT_TIMEOUT = 5.0  # maximum seconds that a viewer waits for the answer of a program
MAX_SNAPSHOT_BYTES = 256 << 20
REQUEST = b"?"
LENGTH_FORMAT = struct.Struct("!Q")

# --- in the visible program --------------------------------------------------------------------


class _SnapshotHandler(socketserver.BaseRequestHandler):
    """Sends snapshots of the program to one viewer: one snapshot for each byte that the viewer sends."""

    server: _ProgramServer

    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(VIEWER_TIMEOUT)
        hub, is_closing = self.server.hub, self.server.is_closing
        with contextlib.suppress(OSError):  # The viewer has exited, or has timed out.
            # Before each answer, wait until a new snapshot is due. Otherwise, a viewer that sends requests
            # without a pause would get the same snapshot many times.
            while connection.recv(1) and not is_closing.wait(hub.seconds_until_next_snapshot()):
                data = hub.take_json_snapshot().encode()
                connection.sendall(LENGTH_FORMAT.pack(len(data)) + data)


class _ProgramServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Sends snapshots of this program to viewers, such as `polarmap top`, through a Unix socket.

    Each viewer is served by its own thread.

    Parameters
    ----------
    hub : LiveHub
        The source of the snapshots.
    folder : Path
        A private folder for the socket.
    """

    daemon_threads, block_on_close = True, False

    def __init__(self, hub: LiveHub, folder: Path) -> None:
        super().__init__(str(folder / SOCKET_NAME), _SnapshotHandler)
        self.hub, self.folder, self.is_closing = hub, folder, threading.Event()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="polarmap-live", daemon=True
        )

    def start(self) -> None:
        """Start to accept connections of viewers, on a background thread."""
        self._thread.start()

    def verify_request(self, request: socket.socket, client_address: object) -> bool:  # type: ignore[override]
        """Return whether to accept the connection of a viewer.

        The viewer must run as the same user, and fewer than MAX_VIEWERS viewers must be connected.
        """
        return len(self._connections) < MAX_VIEWERS and _is_same_user(request)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Start a thread that sends snapshots to a viewer that has connected."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Close the connection to a viewer."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore an error in the connection to a viewer, which would otherwise be printed on the terminal."""

    def close(self) -> None:
        """Disconnect all viewers, end the threads, and remove the socket and its folder."""
        self.is_closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_same_user(connection: socket.socket) -> bool:
    """Return whether the process at the other end of a Unix socket runs as the same user.

    Also return True if the operating system does not provide this information.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # Other users cannot open the folder of the socket anyway.
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user_id, _ = struct.unpack("3i", credentials)
    return bool(user_id == os.getuid())


# The server, and the id of the process that has started it. Forked child processes inherit the variable, but
# must not close the server.
_server: tuple[int, _ProgramServer] | None = None


def start_program_server(hub: LiveHub) -> None:
    """Start the server through which `polarmap top` watches this program. Warn if that is not possible.

    Parameters
    ----------
    hub : LiveHub
        The source of the snapshots.
    """
    global _server
    stop_program_server()
    if not hasattr(socket, "AF_UNIX"):
        return  # On Windows, `polarmap top` cannot see other programs.
    folder = _get_folder()
    try:
        remove_stale_folders({str(folder.parent)})
        ensure_private_folder(str(folder))
        server = _ProgramServer(hub, folder)
        server.start()
    except OSError as error:  # For example, the path is too long or the disk is full.
        shutil.rmtree(folder, ignore_errors=True)
        warn(f"polarmap top cannot see this program, because {folder} cannot hold a socket: {error}")
    else:
        _server = os.getpid(), server


def stop_program_server() -> None:
    """Disconnect all viewers and remove the socket. Does nothing if the server is not running."""
    global _server
    if _server is None:
        return
    (owner_pid, server), _server = _server, None
    if owner_pid == os.getpid():
        server.close()


def _get_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"{ProcessIdentity.current().folder_prefix}{FOLDER_SUFFIX}"


atexit.register(stop_program_server)

# --- in the viewer -----------------------------------------------------------------------------


class VisibleProgram(NamedTuple):
    """A running program of this user that viewers can connect to.

    Attributes
    ----------
    pid : int
        The process id of the program.
    name : str
        The name of the program, such as "fit.py".
    n_running_maps : int
        The number of maps that are running.
    started_at : float
        When the program became visible, in seconds since the epoch.
    socket_path : Path
        The path of its socket.
    """

    pid: int
    name: str
    n_running_maps: int
    started_at: float
    socket_path: Path

    def connect(self) -> ProgramConnection:
        """Connect to the program. Raises OSError if it has exited."""
        return ProgramConnection(self.socket_path)


class ProgramConnection:
    """A viewer's connection to a visible program.

    Parameters
    ----------
    socket_path : Path
        The path of the program's socket.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(CONNECT_TIMEOUT)
            self._socket.connect(str(socket_path))
        except BaseException:
            self._socket.close()
            raise

    def read_snapshot(self, timeout: float = CONNECT_TIMEOUT) -> ProgramSnapshot | None:
        """Request a snapshot from the program and return it, or return None if the program has exited.

        Raises TimeoutError if the program does not answer within `timeout` seconds. After that, the
        connection cannot be used any more.
        """
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(REQUEST)
            (n_bytes,) = LENGTH_FORMAT.unpack(self._receive(LENGTH_FORMAT.size))
            if n_bytes > MAX_SNAPSHOT_BYTES:
                return None
            return ProgramSnapshot.from_json(self._receive(n_bytes))
        except TimeoutError:
            raise TimeoutError(f"the program has not answered within {timeout:g} s") from None
        except (OSError, EOFError, ValueError):
            return None

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self, n_bytes: int) -> bytes:
        chunks = []
        while n_bytes:
            chunk = self._socket.recv(min(n_bytes, 1 << 20))
            if not chunk:
                raise EOFError
            chunks.append(chunk)
            n_bytes -= len(chunk)
        return b"".join(chunks)

    def __enter__(self) -> ProgramConnection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def list_visible_programs() -> list[VisibleProgram]:
    """Return the visible programs of this user on this machine, in the order in which they became visible.

    Programs that do not answer are left out.
    """
    programs = []
    for socket_path in Path(tempfile.gettempdir()).glob(f"polarmap-*_{FOLDER_SUFFIX}/{SOCKET_NAME}"):
        with contextlib.suppress(OSError):  # The program belongs to another user, or has exited.
            check_private_folder(str(socket_path.parent))
            started_at = socket_path.stat().st_mtime
            with ProgramConnection(socket_path) as connection:
                snapshot = connection.read_snapshot()
            if snapshot is not None:
                n_running_maps = sum(live_map.is_running for live_map in snapshot.maps)
                programs.append(
                    VisibleProgram(snapshot.pid, snapshot.name, n_running_maps, started_at, socket_path)
                )
    return sorted(programs, key=lambda program: program.started_at)
