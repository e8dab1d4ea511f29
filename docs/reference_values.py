"""An extension of mkdocstrings: the reference shows what is meant, where griffe has read what is written."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import griffe

# A name, or several of one description, and their type: the first line of a parameter in numpydoc.
ENTRY = re.compile(r"^(\*{0,2}\w+)(?:, \*{0,2}\w+)* : (.+)$", re.MULTILINE)


class Values(griffe.Extension):
    """`memory: int = 256 << 20` for `memory: int = MEMORY`, `-> CodedSum` for what a verb prepares.

    Also `array-like (M, N)` for `array - like(M, N)`, and one entry for names that have one
    description.
    """

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for func in members_of(pkg, griffe.Function):
            returns: Any = func.returns
            if isinstance(returns, griffe.ExprSubscript) and str(returns.left) == "PreparedMap":
                func.returns = returns.slice
            for parameter in func.parameters:
                if isinstance(parameter.default, griffe.ExprName):
                    parameter.default = value_of(parameter.default, func) or parameter.default
        for kind in (griffe.Function, griffe.Class):
            for one in members_of(pkg, kind):
                if one.docstring is not None:
                    one.docstring.parsed = [as_written(part, one.docstring) for part in one.docstring.parse()]


def members_of(place: griffe.Module | griffe.Class, kind: type[griffe.Object]) -> Iterator[Any]:
    """Those of a kind that are written there, not imported."""
    for member in place.members.values():
        if isinstance(member, kind):
            yield member
        if isinstance(member, griffe.Module | griffe.Class):
            yield from members_of(member, kind)


def value_of(name: griffe.ExprName, func: griffe.Function) -> griffe.Expr | str | None:
    """What the constant of that name is set to, where a function sees it; None for other names."""
    found: Any = func.module.members.get(name.name)
    if isinstance(found, griffe.Alias):
        found = found.final_target if found.target_path.startswith("polarmap.") else None
    return found.value if isinstance(found, griffe.Attribute) else None


def as_written(section: griffe.DocstringSection, docstring: griffe.Docstring) -> griffe.DocstringSection:
    """A section with an entry for each description, and types as words where they are no expressions."""
    if isinstance(section, griffe.DocstringSectionRaises):
        for error in section.value:
            if isinstance(error.annotation, griffe.ExprTuple):
                error.annotation.implicit = True  # without brackets
        return section
    if not isinstance(section, griffe.DocstringSectionParameters | griffe.DocstringSectionAttributes):
        return section
    types = {name: words.removesuffix(", optional") for name, words in ENTRY.findall(docstring.value)}
    entries = list[Any]()
    for _, alike in groupby(section.value, key=lambda entry: entry.description or entry.name):
        first, *others = alike
        words = types.get(first.name, "")
        if " " in words or "-" in words:  # else a type that has a link
            first.annotation = words
        if others:
            first.name = ", ".join([first.name, *(other.name for other in others)])
            first.value = None  # each has its own, as of types that are not written
            first.annotation = first.annotation if words else None
        entries.append(first)
    section.value = entries
    return section
