"""Give workers the environment of their driver: working directory, module search path and variables.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NamedTuple


class ProcessEnvironment(NamedTuple):
    """The working directory, `sys.path` and environment variables of a process."""

    working_directory: str
    sys_path: tuple[str, ...]
    variables: dict[str, str]

    @classmethod
    def capture(cls) -> ProcessEnvironment:
        """Return the environment of this process."""
        return cls(get_working_directory(), tuple(sys.path), dict(os.environ))

    def apply_to_process(self) -> None:
        """Set working directory, `sys.path` and variables of this process. A missing directory is ignored."""
        if get_working_directory() != self.working_directory:
            with contextlib.suppress(OSError):  # The directory may not exist here; f may not need it.
                os.chdir(self.working_directory)
        if sys.path != list(self.sys_path):
            sys.path[:] = self.sys_path
        if dict(os.environ) != self.variables:
            for name in os.environ.keys() - self.variables.keys():
                del os.environ[name]
            os.environ.update(self.variables)


def snapshot_environment() -> tuple[Any, ...]:
    """Return a value that differs from that of an earlier call if the environment has changed since."""
    environ: Any = os.environ
    # Copying the underlying dict takes one call; copying os.environ takes several for each variable.
    return get_working_directory(), sys.path[:], dict(environ._data)


def get_working_directory() -> str:
    """Return the working directory of this process, or "/" if it no longer exists."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def get_absolute_sys_path() -> list[str]:
    """Return `sys.path` with absolute paths, for a process with another working directory."""
    paths = []
    for path in sys.path:
        # A relative path cannot be resolved if the working directory no longer exists.
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.path.abspath(path))
    return paths


def count_available_cores() -> int:
    """Return the number of cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no core affinity.
        return os.cpu_count() or 1
