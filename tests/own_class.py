"""Classes of the caller, in a file that workers soon have imported."""

from __future__ import annotations

from typing import Any


class Own:
    """Its instances are equal if their state is."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __eq__(self, other: object) -> bool:
        return type(other) is Own and other.state == self.state

    __hash__ = None  # type: ignore[assignment]


class Mine(Exception):  # noqa: N818
    """With an attribute, which travels, too."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.more = {"answer": 42}
