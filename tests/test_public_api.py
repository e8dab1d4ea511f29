"""Check the public API against the snapshot `public_api.txt`, so that it does not change by accident.

After an intended change, write the file again: `python tests/test_public_api.py > tests/public_api.txt`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = (
    "polarmap",
    "polarmap.arrays",
    "polarmap.codes",
    "polarmap.convex",
    "polarmap.convexnn",
    "polarmap.errors",
    "polarmap.glm",
    "polarmap.joblib",
    "polarmap.linalg",
    "polarmap.planning",
    "polarmap.testing",
    "polarmap.types",
    "polarmap.xr",
)
SNAPSHOT = Path(__file__).with_name("public_api.txt")


def public_names(module: Any) -> list[str]:
    """Return the names in `__all__`, or the names without an underscore that the module defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = (
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
    )
    return sorted(name for name in own if not name.startswith("_"))


def parameters(function: Any) -> str:
    """Return the parameters of a function with their defaults, without annotations."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Some built-ins have no signature.
        return "(...)"
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    text = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def members(owner: type) -> Iterator[str]:
    """Yield a line for each public attribute that a class of polarmap or its bases define."""
    names = {
        name
        for base in owner.__mro__
        if base.__module__.partition(".")[0] == "polarmap"
        for name in [*vars(base), *vars(base).get("__annotations__", {})]
        if not name.startswith("_")
    }
    for name in sorted(names):
        value = inspect.getattr_static(owner, name, None)
        function = getattr(value, "__func__", value)
        yield name + (parameters(function) if inspect.isfunction(function) else "")


def lines_of(path: str, value: Any) -> Iterator[str]:
    """Yield the lines of one public name: a class with its members, a function with its parameters."""
    if inspect.isclass(value):
        is_error = issubclass(value, BaseException)
        yield f"class {path}" + ("" if is_error else parameters(value))
        yield from (f"    {member}" for member in members(value))
    else:
        yield path + (parameters(value) if callable(value) else "")


def api() -> str:
    """Return the text of the snapshot."""
    lines = []
    for name in MODULES:
        module = importlib.import_module(name)
        for public in public_names(module):
            lines += lines_of(f"{name}.{public}", getattr(module, public))
    return "\n".join(lines) + "\n"


def test_public_api_equals_the_snapshot() -> None:
    assert api() == SNAPSHOT.read_text()


if __name__ == "__main__":
    print(api(), end="")
