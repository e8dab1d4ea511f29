"""Files of a driver and its workers on one machine, two levels below a folder of this user alone.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from polarmap.worker.segments import (
    Location,
    Segment,
    make_missing_segment_error,
    read_file_segment,
    write_file,
)

PRIVATE_MODE, OTHERS_MASK = 0o700, 0o077  # mode of a folder of one user alone, and what others may do


def ensure_private_folder(folder: str) -> bool:
    """Let such a folder be there, also where somebody has removed it; whether it was not there.

    OSError if something else is, or if its file system cannot keep others out.
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
    """OSError for a folder in which others may have put files: what lies in such a one is read as code."""
    if _get_owned_folder_mode(folder) & OTHERS_MASK:
        raise PermissionError(f"{folder} is open to others")


def _get_owned_folder_mode(folder: str) -> int:
    status = os.lstat(folder)
    is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if not stat.S_ISDIR(status.st_mode) or not is_own:
        raise PermissionError(f"something else is in the place of {folder}")
    # Windows has no such modes
    return stat.S_IMODE(status.st_mode) if hasattr(os, "getuid") else PRIVATE_MODE


def write_private_file(path: str, *buffers: Any) -> None:
    """Such a file, of these bytes in a row; OSError if others could read or replace it."""
    folder, name = os.path.split(path)
    ensure_private_folder(os.path.dirname(folder))
    write_file(folder, name, *buffers)


def is_in_private_folder(location: Location, segment: Segment) -> bool:
    """Whether the folder below which such a file lies is on this machine, and of this user alone."""
    try:
        check_private_folder(os.path.dirname(os.path.dirname(os.path.join(location.root, segment.key))))
    except OSError:
        return False
    return True


def read_private_segment(location: Location, segment: Segment) -> bytes | memoryview:
    """The bytes of a part of such a file; DamagedError if there is none that only this user can have put."""
    if not is_in_private_folder(location, segment):
        raise make_missing_segment_error(segment)
    return read_file_segment(location.root, segment)
