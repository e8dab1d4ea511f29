"""Temporary folders named after their process, so that later processes can remove stale ones."""

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

# The maximum number of attempts to remove a folder. An attempt fails if a worker creates a file meanwhile.
MAX_REMOVE_ATTEMPTS = 10
REMOVED_SUFFIX = "-removed"  # added to the name of a folder while its files are being deleted
SHARED_MEMORY_ROOT = "/dev/shm"  # the file system in memory on Linux

# The temporary folders to remove, each with the pid of the process that has created it. A forked child
# process inherits this set, but must not remove the folders of its parent.
_owned_folders: set[tuple[int, Path]] = set()


def make_shared_memory_folder() -> Path | None:
    """Create a temporary folder in shared memory. Return None if that is not possible."""
    try:
        return _make_owned_folder(SHARED_MEMORY_ROOT)
    except OSError:
        return None


def get_temp_root() -> str:
    """Return the folder in which to create temporary folders, such as "/tmp".

    If no folder on disk is writable, return a folder in shared memory.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return SHARED_MEMORY_ROOT


def make_temp_folder() -> Path:
    """Create a temporary folder and return its path. Raises ExecutorError if that is not possible."""
    try:
        return _make_owned_folder(get_temp_root())
    except OSError as error:
        raise ExecutorError(f"no folder can be created for the files of workers: {error}") from error


def get_process_temp_folder() -> Path:
    """Return this process's temporary folder, creating it if necessary.

    Raises ExecutorError if that is not possible, or if another user has created a folder of the same name.
    """
    folder = _make_process_folder(os.getpid())
    try:
        ensure_private_folder(str(folder))
    except OSError as error:
        raise ExecutorError(
            f"the folder for the files of workers cannot be created again: {error}"
        ) from error
    return folder


@cache
def _make_process_folder(pid: int) -> Path:
    return make_temp_folder()


def remove_owned_folder(folder: Path) -> None:
    """Remove a temporary folder that this process has created.

    Do nothing if another process has created the folder, such as the parent of a forked process.
    """
    if (os.getpid(), folder) in _owned_folders:
        # Rename the folder first, so that all of its files disappear at once. One of them may be a file that
        # tells a worker to cancel its task. If this file were deleted before the folder, the worker could
        # find the folder but not the file, and would start the task.
        removed_folder = folder.with_name(folder.name + REMOVED_SUFFIX)
        try:
            os.rename(folder, removed_folder)
        except OSError:  # The folder no longer exists, or a process uses it (on Windows).
            removed_folder = folder
        remove_tree(str(removed_folder))
        _owned_folders.discard((os.getpid(), folder))


def remove_tree(folder: str) -> None:
    """Remove a folder to which another process may still be writing."""
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
    """Remove the temporary folders that are left when this process exits, for example after Ctrl-C."""
    for owner_pid, folder in list(_owned_folders):
        if owner_pid == os.getpid():
            remove_owned_folder(folder)


def _make_owned_folder(parent_folder: str) -> Path:
    remove_stale_folders({SHARED_MEMORY_ROOT, get_temp_root()})
    folder_name = ProcessIdentity.current().folder_prefix + os.urandom(8).hex()
    folder = Path(parent_folder).resolve() / folder_name
    # Record the folder before creating it. If Ctrl-C interrupts this function, the folder is then still
    # removed when the process exits.
    _owned_folders.add((os.getpid(), folder))
    folder.mkdir(PRIVATE_MODE)
    return folder
