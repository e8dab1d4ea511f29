"""Extend mkdocstrings: show values, types and entries in the reference as a reader expects them."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import griffe

# The first line of a parameter in numpydoc: a name, or several names with one description, and their type.
ENTRY = re.compile(r"^(\*{0,2}\w+)(?:, \*{0,2}\w+)* : (.+)$", re.MULTILINE)


class Values(griffe.Extension):
    """An extension that makes griffe's output readable.

    It shows `memory: int = 256 << 20` for `memory: int = MEMORY`, `-> CodedSum` for functions that return a
    PreparedMap[CodedSum], `array-like (M, N)` for `array - like(M, N)`, and one entry for names that share a
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
    """Yield the members of a kind that are defined in a module or class, not imported."""
    for member in place.members.values():
        if isinstance(member, kind):
            yield member
        if isinstance(member, griffe.Module | griffe.Class):
            yield from members_of(member, kind)


def value_of(name: griffe.ExprName, func: griffe.Function) -> griffe.Expr | str | None:
    """Return the value of a constant that a function uses as a default, or None for other names."""
    member: Any = func.module.members.get(name.name)
    if isinstance(member, griffe.Alias):
        member = member.final_target if member.target_path.startswith("polarmap.") else None
    return member.value if isinstance(member, griffe.Attribute) else None


def as_written(section: griffe.DocstringSection, docstring: griffe.Docstring) -> griffe.DocstringSection:
    """Return the section with one entry per description, and with the types as written in the docstring."""
    if isinstance(section, griffe.DocstringSectionRaises):
        for error in section.value:
            if isinstance(error.annotation, griffe.ExprTuple):
                error.annotation.implicit = True  # Show the types without brackets.
        return section
    if not isinstance(section, griffe.DocstringSectionParameters | griffe.DocstringSectionAttributes):
        return section
    types = {name: words.removesuffix(", optional") for name, words in ENTRY.findall(docstring.value)}
    entries = list[Any]()
    for _, alike in groupby(section.value, key=lambda entry: entry.description or entry.name):
        first, *following = alike
        words = types.get(first.name, "")
        if " " in words or "-" in words:  # A single word is a type, which gets a link.
            first.annotation = words
        if following:
            first.name = ", ".join([first.name, *(next_entry.name for next_entry in following)])
            first.value = None  # The names may have different values, and different types if none is written.
            first.annotation = first.annotation if words else None
        entries.append(first)
    section.value = entries
    return section
