"""Tests that changes that f makes to its process are undone or reported."""

from __future__ import annotations

import os
import sys
import warnings

import numpy as np
from pool_processes import code_of_child

from polarmap.worker.process_state import ProcessState, is_resource_exhaustion


def test_process_state_is_restored() -> None:
    def change() -> None:
        state, filters, depth = ProcessState(), list(warnings.filters), sys.getrecursionlimit()
        warnings.simplefilter("error")
        sys.setrecursionlimit(5 * depth)
        np.seterr(all="raise")
        os.umask(0o123)
        assert state.restore_or_describe_change() == ""
        assert [*warnings.filters] == filters
        assert sys.getrecursionlimit() == depth
        assert np.geterr()["over"] == "warn"
        assert os.umask(0) != 0o123

    assert code_of_child(change, []) == 0


def test_resource_errors_are_distinguished_from_other_errors() -> None:
    wants = [MemoryError(), OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
    others = [FileNotFoundError(2, "x"), RuntimeError("so it goes"), ImportError("no module"), KeyError("x")]
    assert all(map(is_resource_exhaustion, wants))
    assert not any(map(is_resource_exhaustion, others))
