"""What f finds around it, as in the driver: cores, folder, environment, and where modules are.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NamedTuple


class ProcessEnvironment(NamedTuple):
    """What f finds around it, as it is in the driver."""

    working_directory: str
    sys_path: tuple[str, ...]
    variables: dict[str, str]

    @classmethod
    def capture(cls) -> ProcessEnvironment:
        """As they are now."""
        return cls(get_working_directory(), tuple(sys.path), dict(os.environ))

    def apply_to_process(self) -> None:
        """Make them those of this process, as far as they are not."""
        if get_working_directory() != self.working_directory:
            with contextlib.suppress(OSError):  # gone: f may not need it
                os.chdir(self.working_directory)
        if sys.path != list(self.sys_path):
            sys.path[:] = self.sys_path
        if dict(os.environ) != self.variables:
            for name in os.environ.keys() - self.variables.keys():
                del os.environ[name]
            os.environ.update(self.variables)


def snapshot_environment() -> tuple[Any, ...]:
    """What tells soon whether they have changed since it was asked before."""
    environ: Any = os.environ
    # What lies below it is copied in one call, itself in several for each variable.
    return get_working_directory(), sys.path[:], dict(environ._data)


def get_working_directory() -> str:
    """That of this process; the root's where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def get_absolute_sys_path() -> list[str]:
    """Where this process finds modules, for one that may be in another folder."""
    paths = []
    for path in sys.path:
        with contextlib.suppress(FileNotFoundError):  # relative to a folder that is gone
            paths.append(os.path.abspath(path))
    return paths


def count_available_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no such limit
        return os.cpu_count() or 1
