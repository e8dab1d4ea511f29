"""Public names that are looked up when they are asked for, as few need all that makes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any


def make_lazy_exports(
    package: str, names_by_module: dict[str, list[str]], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names stand in these modules of it.

    None becomes an attribute for that: what a function reaches, in this package too, would seem to have
    changed (driver.fingerprint). `submodules` are there as attributes without an import of their own.
    """
    module_by_name = {name: module for module, names in names_by_module.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name in module_by_name:
            return getattr(importlib.import_module(f"{package}.{module_by_name[name]}"), name)
        if name in submodules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get_attribute, lambda: sorted({*module_by_name, *submodules}), sorted(module_by_name)
