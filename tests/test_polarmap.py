"""Check the public names of the package."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import polarmap


def test_dir_lists_all_public_names() -> None:
    assert set(dir(polarmap)) == {*polarmap.__all__, *polarmap._SUBMODULES}
    defined = {name for name, value in vars(polarmap).items() if not isinstance(value, ModuleType)}
    assert {name for name in defined if not name.startswith("_")} <= {"annotations"}


@pytest.mark.parametrize("name", polarmap.__all__)
def test_public_names_are_not_stored_as_attributes(name: str) -> None:
    # A new attribute would look like a change of the state that a function reaches.
    assert getattr(polarmap, name) is getattr(polarmap, name)
    assert name not in vars(polarmap)


@pytest.mark.parametrize("name", polarmap._SUBMODULES)
def test_submodules_are_available_without_their_own_import(name: str) -> None:
    assert polarmap.__getattr__(name) is sys.modules[f"polarmap.{name}"]
