"""What is set back, and what is found, of a process that f has changed; modules that f finds there."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from polarmap.worker.process_state import ProcessState, SentModules, available_cores, is_for_want


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


def test_there_are_as_many_cores_as_the_machine_has_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cores() == (os.cpu_count() or 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_want_is_told_from_other_errors() -> None:
    wants = [MemoryError(), OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
    others = [FileNotFoundError(2, "x"), RuntimeError("so it goes"), ImportError("no module"), KeyError("x")]
    assert all(map(is_for_want, wants))
    assert not any(map(is_for_want, others))


# --- modules that only the driver has --------------------------------------------------------


@pytest.fixture
def sent() -> Iterator[SentModules]:
    before, path = set(sys.modules), list(sys.meta_path)
    yield SentModules()
    sys.meta_path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_modules_and_packages_are_imported(sent: SentModules) -> None:
    sent.add(
        {
            "sent_package": ("from sent_package.inner import two\none = 1", True),
            "sent_package.inner": ("two = 2", False),
            "sent_alone": ("import sent_package\nthree = sent_package.one + sent_package.two", False),
        }
    )
    assert importlib.import_module("sent_alone").three == 3
    assert importlib.import_module("sent_package.inner").two == 2


def test_what_is_installed_comes_first_and_what_was_not_sent_is_not_found(sent: SentModules) -> None:
    sent.add({"colorsys": ("wrong = True", False), "json.tool": ("wrong = True", False)})
    for name in ("colorsys", "json.tool"):
        assert not hasattr(importlib.import_module(name), "wrong")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sent_other")


def test_a_module_that_has_changed_is_imported_anew_and_others_are_not(sent: SentModules) -> None:
    sent.add({"sent_first": ("value = 1", False), "sent_second": ("value = []", False)})
    first, second = map(importlib.import_module, ("sent_first", "sent_second"))
    sent.add({"sent_first": ("value = 2", False), "sent_second": ("value = []", False)})
    assert importlib.import_module("sent_first").value == 2
    assert first.value == 1
    assert importlib.import_module("sent_second") is second


def test_it_is_asked_once_however_often_modules_come(sent: SentModules) -> None:
    assert sent not in sys.meta_path
    sent.add({})
    assert sent not in sys.meta_path
    for number in range(3):
        sent.add({f"sent_{number}": ("", False)})
    assert sys.meta_path.count(sent) == 1


def test_tracebacks_show_its_lines(sent: SentModules) -> None:
    sent.add({"sent_wrong": ("def f():\n    raise KeyError('here')  # this line", False)})
    try:
        importlib.import_module("sent_wrong").f()
    except KeyError:
        assert "# this line" in traceback.format_exc()
