"""A session's folder, and the process that ends what the session has started when it is over or has died.

python session.py FOLDER: waits until its standard input ends or its parent does, then ends all processes
that were started with a temporary directory of this session, and removes its folders.
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

SECONDS = 30.0  # Seconds that killed processes may take to end


def keep(folder: Path) -> subprocess.Popen[bytes]:
    """Start that process. It is in a session of its own: no interrupt of this one's reaches it."""
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "TMPDIR"},
    )


def end(keeper: subprocess.Popen[bytes], session: int) -> None:
    """Let it do its work, and wait; forked children of the session are not the session."""
    if os.getpid() == session:
        keeper.communicate()


def take_signals() -> None:
    """As in a terminal, also under nohup or in the background, where these two are ignored.

    Children that are started get the default, since a handler does not outlive exec. The session itself
    goes on when its terminal is closed, if it was to ignore that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def wait_for_end() -> None:
    """Block until the session closes our input or ends: its forked children may hold the input open."""
    watched = [sys.stdin.fileno()]
    with contextlib.suppress(OSError, AttributeError):  # no such thing, or gone
        watched.append(os.pidfd_open(os.getppid()))
    select.select(watched, [], [])


def sweep(folder: Path) -> None:
    """End what runs and remove what lies in the folders of the session, and of its parts beside it."""
    deadline = time.monotonic() + SECONDS
    while (found := started_by(folder)) and time.monotonic() < deadline:
        for process in found:
            remove_sockets(process)
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    for one in folder.parent.glob(f"{folder.name}*"):
        shutil.rmtree(one, ignore_errors=True)


def started_by(folder: Path) -> list[int]:
    """Processes that were started with a temporary directory of the session's, or work in its folders.

    Some write over what they were started with, to be listed by another name.
    """
    mark = f"\0TMPDIR={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_in = os.readlink(process / "cwd").startswith(str(folder))
            if is_in or mark in b"\0" + (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def remove_sockets(process: int) -> None:
    """Remove the sockets of SeaweedFS, which ignores TMPDIR."""
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
