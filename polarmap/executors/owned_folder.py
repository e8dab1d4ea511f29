"""Temporary folders that say whose they are, so that a later process removes what a dead one left."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from polarmap.errors import ExecutorError
from polarmap.worker.private_files import PRIVATE_MODE, ensure_private_folder
from polarmap.worker.processes import ProcessIdentity, remove_stale_folders

REMOVE_TRIES = 10  # of a folder in which a worker may make a file meanwhile
MEMORY = "/dev/shm"  # where files lie in memory (Linux)

_made: set[tuple[int, Path]] = set()  # by which process


def memory_folder() -> Path | None:
    """A new folder whose files are in memory; None where there is no such place, or no room."""
    try:
        return _new_folder(MEMORY)
    except OSError:
        return None


def disk_place() -> str:
    """Where temporary files belong: in memory, where no such folder may be written to."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return MEMORY


def disk_folder() -> Path:
    """A new folder where temporary files belong; ExecutorError if it cannot be made."""
    try:
        return _new_folder(disk_place())
    except OSError as error:
        raise ExecutorError(f"no folder can be made for the files of workers: {error}") from error


def private_folder() -> Path:
    """An owned temporary folder of this process, always the same; made again if somebody has removed it.

    ExecutorError if that is impossible, or if somebody else has made one in its place.
    """
    folder = _folder_of(os.getpid())
    try:
        ensure_private_folder(str(folder))
    except OSError as error:
        raise ExecutorError(f"the folder for the files of workers cannot be made again: {error}") from error
    return folder


@cache
def _folder_of(process: int) -> Path:
    return disk_folder()


def remove(folder: Path) -> None:
    """Remove such a folder, if this process has made it."""
    if (os.getpid(), folder) in _made:
        remove_tree(str(folder))
        _made.discard((os.getpid(), folder))


def remove_tree(folder: str) -> None:
    """Remove a folder to which a worker may still be writing."""
    for _ in range(REMOVE_TRIES):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return


@atexit.register
def _remove_all() -> None:
    """Remove what is left, of pools that an interrupt has kept from existing or from ending."""
    for owner, folder in list(_made):
        if owner == os.getpid():
            remove(folder)


def _new_folder(place: str) -> Path:
    remove_stale_folders({MEMORY, disk_place()})
    name = ProcessIdentity.current().folder_prefix + os.urandom(8).hex()
    folder = Path(place).resolve() / name
    _made.add((os.getpid(), folder))  # before it is: an interrupt between the two leaves nothing
    folder.mkdir(PRIVATE_MODE)
    return folder
