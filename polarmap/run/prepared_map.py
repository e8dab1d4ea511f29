"""A map before it begins, and the functions that make one: calls of them run it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Generic, NamedTuple, ParamSpec, TypeVar

from polarmap.errors import without_our_frames
from polarmap.report import Report
from polarmap.run.observers import observers_of
from polarmap.run.running_map import Observers

P = ParamSpec("P")
R = TypeVar("R")


class PreparedMap(NamedTuple, Generic[R]):
    """A map that is checked and cut, and has not begun.

    run : runs it to its end, while these observers look on.
    blank : makes its report before anything has happened; None where that is not known yet.
    blocks : whose results it tells one by one, and returns in a sequence; 0: it does not.
    is_lasting : whether it is of use if nobody takes its results, because they stay in storage.
    no_estimates : why its results cannot be estimated while it runs, "" if they can.
    """

    run: Callable[[Observers], R]
    blank: Callable[[], Report] | None = None
    blocks: int = 0
    is_lasting: bool = False
    no_estimates: str = "is of results that coded_map brings home: not with another verb= or out="


def verb(prepare: Callable[P, PreparedMap[R]]) -> Callable[P, R]:
    """A public map: a call runs what `prepare` makes of its arguments, which is kept for `submit`.

    Who looks on, as `progress=` says, is no matter of what is prepared.
    """

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        with without_our_frames:
            return prepare(*arguments, **options).run(observers_of(options.get("progress")))

    name = prepare.__name__  # of the one frame of ours that a traceback shows
    call.__code__ = call.__code__.replace(co_name=name, co_qualname=name)
    call.prepare = prepare  # type: ignore[attr-defined]
    functools.update_wrapper(call, prepare)
    signature = inspect.signature(prepare)  # as help() shows it: of the result, not of the prepared map
    result = signature.return_annotation.removeprefix("PreparedMap[").removesuffix("]")
    call.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return call
