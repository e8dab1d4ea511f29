"""What f finds around it, as in the driver: cores, folder, environment and modules.

Runs on workers too: imports the standard library only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
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


class SentModules(MetaPathFinder, InspectLoader):
    """Modules that the driver has sent as source: imported from there where nothing else has them."""

    def __init__(self) -> None:
        self._sources: dict[str, tuple[str, bool]] = {}

    def add(self, sources: Mapping[str, tuple[str, bool]]) -> None:
        """Let these be imported from now on; those whose source has changed are imported anew.

        sources : by name, and whether it is a package.
        """
        if sources and self not in sys.meta_path:
            sys.meta_path.append(self)
        for name, source in sources.items():
            if self._sources.get(name, source) != source:
                sys.modules.pop(name, None)
        self._sources.update(sources)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """How to import a module that was sent; None for any other."""
        if fullname not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=self._sources[fullname][1])

    def get_source(self, fullname: str) -> str:
        """Its source."""
        return self._sources[fullname][0]

    def get_code(self, fullname: str) -> Any:
        """Its code, under a name for which tracebacks ask `get_source` for their lines."""
        return self.source_to_code(self.get_source(fullname), f"sent/{fullname}.py")

    def is_package(self, fullname: str) -> bool:
        """Whether others lie below it."""
        return self._sources[fullname][1]


def available_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no such limit
        return os.cpu_count() or 1
