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

MAX_REMOVE_ATTEMPTS = 10  # of a folder in which a worker may make a file meanwhile
SHARED_MEMORY_ROOT = "/dev/shm"  # where files lie in memory (Linux)

_owned_folders: set[tuple[int, Path]] = set()  # by which process


def make_shared_memory_folder() -> Path | None:
    """A new folder whose files are in memory; None where there is no such place, or no room."""
    try:
        return _make_owned_folder(SHARED_MEMORY_ROOT)
    except OSError:
        return None


def get_temp_root() -> str:
    """Where temporary files belong: in memory, where no such folder may be written to."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return SHARED_MEMORY_ROOT


def make_temp_folder() -> Path:
    """A new folder where temporary files belong; ExecutorError if it cannot be made."""
    try:
        return _make_owned_folder(get_temp_root())
    except OSError as error:
        raise ExecutorError(f"no folder can be made for the files of workers: {error}") from error


def get_process_temp_folder() -> Path:
    """An owned temporary folder of this process, always the same; made again if somebody has removed it.

    ExecutorError if that is impossible, or if somebody else has made one in its place.
    """
    folder = _make_process_folder(os.getpid())
    try:
        ensure_private_folder(str(folder))
    except OSError as error:
        raise ExecutorError(f"the folder for the files of workers cannot be made again: {error}") from error
    return folder


@cache
def _make_process_folder(pid: int) -> Path:
    return make_temp_folder()


def remove_owned_folder(folder: Path) -> None:
    """Remove such a folder, if this process has made it."""
    if (os.getpid(), folder) in _owned_folders:
        remove_tree(str(folder))
        _owned_folders.discard((os.getpid(), folder))


def remove_tree(folder: str) -> None:
    """Remove a folder to which a worker may still be writing."""
    for _ in range(MAX_REMOVE_ATTEMPTS):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return


@atexit.register
def _remove_all_owned_folders() -> None:
    """Remove what is left, of pools that an interrupt has kept from existing or from ending."""
    for owner_pid, folder in list(_owned_folders):
        if owner_pid == os.getpid():
            remove_owned_folder(folder)


def _make_owned_folder(parent_folder: str) -> Path:
    remove_stale_folders({SHARED_MEMORY_ROOT, get_temp_root()})
    folder_name = ProcessIdentity.current().folder_prefix + os.urandom(8).hex()
    folder = Path(parent_folder).resolve() / folder_name
    _owned_folders.add((os.getpid(), folder))  # before it is: an interrupt between the two leaves nothing
    folder.mkdir(PRIVATE_MODE)
    return folder
