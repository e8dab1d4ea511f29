"""Give workers the environment of their driver: working directory, module search path and variables.

This module also runs on workers, so it imports only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NamedTuple


class ProcessEnvironment(NamedTuple):
    """The environment of a process: its working directory, `sys.path` and environment variables."""

    working_directory: str
    sys_path: tuple[str, ...]
    variables: dict[str, str]

    @classmethod
    def capture(cls) -> ProcessEnvironment:
        """Return the environment of this process."""
        return cls(get_working_directory(), tuple(sys.path), dict(os.environ))

    def apply_to_process(self) -> None:
        """Apply this environment to the current process.

        The working directory stays the same if the new one does not exist on this machine.
        """
        if get_working_directory() != self.working_directory:
            # Ignore a directory that does not exist on this machine, because the task may not need it.
            with contextlib.suppress(OSError):
                os.chdir(self.working_directory)
        if sys.path != list(self.sys_path):
            sys.path[:] = self.sys_path
        if dict(os.environ) != self.variables:
            for name in os.environ.keys() - self.variables.keys():
                del os.environ[name]
            os.environ.update(self.variables)


def snapshot_environment() -> tuple[Any, ...]:
    """Return a copy of this process's environment, to find out later whether it has changed.

    Compare the returned tuple with that of a later call. A call is faster than `ProcessEnvironment.capture`.
    """
    environ: Any = os.environ
    # Copy the dict behind os.environ. Copying os.environ itself is slow, because it decodes every variable.
    return get_working_directory(), sys.path[:], dict(environ._data)


def get_working_directory() -> str:
    """Return the working directory of this process, or "/" if it no longer exists."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def get_absolute_sys_path() -> list[str]:
    """Return `sys.path` with absolute paths, for use in a process that has another working directory."""
    paths = []
    for path in sys.path:
        # If the working directory no longer exists, relative paths cannot be resolved. Leave them out.
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.path.abspath(path))
    return paths


def count_available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not available on macOS and Windows.
        return os.cpu_count() or 1
