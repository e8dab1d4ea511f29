"""Modules that a driver sends to its workers as source code, and how these import them.

Runs on workers: imports the standard library only.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class SentModuleFinder(MetaPathFinder, InspectLoader):
    """Modules that the driver has sent as source: imported from there where nothing else has them."""

    def __init__(self) -> None:
        self._sources: dict[str, tuple[str, bool]] = {}

    def add_sources(self, sources: Mapping[str, tuple[str, bool]]) -> None:
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
