"""Check the public names of the package."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import polarmap


def test_all_has_what_a_reader_sees() -> None:
    assert set(dir(polarmap)) == {*polarmap.__all__, *polarmap._SUBMODULES}
    defined = {name for name, value in vars(polarmap).items() if not isinstance(value, ModuleType)}
    assert {name for name in defined if not name.startswith("_")} <= {"annotations"}


@pytest.mark.parametrize("name", polarmap.__all__)
def test_a_public_name_is_there_and_becomes_no_attribute(name: str) -> None:
    # A new attribute would look like a change of the state that a function reaches.
    assert getattr(polarmap, name) is getattr(polarmap, name)
    assert name not in vars(polarmap)


@pytest.mark.parametrize("name", polarmap._SUBMODULES)
def test_modules_need_no_import_of_their_own(name: str) -> None:
    assert polarmap.__getattr__(name) is sys.modules[f"polarmap.{name}"]
