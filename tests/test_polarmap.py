"""The public names of the package."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

import polarmap


def test_type_checkers_read_of_the_same_names() -> None:
    """They see imports, and the package itself a table."""
    tree = ast.parse(Path(polarmap.__file__).read_text(encoding="utf-8"))
    [block] = [one for one in tree.body if isinstance(one, ast.If)]
    imports = [one for one in block.body if isinstance(one, ast.ImportFrom)]
    told = {one.names[0].asname: f"{one.module}.{one.names[0].name}" for one in imports}
    assert told == {
        **{name: f"{module}.{name}" for name, module in polarmap._HOMES.items()},
        **{name: f"polarmap.{name}" for name in polarmap._MODULES},
    }


def test_all_has_what_a_reader_sees() -> None:
    assert set(dir(polarmap)) == {*polarmap.__all__, *polarmap._MODULES, "__version__"}
    there = {name for name, value in vars(polarmap).items() if not isinstance(value, ModuleType)}
    assert {name for name in there if not name.startswith("_")} <= {"annotations"}


@pytest.mark.parametrize("name", polarmap.__all__)
def test_a_public_name_is_there_and_becomes_no_attribute(name: str) -> None:
    """Else what a function reaches would seem to have changed."""
    assert getattr(polarmap, name) is getattr(polarmap, name)
    assert name in polarmap._MODULES or name not in vars(polarmap)


@pytest.mark.parametrize("name", polarmap._MODULES)
def test_modules_need_no_import_of_their_own(name: str) -> None:
    assert polarmap.__getattr__(name) is sys.modules[f"polarmap.{name}"]


def test_a_name_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match="'polarmap' has no attribute 'coded_mop'"):
        _ = polarmap.coded_mop
