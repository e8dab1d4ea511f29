"""The temporary folder of this process: made when needed, removed at exit, whatever happens."""

from __future__ import annotations

import atexit
import glob
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

from polarmap.executors.fork_server_process import absolute_module_path


@cache
def private_folder() -> Path:
    """A temporary folder of this process, removed at its exit; stale ones of others go now."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"polarmap-{os.getpid()}-")).resolve()
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def interpreter() -> Path:
    """What runs Lithops' runner: this interpreter, this installation of Lithops, our folder.

    Lithops would run a copy of itself in its shared folder, which any other process replaces.
    Workers import what the driver can: they get its module search path.
    """
    folder = private_folder()
    paths = folder / f"paths-{threading.get_ident()}"
    paths.write_text(json.dumps(absolute_module_path()))
    paths.replace(folder / "paths")  # at once: a job of an earlier map may be reading it
    script = folder / "python"
    if not script.exists():
        run = (
            f"import json, sys; sys.path[:] = json.load(open('{folder}/paths')); "
            "from lithops.localhost.v1.runner import main; main()"
        )
        script.write_text(f'#!/bin/sh\nshift\nTMPDIR="{folder}" exec "{sys.executable}" -c "{run}" "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def named_for_lithops() -> str:
    """The path of this interpreter, or of a script that runs it where Lithops refuses such a path."""
    if re.fullmatch(r"[A-Za-z0-9_/.:-]+", sys.executable):
        return sys.executable
    script = private_folder() / "this-python"
    if not script.exists():
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def _sweep() -> None:
    """Remove the folders of processes that were killed before they could."""
    for path in glob.glob(os.path.join(tempfile.gettempdir(), "polarmap-*-*")):
        owner = path.rpartition("polarmap-")[2].partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}") and os.path.exists("/proc/self"):
            shutil.rmtree(path, ignore_errors=True)
