"""The temporary folder of this process that its jobs of Lithops share, and the interpreters named in it."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import threading
from functools import cache
from pathlib import Path

from polarmap.executors.fork_server_process import absolute_module_path
from polarmap.executors.owned_folder import disk_folder, restore


def private_folder() -> Path:
    """An owned temporary folder of this process, always the same; made again if somebody has removed it."""
    folder = _folder_of(os.getpid())
    restore(folder)
    return folder


@cache
def _folder_of(process: int) -> Path:
    return disk_folder()


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
