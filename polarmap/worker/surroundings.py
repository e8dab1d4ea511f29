"""What f finds around it, as in the driver: cores, folder, environment, and where modules are.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NamedTuple


class Surroundings(NamedTuple):
    """What f finds around it, as it is in the driver."""

    folder: str
    module_path: tuple[str, ...]
    environment: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Surroundings:
        """As they are now."""
        return cls(working_folder(), tuple(sys.path), dict(os.environ))

    def take_over(self) -> None:
        """Make them those of this process, as far as they are not."""
        if working_folder() != self.folder:
            with contextlib.suppress(OSError):  # gone: f may not need it
                os.chdir(self.folder)
        if sys.path != list(self.module_path):
            sys.path[:] = self.module_path
        if dict(os.environ) != self.environment:
            for name in os.environ.keys() - self.environment.keys():
                del os.environ[name]
            os.environ.update(self.environment)


def seen_now() -> tuple[Any, ...]:
    """What tells soon whether they have changed since it was asked before."""
    environment: Any = os.environ
    # What lies below it is copied in one call, itself in several for each variable.
    return working_folder(), sys.path[:], dict(environment._data)


def working_folder() -> str:
    """That of this process; the root's where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def absolute_module_path() -> list[str]:
    """Where this process finds modules, for one that may be in another folder."""
    found = []
    for path in sys.path:
        with contextlib.suppress(FileNotFoundError):  # relative to a folder that is gone
            found.append(os.path.abspath(path))
    return found


def available_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no such limit
        return os.cpu_count() or 1
