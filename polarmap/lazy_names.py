"""Public names that are looked up when they are asked for, as few need all that makes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any


def public_names(
    package: str, homes: dict[str, list[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names stand in these modules of it.

    None becomes an attribute for that: what a function reaches, in this package too, would seem to have
    changed (run.trusted). `modules` are there as attributes without an import of their own.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in home_of:
            return getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*home_of, *modules}), sorted(home_of)
