"""Files of a driver and its workers on one machine, two levels below a folder of this user alone.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from polarmap.worker.parts import Part, Place, missing, read_file, write_file

PRIVATE, OTHERS = 0o700, 0o077  # mode of a folder of one user alone, and what others may do


def make_private(folder: str) -> bool:
    """Let such a folder be there, also where somebody has removed it; whether it was not there.

    OSError if something else is, or if its file system cannot keep others out.
    """
    is_new = True
    try:
        os.mkdir(folder, PRIVATE)
    except FileExistsError:
        is_new = False
    if _mode_of_own(folder) != PRIVATE:
        os.chmod(folder, PRIVATE)
        check_private(folder)
    return is_new


def check_private(folder: str) -> None:
    """OSError for a folder in which others may have put files: what lies in such a one is read as code."""
    if _mode_of_own(folder) & OTHERS:
        raise PermissionError(f"{folder} is open to others")


def _mode_of_own(folder: str) -> int:
    status = os.lstat(folder)
    is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if not stat.S_ISDIR(status.st_mode) or not is_own:
        raise PermissionError(f"something else is in the place of {folder}")
    return stat.S_IMODE(status.st_mode) if hasattr(os, "getuid") else PRIVATE  # Windows has no such modes


def write_private(path: str, *buffers: Any) -> None:
    """Such a file, of these bytes in a row; OSError if others could read or replace it."""
    folder, name = os.path.split(path)
    make_private(os.path.dirname(folder))
    write_file(folder, name, *buffers)


def has_folder(source: Place, part: Part) -> bool:
    """Whether the folder below which such a file lies is on this machine, and of this user alone."""
    try:
        check_private(os.path.dirname(os.path.dirname(os.path.join(source.place, part.key))))
    except OSError:
        return False
    return True


def read_private(source: Place, part: Part) -> bytes | memoryview:
    """The bytes of a part of such a file; DamagedError if there is none that only this user can have put."""
    if not has_folder(source, part):
        raise missing(part)
    return read_file(source.place, part)
