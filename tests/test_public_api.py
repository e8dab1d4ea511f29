"""Check the public API against the snapshot `public_api.txt`, so that it does not change by accident.

After an intended change, write the file again: `python tests/test_public_api.py > tests/public_api.txt`.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import textwrap
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
ROOT = Path(__file__).resolve().parents[1]
CHANGELOG, NAMES = ROOT / "CHANGELOG.md", ROOT / "docs" / "names.md"


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
        # The signature of an enumeration depends on the version of Python.
        has_parameters = not issubclass(value, (BaseException, enum.Enum))
        yield f"class {path}" + (parameters(value) if has_parameters else "")
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


def stored_attributes(owner: type) -> Iterator[str]:
    """Yield the public attributes that methods of a class of polarmap or its bases assign to `self`."""
    for base in owner.__mro__:
        if base.__module__.partition(".")[0] == "polarmap":
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
                if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                    continue
                if ast.unparse(node.value) == "self" and not node.attr.startswith("_"):
                    yield node.attr


def test_new_names_in_the_changelog_are_public() -> None:
    # The changelog links to the page with the tables of renamed names. In their rows, all names but the old
    # ones have to be public, as in | `Pool` | `idle=` | `idle_timeout=` |
    renamed = CHANGELOG.read_text(encoding="utf-8").partition("### Renamed\n")[2].partition("\n### ")[0]
    assert "(docs/names.md)" in renamed
    rows = [
        line.strip("|").split("|")
        for line in NAMES.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    cells = [cell for row in rows for cell in (*row[:-2], row[-1])]
    named = set(re.findall(r"\w+", " ".join(re.findall("`(.+?)`", " ".join(cells)))))
    assert named > {"stop_workers", "idle_timeout", "XarrayObject"}
    classes = [
        value
        for module in map(importlib.import_module, MODULES)
        for value in (getattr(module, name) for name in public_names(module))
        if inspect.isclass(value)
    ]
    attributes = {name for owner in classes for name in stored_attributes(owner)}
    assert named - set(re.findall(r"\w+", SNAPSHOT.read_text())) - attributes == set()


if __name__ == "__main__":
    print(api(), end="")
