"""Classes of a caller, in a small module that workers import quickly."""

from __future__ import annotations

from typing import Any


class Own:
    """A class whose instances are equal if their states are equal."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __eq__(self, other: object) -> bool:
        return type(other) is Own and other.state == self.state

    __hash__ = None  # type: ignore[assignment]


class Mine(Exception):  # noqa: N818
    """An exception with an attribute that must be sent, too."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.more = {"answer": 42}
