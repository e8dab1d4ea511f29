"""Import modules that the driver has sent to its persistent workers as source code.

This module runs on workers, so it imports only the standard library.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class SentModuleFinder(MetaPathFinder, InspectLoader):
    """An import hook for modules whose source code the driver has sent to this worker.

    The hook is the last finder in `sys.meta_path`, so modules installed on the worker take precedence.
    """

    def __init__(self) -> None:
        self._sources: dict[str, tuple[str, bool]] = {}

    def add_sources(self, sources: Mapping[str, tuple[str, bool]]) -> None:
        """Make modules importable from their source code.

        A module whose source code has changed is reloaded when it is next imported.

        Parameters
        ----------
        sources : mapping of str to (str, bool)
            For each module name, the source code and whether the module is a package.
        """
        if sources and self not in sys.meta_path:
            sys.meta_path.append(self)
        for name, source in sources.items():
            if self._sources.get(name, source) != source:
                sys.modules.pop(name, None)
        self._sources.update(sources)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module that the driver has sent, or None for other modules."""
        if fullname not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=self._sources[fullname][1])

    def get_source(self, fullname: str) -> str:
        """Return the source code of a module that the driver has sent."""
        return self._sources[fullname][0]

    def get_code(self, fullname: str) -> Any:
        """Compile a module that the driver has sent. Tracebacks get its source lines from `get_source`."""
        return self.source_to_code(self.get_source(fullname), f"sent/{fullname}.py")

    def is_package(self, fullname: str) -> bool:
        """Return whether a module that the driver has sent is a package."""
        return self._sources[fullname][1]
