"""An extension of mkdocstrings: constants of the package are shown as values, maps return their results."""

from collections.abc import Iterator
from typing import Any

import griffe


class Values(griffe.Extension):
    """`memory: int = 256 << 20` for `memory: int = MEMORY`, `-> CodedSum` for what a verb prepares."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for func in functions_in(pkg):
            returns: Any = func.returns
            if isinstance(returns, griffe.ExprSubscript) and str(returns.left) == "PreparedMap":
                func.returns = returns.slice
            for parameter in func.parameters:
                if isinstance(parameter.default, griffe.ExprName):
                    parameter.default = value_of(parameter.default, func) or parameter.default


def functions_in(place: griffe.Module | griffe.Class) -> Iterator[griffe.Function]:
    """Those that are written there, not imported."""
    for member in place.members.values():
        if isinstance(member, griffe.Function):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from functions_in(member)


def value_of(name: griffe.ExprName, func: griffe.Function) -> griffe.Expr | str | None:
    """What the constant of that name is set to, where a function sees it; None for other names."""
    found: Any = func.module.members.get(name.name)
    if isinstance(found, griffe.Alias):
        found = found.final_target if found.target_path.startswith("polarmap.") else None
    return found.value if isinstance(found, griffe.Attribute) else None
