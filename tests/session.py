"""A session's folder, and a keeper process that cleans up after the session, even if the session is killed.

`python session.py FOLDER` waits until its standard input is closed or its parent ends. Then it kills all
processes that were started with a temporary directory of the session, and removes the session's folders.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 30.0  # Seconds that killed processes may take to end.


def keep(folder: Path) -> subprocess.Popen[bytes]:
    """Start the keeper in a new process session, which no interrupt of the tests reaches."""
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},
    )


def end(keeper: subprocess.Popen[bytes], session: int) -> None:
    """Let the keeper clean up, and wait for it. Forked children of the session do nothing."""
    if os.getpid() == session:
        keeper.communicate()


def take_signals() -> None:
    """Handle SIGINT and SIGHUP as in a terminal if they are ignored, as under nohup or in the background.

    Child processes get the default actions, since a handler does not outlive exec. If SIGHUP was ignored, the
    session itself still continues when its terminal is closed.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def wait_for_end() -> None:
    """Block until the session closes standard input or ends: its forked children may keep the input open."""
    watched = [sys.stdin.fileno()]
    with contextlib.suppress(OSError, AttributeError):  # The system has no pidfd, or the parent has ended.
        watched.append(os.pidfd_open(os.getppid()))
    select.select(watched, [], [])


def sweep(folder: Path) -> None:
    """Kill the session's processes and remove its folders, including the folders next to it."""
    deadline = time.monotonic() + SECONDS
    while (processes := started_by(folder)) and time.monotonic() < deadline:
        for process in processes:
            remove_sockets(process)
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    for path in folder.parent.glob(f"{folder.name}*"):
        shutil.rmtree(path, ignore_errors=True)


def started_by(folder: Path) -> list[int]:
    """Return the processes with a temporary directory of the session, or that work in its folders.

    The latter are needed since some processes overwrite their environment to change their name in listings.
    """
    mark = f"\0TMPDIR={folder}".encode()
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_in = os.readlink(process / "cwd").startswith(str(folder))
            if is_in or mark in b"\0" + (process / "environ").read_bytes():
                processes.append(int(process.name))
    return processes


def remove_sockets(process: int) -> None:
    """Remove the sockets of a SeaweedFS process, which ignores TMPDIR."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
        for port in re.findall(r"\.port=([1-9]\d+)", command):
            remove_sockets_of(int(port))


def remove_sockets_of(port: int) -> None:
    for name in (f"-{port}.sock", f"-{port + 10_000}.sock"):
        for path in Path("/tmp").glob(f"seaweedfs-*{name}"):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    wait_for_end()
    sweep(Path(sys.argv[1]))
