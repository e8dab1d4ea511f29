"""Tests that modules of the driver are imported, reloaded when they change, and shown in tracebacks."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator

import pytest

from polarmap.worker.sent_modules import SentModuleFinder


@pytest.fixture
def sent() -> Iterator[SentModuleFinder]:
    before, path = set(sys.modules), list(sys.meta_path)
    yield SentModuleFinder()
    sys.meta_path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_modules_and_packages_are_imported(sent: SentModuleFinder) -> None:
    sent.add_sources(
        {
            "sent_package": ("from sent_package.inner import two\none = 1", True),
            "sent_package.inner": ("two = 2", False),
            "sent_alone": ("import sent_package\nthree = sent_package.one + sent_package.two", False),
        }
    )
    assert importlib.import_module("sent_alone").three == 3
    assert importlib.import_module("sent_package.inner").two == 2


def test_installed_modules_come_first_and_unsent_modules_are_not_found(sent: SentModuleFinder) -> None:
    sent.add_sources({"colorsys": ("wrong = True", False), "json.tool": ("wrong = True", False)})
    for name in ("colorsys", "json.tool"):
        assert not hasattr(importlib.import_module(name), "wrong")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sent_other")


def test_only_changed_modules_are_imported_again(sent: SentModuleFinder) -> None:
    sent.add_sources({"sent_first": ("value = 1", False), "sent_second": ("value = []", False)})
    first, second = map(importlib.import_module, ("sent_first", "sent_second"))
    sent.add_sources({"sent_first": ("value = 2", False), "sent_second": ("value = []", False)})
    assert importlib.import_module("sent_first").value == 2
    assert first.value == 1
    assert importlib.import_module("sent_second") is second


def test_the_importer_is_installed_once(sent: SentModuleFinder) -> None:
    assert sent not in sys.meta_path
    sent.add_sources({})
    assert sent not in sys.meta_path
    for number in range(3):
        sent.add_sources({f"sent_{number}": ("", False)})
    assert sys.meta_path.count(sent) == 1


def test_tracebacks_show_lines_of_sent_modules(sent: SentModuleFinder) -> None:
    sent.add_sources({"sent_wrong": ("def f():\n    raise KeyError('here')  # this line", False)})
    try:
        importlib.import_module("sent_wrong").f()
    except KeyError:
        assert "# this line" in traceback.format_exc()
