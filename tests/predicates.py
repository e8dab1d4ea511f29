"""Check that predicates may be called any number of times, since they change nothing."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any


def assert_only_asks(owner: Any, *predicates: Callable[[], bool]) -> None:
    """Assert that each predicate returns the same value twice, and changes no attribute of its owner."""
    for predicate in predicates:
        before = _copy_attributes(owner)
        answers = predicate(), predicate()
        assert answers in {(True, True), (False, False)}, predicate
        assert _copy_attributes(owner) == before, predicate


def _copy_attributes(owner: Any) -> dict[str, Any]:
    """Return the attributes of an object, with copies of its containers."""
    containers = bytearray, deque, dict, list, set
    return {
        name: copy.copy(value) if isinstance(value, containers) else value
        for name, value in vars(owner).items()
    }
