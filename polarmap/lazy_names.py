"""Lazy exports of a package (PEP 562): a module is only imported when one of its names is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any


def make_lazy_exports(
    package: str, names_by_module: dict[str, list[str]], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Create `__getattr__`, `__dir__` and `__all__` for a package that imports its modules lazily.

    The names are looked up on each use rather than stored as attributes of the package. Otherwise, the first
    use of a name would change the package. polarmap would then take functions that use the package for
    changed ones, because their fingerprints include its attributes (see `driver.fingerprint`).

    Parameters
    ----------
    package : str
        The name of the package.
    names_by_module : dict
        For each module, relative to the package, the names that the package exports.
    submodules : iterable of str
        Modules that are also available as attributes of the package, without an explicit import.
    """
    module_by_name = {name: module for module, names in names_by_module.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name in module_by_name:
            return getattr(importlib.import_module(f"{package}.{module_by_name[name]}"), name)
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get_attribute, lambda: sorted({*module_by_name, *submodules}), sorted(module_by_name)
