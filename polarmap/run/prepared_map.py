"""A map before it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from polarmap.report import Report

R = TypeVar("R")


class PreparedMap(NamedTuple, Generic[R]):
    """A map that is checked and cut, and has not begun.

    blank : its report before anything has happened; None where that is not known yet.
    blocks : whose results it tells one by one, and returns in a sequence; 0: it does not.
    run : runs it to its end, with `progress=` of a map.
    is_lasting : whether it is of use if nobody takes its results, because they stay in storage.
    no_estimates : why its results cannot be estimated while it runs, "" if they can.
    """

    blank: Report | None
    blocks: int
    run: Callable[[Any], R]
    is_lasting: bool = False
    no_estimates: str = "is of results that coded_map brings home: not with another verb= or out="
