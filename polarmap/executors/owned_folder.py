"""Temporary folders that say whose they are, so that a later process removes what a dead one left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from polarmap.storage.process_identity import ProcessIdentity

MEMORY = "/dev/shm"  # where files lie in memory (Linux)
OWNER = "owner"  # the file that names the process


def memory_folder() -> Path | None:
    """A new folder whose files are in memory; None where there is no such place."""
    if not os.path.isdir(MEMORY):
        return None
    try:
        return _new_folder(MEMORY)
    except OSError:
        return None


def disk_folder() -> Path:
    """A new folder where temporary files belong."""
    return _new_folder(tempfile.gettempdir())


def _new_folder(place: str) -> Path:
    _sweep(place)
    folder = Path(tempfile.mkdtemp(prefix=f"polarmap-{os.getpid()}-", dir=place)).resolve()
    (folder / OWNER).write_text(str(ProcessIdentity.current()))
    return folder


def _sweep(place: str) -> None:
    """Remove the folders of processes of this machine that were killed before they could."""
    for folder in Path(place).glob("polarmap-*-*"):
        with contextlib.suppress(OSError):
            if ProcessIdentity.parse((folder / OWNER).read_text()).is_dead():
                shutil.rmtree(folder, ignore_errors=True)
