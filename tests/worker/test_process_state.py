"""What is set back, and what is found, of a process that f has changed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

import numpy as np

from polarmap.worker.process_state import ProcessState, is_for_want


def in_a_child(call: Callable[[], bool]) -> bool:
    """Whether it returned True there."""
    child = os.fork()
    if not child:
        code = 2
        try:
            code = 0 if call() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_can_be_is_set_back() -> None:
    def call() -> bool:
        state, filters, depth = ProcessState(), list(warnings.filters), sys.getrecursionlimit()
        warnings.simplefilter("error")
        sys.setrecursionlimit(5 * depth)
        np.seterr(all="raise")
        os.umask(0o123)
        assert state.restore() == ""
        is_same = [*warnings.filters] == filters and sys.getrecursionlimit() == depth
        return is_same and np.geterr()["over"] == "warn" and os.umask(0) != 0o123

    assert in_a_child(call)


def test_want_is_told_from_other_errors() -> None:
    wants = [MemoryError(), OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
    others = [FileNotFoundError(2, "x"), RuntimeError("so it goes"), ImportError("no module"), KeyError("x")]
    assert all(map(is_for_want, wants))
    assert not any(map(is_for_want, others))
