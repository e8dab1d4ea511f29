"""Share files between a driver and its workers on one machine, in folders that only this user can open.

This module also runs on workers, so it imports only the standard library.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from polarmap.worker.segments import Segment, make_missing_segment_error, read_file_segment, write_file

# The mode of a private folder, and a mask for the permission bits of other users.
PRIVATE_MODE, OTHERS_MASK = 0o700, 0o077


def ensure_private_folder(folder: str) -> bool:
    """Create a folder that only this user can access, unless it exists. Return whether it was created.

    Raises OSError if the path is not a folder owned by this user, or if the file system does not support
    permissions.
    """
    is_new = True
    try:
        os.mkdir(folder, PRIVATE_MODE)
    except FileExistsError:
        is_new = False
    if _get_owned_folder_mode(folder) != PRIVATE_MODE:
        os.chmod(folder, PRIVATE_MODE)
        check_private_folder(folder)
    return is_new


def check_private_folder(folder: str) -> None:
    """Raise OSError if other users can access a folder.

    Call this before unpickling a file in the folder, because unpickling can run arbitrary code.
    """
    if _get_owned_folder_mode(folder) & OTHERS_MASK:
        raise PermissionError(f"{folder} must not be accessible to other users")


def _get_owned_folder_mode(folder: str) -> int:
    status = os.lstat(folder)
    is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if not stat.S_ISDIR(status.st_mode) or not is_own:
        raise PermissionError(f"{folder} is not a folder that belongs to this user")
    # On Windows, folders have no permission bits. Return a mode that counts as private.
    return stat.S_IMODE(status.st_mode) if hasattr(os, "getuid") else PRIVATE_MODE


def write_private_file(path: str, *buffers: Any) -> None:
    """Write the concatenated buffers to a file, two levels below a folder that only this user can access.

    Both folders are created if necessary. Raises OSError if other users could read or replace the file.
    """
    folder, name = os.path.split(path)
    ensure_private_folder(os.path.dirname(folder))
    write_file(folder, name, *buffers)


def is_in_private_folder(path: str) -> bool:
    """Return whether `path` is two levels below a folder on this machine that only this user can access."""
    try:
        check_private_folder(os.path.dirname(os.path.dirname(path)))
    except OSError:
        return False
    return True


def read_private_segment(root: str, segment: Segment) -> bytes | memoryview:
    """Return the bytes of a segment (a byte range of a file) below the folder `root`.

    Raises DamagedError if the file does not exist, or if other users could have written it.
    """
    if not is_in_private_folder(os.path.join(root, segment.key)):
        raise make_missing_segment_error(segment)
    return read_file_segment(root, segment)
