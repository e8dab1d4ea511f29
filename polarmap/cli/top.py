"""`polarmap top`: list the visible programs of this user, and show their maps in a terminal or a browser."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from polarmap.cli.output import CommandResult, result_command
from polarmap.errors import ExecutorError
from polarmap.optional import require_extra

if TYPE_CHECKING:
    from polarmap.live.program_socket import ProgramConnection, VisibleProgram
    from polarmap.live.snapshots import ProgramSnapshot

HOW_TO_BECOME_VISIBLE = (
    'A program is visible while it uses progress="live", Pool(dashboard=True) or polarmap.dashboard(), or if '
    "it is started with POLARMAP_LIVE=1."
)
MAX_PRINTED_LINES = 60  # maximum number of lines that `polarmap top --once` prints for a program
KEY_INTERVAL = 0.2  # maximum seconds to wait for a key press before checking whether the program has exited
LISTING_INTERVAL = 2.0  # seconds between searches for programs that have started


@result_command("top")
@click.argument("pid", type=click.IntRange(1), required=False)
@click.option("--once", is_flag=True, help="Print the current state and exit.")
@click.option("--web", is_flag=True, help="Show all visible programs in a browser. Ctrl-C ends the page.")
def top_command(pid: int | None, once: bool, web: bool) -> CommandResult:
    """Show the running maps of your programs.

    Without PID, the command lists the visible programs, or shows the only one. The key q or Ctrl-C ends it.
    A program is visible while it uses progress="live", Pool(dashboard=True) or polarmap.dashboard(), or if it
    is started with POLARMAP_LIVE=1.
    """
    if web:
        return _serve_dashboard()
    programs = _find_programs(pid)
    if not programs:
        return CommandResult({"programs": []}, f"No program is visible. {HOW_TO_BECOME_VISIBLE}")
    if click.get_current_context().params["as_json"]:
        return _export_snapshots(programs, is_list=pid is None)
    if len(programs) > 1:
        return CommandResult({}, _format_list(programs))
    if once or not _has_terminal():
        return CommandResult({}, _format_program_state(programs[0]))
    return CommandResult({}, _watch_program(programs[0]))


def _find_programs(pid: int | None) -> list[VisibleProgram]:
    """Return all visible programs, or the program with the process id `pid`."""
    from polarmap.live.program_socket import list_visible_programs

    programs = list_visible_programs()
    if pid is None:
        return programs
    selected = [program for program in programs if program.pid == pid]
    if not selected:
        pids = ", ".join(str(program.pid) for program in programs) or "none"
        raise ExecutorError(
            f"no visible program has the process id {pid} (visible: {pids}). {HOW_TO_BECOME_VISIBLE}"
        )
    return selected


def _has_terminal() -> bool:
    """Return whether standard input, output and error of this process are connected to a terminal."""
    # Check the file descriptors instead of sys.stdout, because sys.stdout is redirected while a command runs.
    try:
        return all(os.isatty(descriptor) for descriptor in (0, 1, 2))
    except OSError:
        return False


# --- print once --------------------------------------------------------------------------------


def _format_list(programs: Sequence[VisibleProgram]) -> str:
    lines = [f"{'PID':>8}  {'PROGRAM':<24}  {'VISIBLE SINCE':<19}  RUNNING MAPS"]
    for program in programs:
        started_at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(program.started_at))
        name = "".join(character for character in program.name if character.isprintable())
        lines.append(f"{program.pid:>8}  {name:<24.24}  {started_at}  {program.n_running_maps}")
    return "\n".join([*lines, "Show one of them with `polarmap top PID`, or all with `polarmap top --web`."])


def _read_snapshot(program: VisibleProgram) -> ProgramSnapshot | None:
    """Return the state of a program, or None if it has exited. Raises TimeoutError if it does not answer."""
    with program.connect() as connection:
        return connection.read_snapshot()


def _export_snapshots(programs: Sequence[VisibleProgram], is_list: bool) -> CommandResult:
    """Return the states of programs as data for the option --json.

    If `is_list` is true, the data contain a list of all programs. Otherwise, they describe the only program.
    """
    snapshots = [snapshot for program in programs if (snapshot := _read_snapshot(program)) is not None]
    data = [dataclasses.asdict(snapshot) for snapshot in snapshots]
    if is_list:
        return CommandResult({"programs": data}, "")
    if not data:
        raise ExecutorError(_describe_exit(programs[0]))
    return CommandResult(data[0], "")


def _describe_exit(program: VisibleProgram) -> str:
    return f"{program.name} (process {program.pid}) has exited or is no longer visible"


def _format_program_state(program: VisibleProgram) -> str:
    """Return the state of a program as text, with colours if the output is a terminal."""
    with require_extra("polarmap top", "rich", "live"):
        from rich.console import Console
    from polarmap.live.terminal import can_show_symbols, render_program

    snapshot = _read_snapshot(program)
    if snapshot is None:
        return _describe_exit(program)
    width = shutil.get_terminal_size((100, 24)).columns
    console = Console(file=io.StringIO(), force_terminal=_has_terminal(), width=width, highlight=False)
    with console.capture() as capture:
        console.print(render_program(snapshot, width, MAX_PRINTED_LINES, can_show_symbols(console)))
    return capture.get().rstrip("\n")


# --- in the terminal ---------------------------------------------------------------------------


class ProgramWatcher:
    """A connection to a running program, from which the terminal view reads snapshots of the program's maps.

    The connection may be used by one thread only, which is the thread that updates the view.

    Parameters
    ----------
    program : VisibleProgram
        The program to connect to. ExecutorError is raised if it has exited.

    Attributes
    ----------
    has_ended : threading.Event
        Set once the program has exited or does not respond.
    end_reason : str
        Why `has_ended` was set; empty until then.
    """

    def __init__(self, program: VisibleProgram) -> None:
        self._program = program
        self._connection = program.connect()
        snapshot = self._connection.read_snapshot()
        if snapshot is None:
            self._connection.close()
            raise ExecutorError(_describe_exit(program))
        self._snapshot = snapshot
        self.has_ended = threading.Event()
        self.end_reason = ""

    def take_snapshot(self, is_final: bool = False) -> ProgramSnapshot:
        """Request a new snapshot from the program and return it.

        If the program has exited, or if `is_final` is true, return the latest snapshot again.
        """
        if is_final or self.has_ended.is_set():
            return self._snapshot
        try:
            snapshot = self._connection.read_snapshot()
        except TimeoutError as error:
            self._end(f"{self._program.name} (process {self._program.pid}): {error}")
        else:
            if snapshot is None:
                self._end(_describe_exit(self._program))
            else:
                self._snapshot = snapshot
        return self._snapshot

    def close(self) -> None:
        """Disconnect from the program."""
        self._connection.close()

    def _end(self, reason: str) -> None:
        self.end_reason = reason
        self.has_ended.set()


def _watch_program(program: VisibleProgram) -> str:
    """Show the maps of a program in the terminal until the program exits or the user quits.

    Return a message that says why the view has ended, or "" if the user has quit.
    """
    from polarmap.live.terminal import TerminalView

    with contextlib.closing(ProgramWatcher(program)) as watcher:
        with contextlib.closing(TerminalView(watcher.take_snapshot, shows_all=True)) as view:
            view.start()
            with contextlib.suppress(KeyboardInterrupt):
                _wait_for_quit(watcher.has_ended)
        return watcher.end_reason


def _wait_for_quit(has_ended: threading.Event) -> None:
    """Block until the user presses q, or the watched program has ended."""
    with _open_keyboard() as read_key:
        while not has_ended.is_set():
            if read_key() in ("q", "Q"):
                return


@contextlib.contextmanager
def _open_keyboard() -> Iterator[Callable[[], str]]:
    """Yield a function that waits up to KEY_INTERVAL seconds for a key press, and returns the key or ""."""
    try:
        import termios
        import tty
    except ImportError:  # Windows has no termios: there, only Ctrl-C ends the view.
        yield _wait_without_key
        return
    descriptor = sys.stdin.fileno()
    original_mode = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield lambda: _read_key(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, original_mode)


def _wait_without_key() -> str:
    time.sleep(KEY_INTERVAL)
    return ""


def _read_key(descriptor: int) -> str:
    import select

    if not select.select([descriptor], [], [], KEY_INTERVAL)[0]:
        return ""
    try:
        return os.read(descriptor, 1).decode(errors="replace") or "q"
    except OSError:  # The terminal was closed, so end the view.
        return "q"


# --- in a browser ------------------------------------------------------------------------------


class ProgramConnections:
    """Connections to all visible programs of this user, including programs that start later."""

    def __init__(self) -> None:
        self._connections: dict[int, ProgramConnection] = {}
        self._next_listing_at = 0.0

    def take_snapshots(self) -> list[ProgramSnapshot]:
        """Return a snapshot of each program."""
        if time.monotonic() >= self._next_listing_at:
            self._connect_to_new_programs()
            self._next_listing_at = time.monotonic() + LISTING_INTERVAL
        snapshots = []
        for pid, connection in list(self._connections.items()):
            try:
                snapshot = connection.read_snapshot()
            except TimeoutError:  # The program may be suspended. Connect to it again once it responds.
                snapshot = None
            if snapshot is None:
                self._connections.pop(pid).close()
            else:
                snapshots.append(snapshot)
        return snapshots

    def close(self) -> None:
        """Disconnect from all programs."""
        for connection in self._connections.values():
            connection.close()

    def _connect_to_new_programs(self) -> None:
        for program in _find_programs(None):
            if program.pid not in self._connections:
                with contextlib.suppress(OSError):  # The program has exited in the meantime.
                    self._connections[program.pid] = program.connect()


def _serve_dashboard() -> CommandResult:
    """Serve the dashboard of all visible programs until the user presses Ctrl-C."""
    from polarmap.live.dashboard import DashboardServer

    with contextlib.closing(ProgramConnections()) as connections:
        server: Any = DashboardServer(connections.take_snapshots)
        server.start()
        with contextlib.closing(server), contextlib.suppress(KeyboardInterrupt):
            click.echo(f"Open {server.url} (Ctrl-C ends the page)", err=True)
            while True:
                time.sleep(1.0)
    return CommandResult({}, "")
